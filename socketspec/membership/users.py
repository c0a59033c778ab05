"""A user's connections: how many there may be, and which has to go for a new one."""

from __future__ import annotations

from typing import Literal

from socketspec.backend.protocols import Presence
from socketspec.connection.connection import Connection
from socketspec.errors import CloseCode, PermissionDenied, ValidationFailed
from socketspec.membership.node_orders import NodeOrders
from socketspec.membership.topics import Topics
from socketspec.protocol.names import check_user_id
from socketspec.protocol.publications import Topic

__all__ = ("UserMembership", "user_topic")


def user_topic(namespace: str, user_id: str) -> Topic:
    """All connections of a user, as one address. Raises `ValidationFailed` for what cannot be a user id."""
    try:
        check_user_id(user_id)
    except ValueError as error:
        raise ValidationFailed(str(error), details={"reason": "user_id"}) from None
    return Topic(namespace, "user", user_id)


class UserMembership:
    """Which of this node's connections belong to which users."""

    def __init__(
        self,
        namespace: str,
        topics: Topics,
        presence: Presence,
        orders: NodeOrders,
        *,
        limit: int | None,
        policy: Literal["reject", "evict_oldest"],
    ) -> None:
        self._namespace = namespace
        self._topics = topics
        self._presence = presence
        self._orders = orders
        self._limit = limit
        self._evicts = policy == "evict_oldest"

    async def enter(self, conn: Connection) -> None:
        """Make `conn` one of its user's connections; nothing happens for anonymous ones.

        Raises `PermissionDenied` where the user has as many as there may be, and `BackendError`.
        """
        user_id = conn.identity.user_id
        if user_id is None or not conn.identity.is_authenticated:
            return
        topic, limit = user_topic(self._namespace, user_id), self._limit
        evicts = limit is not None and self._evicts
        if not await self._topics.enter(topic, conn.id, user_id, limit=None if evicts else limit, last=evicts):
            raise PermissionDenied(
                f"You have {limit} connections already, the most there may be.",
                details={"reason": "too_many_connections", "limit": limit},
            )
        entered = False
        try:
            if evicts and limit is not None:
                await self._evict_oldest(topic, limit)
            entered = conn.is_open  # else it left while we waited, and its clean-up did not know of this
        finally:
            if entered:
                conn.user_topic = topic
            else:
                await self._topics.exit(topic, conn.id, write_rest=False)

    async def leave(self, conn: Connection) -> None:
        """Undo what `enter` did."""
        topic, conn.user_topic = conn.user_topic, None
        if topic is not None:
            await self._topics.exit(topic, conn.id, write_rest=conn.is_open)

    async def _evict_oldest(self, topic: Topic, limit: int) -> None:
        # Every node that sees the same members picks the same ones: two that come at once do not evict each other.
        members = sorted(await self._presence.members(topic), key=lambda item: (item.joined_at, item.connection_id))
        oldest = [member.connection_id for member in members[: max(len(members) - limit, 0)]]
        if oldest:
            await self._orders.disconnect(connections=oldest, code=CloseCode.REPLACED, reason="replaced")
