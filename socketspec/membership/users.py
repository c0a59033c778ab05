"""A user's connections: which there may be, and which has to go for a new one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from socketspec.connection.connection import Connection
from socketspec.errors import CloseCode, PermissionDenied, ValidationFailed
from socketspec.protocol.names import check_user_id
from socketspec.protocol.publications import Member, Topic

if TYPE_CHECKING:
    from socketspec.runtime.engine import Engine

__all__ = ("enter", "leave")


def user_topic(engine: Engine, user_id: str) -> Topic:
    try:
        check_user_id(user_id)
    except ValueError as error:
        raise ValidationFailed(str(error), details={"reason": "user_id"}) from None
    return Topic(engine.settings.namespace, "user", user_id)


async def enter(engine: Engine, conn: Connection) -> None:
    """Make `conn` one of its user's connections; nothing happens for anonymous ones. For the engine.

    Raises `PermissionDenied` where the user has as many as there may be, and `BackendError`.
    """
    user_id = conn.identity.user_id
    if user_id is None or not conn.identity.is_authenticated:
        return
    topic = user_topic(engine, user_id)
    limit = engine.settings.max_connections_per_user
    is_evicting = limit is not None and engine.settings.connection_limit_policy == "evict_oldest"
    presence = engine.backend.presence
    await engine.hub.acquire(topic)
    entered: bool | None = None
    try:
        joined_at = await _newest(engine, topic) if is_evicting else time.time()
        member = Member(conn.id, user_id, joined_at)
        entered = await presence.enter(topic, member, limit=None if is_evicting else limit)
        if not entered:
            raise PermissionDenied(
                f"You have {limit} connections already, the most there may be.",
                details={"reason": "too_many_connections", "limit": limit},
            )
        if is_evicting and limit is not None:
            await _evict_oldest(engine, topic, limit)
    except BaseException:
        await _exit(engine, conn, topic, entered=entered is not False)  # None: perhaps it is in, so take it out
        raise
    if conn.is_open:
        conn.user_topic = topic
    else:  # it left while we waited, and its clean-up did not know of this
        await _exit(engine, conn, topic, entered=True)


async def leave(engine: Engine, conn: Connection) -> None:
    """Undo what `enter` did. For the engine."""
    topic, conn.user_topic = conn.user_topic, None
    if topic is not None:
        await _exit(engine, conn, topic, entered=True)


async def _exit(engine: Engine, conn: Connection, topic: Topic, *, entered: bool) -> None:
    engine.hub.remove(topic, conn)
    try:
        if entered:
            await engine.backend.presence.leave(topic, conn.id)
    finally:
        await engine.hub.release(topic)


async def _newest(engine: Engine, topic: Topic) -> float:
    """The time to join at: after all who are there, however much their nodes' clocks differ from ours."""
    members = await engine.backend.presence.members(topic)
    return max((time.time(), *(member.joined_at + 1e-6 for member in members)))


async def _evict_oldest(engine: Engine, topic: Topic, limit: int) -> None:
    # Every node that sees the same members picks the same ones, so that two that come at once do not evict each other.
    members = sorted(
        await engine.backend.presence.members(topic), key=lambda item: (item.joined_at, item.connection_id)
    )
    oldest = [member.connection_id for member in members[: max(len(members) - limit, 0)]]
    if oldest:
        await engine.control.disconnect(connections=oldest, code=CloseCode.REPLACED, reason="replaced")
