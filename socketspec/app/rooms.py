"""`socket.rooms`: join, leave and broadcast to named groups of connections, on all nodes; and who is in them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

from socketspec.connection.connection import Connection
from socketspec.declaration.rooms import DeclaredRooms, Room, no_history
from socketspec.protocol.publications import Member, Position, Receipt, RoomMessage, Topic, room_message
from socketspec.runtime.engine import Engine

__all__ = ("Exclude", "Rooms")

Exclude = Connection | str | Iterable[Connection | str] | None
"""Who does not get a broadcast: a connection, a connection id, or several of either."""


class Rooms:
    """`socket.rooms`: joining, leaving, broadcasting, and who is there."""

    def __init__(self, declared: DeclaredRooms, engine: Callable[[], Awaitable[Engine]]) -> None:
        self._declared = declared
        self._engine = engine

    @property
    def declared(self) -> tuple[Room, ...]:
        """The rooms of the app's constructor."""
        return self._declared.rooms

    def declaration(self, room: str) -> Room | None:
        """The most specific declaration that matches `room`; None if the app declares no rooms.

        Raises `RoomNotFound` if it declares rooms and none of them matches.
        """
        return self._declared.declaration(room)

    async def join(self, conn: Connection, room: str) -> None:
        """Put `conn` into `room`. When this returns, everything broadcast from now on reaches it. Idempotent.

        Raises `ValidationFailed` for a name that no room can have, `RoomNotFound`, and `PermissionDenied` when a guard
        refuses, the room is full, or the connection is in too many rooms. A handler need not catch these: the client
        gets them as ``__error__``.
        """
        engine = await self._engine()
        await engine.rooms.join(conn, room, conn.transport.write)

    async def leave(self, conn: Connection, room: str) -> None:
        """Take `conn` out of `room`; nothing happens if it is not in it."""
        engine = await self._engine()
        await engine.rooms.leave(conn, room)

    async def broadcast(
        self,
        room: str,
        event: str,
        payload: object = None,
        *,
        exclude: Exclude = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Send an event to every member of `room`, on every node: at most once, in one order for all of them.

        In rooms with history the message is kept and sent in one atomic step, and the receipt has its position. Of
        messages with the same `idempotency_key` within 5 minutes only the first is sent. Raises `TypeError` for a
        payload that cannot be encoded, `RoomNotFound`, `ValidationFailed` for a name that no room can have, and
        `BackendError`.
        """
        engine = await self._engine()
        declared = self._declared.check(room)
        return await engine.broadcaster.broadcast(
            _topic(engine, room),
            event,
            payload,
            exclude=_ids(exclude),
            history=None if declared is None else declared.history,
            idempotency_key=idempotency_key,
        )

    async def broadcast_all(self, event: str, payload: object = None) -> Receipt:
        """Send an event to every connection of the namespace, on every node."""
        return await self.broadcast_except(None, event, payload)

    async def broadcast_except(self, exclude: Exclude, event: str, payload: object = None) -> Receipt:
        """Send an event to every connection of the namespace, except those excluded."""
        engine = await self._engine()
        return await engine.broadcaster.broadcast(engine.everybody, event, payload, exclude=_ids(exclude))

    async def members(self, room: str) -> Sequence[Member]:
        """Everybody in `room`, on every node, in the order they joined. To count them, use `count`: it loads nobody."""
        engine = await self._engine()
        self._declared.check(room)
        return await engine.backend.presence.members(_topic(engine, room))

    async def count(self, room: str) -> int:
        """How many connections are in `room`, on every node."""
        engine = await self._engine()
        self._declared.check(room)
        return await engine.backend.presence.count(_topic(engine, room))

    async def history(
        self, room: str, *, limit: int | None = None, since: Position | None = None
    ) -> Sequence[RoomMessage]:
        """What a room with history kept, oldest first: the newest `limit` messages, or those after `since`.

        Raises `LookupError` when some of what came after `since` is no longer kept, and `ValueError` for a room without
        history.
        """
        engine = await self._engine()
        declared = self._declared.check(room)
        if declared is None or declared.history is None:
            raise no_history(room)
        topic = _topic(engine, room)
        kept = await engine.backend.history.read(topic, since=since, limit=limit)
        return [room_message(publication) for publication in kept]


def _topic(engine: Engine, room: str) -> Topic:
    return Topic(engine.settings.namespace, "room", room)


def _ids(exclude: Exclude) -> tuple[str, ...]:
    if exclude is None:
        return ()
    if isinstance(exclude, Connection):
        return (exclude.id,)
    if isinstance(exclude, str):
        return (exclude,)
    return tuple(item.id if isinstance(item, Connection) else item for item in exclude)
