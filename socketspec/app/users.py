"""Users: all connections that one user has, on whichever node, as one address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from socketspec.errors import CloseCode, check_close_code
from socketspec.membership.users import user_topic
from socketspec.protocol.publications import Receipt
from socketspec.runtime.engine import Engine

__all__ = ("Users",)


class Users:
    """`socket.users`: reach, count and disconnect a user, cluster-wide.

    A connection belongs to the user that its identity names, from when its `on_connect` hooks have let it in.
    A user id is a str of 1 to 512 bytes; any other raises `ValidationFailed`.
    """

    def __init__(self, engine: Callable[[], Awaitable[Engine]]) -> None:
        self._engine = engine

    async def send(self, user_id: str, event: str, payload: object = None) -> Receipt:
        """Send an event to every connection of the user, at most once to each.

        ``Receipt.nodes == 0`` means that the user is not connected anywhere. Raises `TypeError` when the payload
        cannot be encoded, `ValueError` for a reserved event name, and `BackendError`.
        """
        engine = await self._engine()
        topic = user_topic(engine.settings.namespace, user_id)
        return await engine.broadcaster.broadcast(topic, event, payload)

    async def disconnect(
        self, user_id: str, *, reason: str = "disconnected", code: int = CloseCode.DISCONNECTED
    ) -> int:
        """Close every connection of the user; how many there were. The user may come back: see `sessions.revoke`.

        Returns when every node has been told. Raises `ValueError` for a close code other than 1000 and 4000-4999, and
        `BackendError`.
        """
        engine = await self._engine()
        topic = user_topic(engine.settings.namespace, user_id)
        check_close_code(code)
        count = await engine.backend.presence.count(topic)
        await engine.orders.disconnect(user=user_id, code=code, reason=reason)
        return count

    async def count(self, user_id: str) -> int:
        """How many connections the user has, on every node."""
        engine = await self._engine()
        return await engine.backend.presence.count(user_topic(engine.settings.namespace, user_id))
