"""Rooms: named groups of connections, cluster-wide, that one call broadcasts to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from socketspec.connection.connection import Connection
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.registry import Guard
from socketspec.errors import ConfigurationError, PermissionDenied, RoomNotFound, ValidationFailed
from socketspec.protocol.messages import Write, encode_payload
from socketspec.protocol.names import check_outbound, check_room_name
from socketspec.protocol.publications import History, Member, Position, Publication, Receipt, Topic

if TYPE_CHECKING:
    from socketspec.runtime.engine import Engine
from socketspec.declaration.rooms import Declared, Room
from socketspec.protocol.publications import RoomMessage, room_message

__all__ = ("Exclude", "Rooms")


Exclude = Connection | str | Iterable[Connection | str] | None
"""Who does not get a broadcast: a connection, a connection id, or several of either."""


class Rooms:
    """`socket.rooms`: joining, leaving, broadcasting, and who is there."""

    def __init__(self, declared: Sequence[Room], engine: Callable[[], Awaitable[Engine]]) -> None:
        self._engine = engine
        self.declared: tuple[Room, ...] = tuple(declared)
        patterns = [Declared(RoomPattern(room.name), room) for room in declared]
        for index, item in enumerate(patterns):
            if any(item.pattern == other.pattern for other in patterns[:index]):
                raise ConfigurationError(f"Room {item.room.name!r} is declared twice; give it once.")
        self._declared = sorted(patterns, key=lambda item: item.pattern.specificity)

    def declaration(self, room: str) -> Room | None:
        """The declaration that applies to `room`, the most specific one; None where the app declares no rooms.

        Raises `RoomNotFound` where it does, and none matches.
        """
        for pattern, declared in self._declared:
            if pattern.match(room) is not None:
                return declared
        if self._declared:
            raise RoomNotFound(f"There is no room {room!r}.", details={"room": room})
        return None

    async def join(self, conn: Connection, room: str) -> None:
        """Put `conn` into `room`. When this returns, everything broadcast from now on reaches it. Idempotent.

        Raises `ValidationFailed` for a name that cannot be one, `RoomNotFound`, and `PermissionDenied` when a guard
        refuses, the room is full, or the connection is in too many rooms. A handler need not catch these: the client
        gets them as ``__error__``.
        """
        await self.join_through(conn, room, conn.transport.write)

    async def join_through(self, conn: Connection, room: str, write: Write) -> None:
        """Like `join`, with `write` in the place of the connection's transport. For the engine."""
        engine = await self._engine()
        declared = self._check(room)
        async with _alone(conn, room):
            if room in conn.topics:
                return
            limit = engine.settings.max_rooms_per_connection
            if len(conn.topics.keys() | (conn.changing or {}).keys()) > limit:
                raise PermissionDenied(
                    f"This connection is in {limit} rooms already, the most there may be.",
                    details={"reason": "too_many_rooms", "limit": limit},
                )
            await self._check_guards(engine, conn, room)
            await self._enter(engine, conn, room, declared, write)
        if room in conn.topics:
            await engine.run_hooks(engine.registry.on_room_join, conn, room)

    async def _check_guards(self, engine: Engine, conn: Connection, room: str) -> None:
        guards = engine.registry.guards_for(room)
        if not guards:
            return
        with engine.telling(conn):
            for guard, variables in guards:
                if not await _allows(guard, conn, variables):
                    raise PermissionDenied(f"You may not join {room!r}.", details={"reason": "guard", "room": room})

    async def _enter(self, engine: Engine, conn: Connection, room: str, declared: Room | None, write: Write) -> None:
        topic = Topic(engine.settings.namespace, "room", room)
        presence = engine.backend.presence
        await engine.hub.acquire(topic)
        entered: bool | None = None
        try:
            member = Member(conn.id, conn.identity.user_id, time.time())
            limit = declared.max_members if declared is not None else None
            entered = await presence.enter(topic, member, limit=limit)
            if not entered:
                raise PermissionDenied(
                    f"{room!r} is full.", details={"reason": "room_full", "room": room, "max_members": limit}
                )
            if not conn.is_open:  # it left while we waited, and its cleanup did not know of this room
                raise ConnectionResetError(f"connection {conn.id} closed while joining {room!r}")
        except BaseException as error:
            try:
                if entered is not False:  # None: whether it is in is not known
                    await presence.leave(topic, conn.id)
            finally:
                await engine.hub.release(topic)
            if isinstance(error, ConnectionResetError):
                return
            raise
        engine.hub.add(topic, conn, write)
        conn.topics[room] = topic
        engine.counters.joins += 1

    async def leave(self, conn: Connection, room: str) -> None:
        """Take `conn` out of `room`; nothing happens if it is not in it."""
        engine = await self._engine()
        async with _alone(conn, room):
            topic = conn.topics.pop(room, None)
            if topic is None:
                return
            await self.exit(engine, conn, topic)
        await engine.run_hooks(engine.registry.on_room_leave, conn, room)

    async def exit(self, engine: Engine, conn: Connection, topic: Topic) -> None:
        """Undo what joining did, without hooks. For the engine."""
        engine.counters.leaves += 1
        engine.hub.remove(topic, conn)
        try:
            await engine.backend.presence.leave(topic, conn.id)
        finally:
            await engine.hub.release(topic)

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

        In rooms with history the message is kept and sent in one atomic step, and the receipt has its position; a
        repeated `idempotency_key` is kept and sent once. Raises `TypeError` for a payload that cannot be encoded,
        `RoomNotFound`, `ValidationFailed` for an impossible name, and `BackendError`.
        """
        engine = await self._engine()
        declared = self._check(room)
        engine.contracts.check_broadcast(room, event, payload)
        topic = Topic(engine.settings.namespace, "room", room)
        history = declared.history if declared is not None else None
        return await self._publish(engine, topic, event, payload, exclude, history, idempotency_key)

    async def broadcast_all(self, event: str, payload: object = None) -> Receipt:
        """Send an event to every connection of the namespace, on every node."""
        return await self.broadcast_except(None, event, payload)

    async def broadcast_except(self, exclude: Exclude, event: str, payload: object = None) -> Receipt:
        """Send an event to every connection of the namespace but those excluded."""
        engine = await self._engine()
        engine.contracts.check_broadcast(None, event, payload)
        return await self._publish(engine, engine.everybody, event, payload, exclude, None, None)

    async def _publish(
        self,
        engine: Engine,
        topic: Topic,
        event: str,
        payload: object,
        exclude: Exclude,
        history: History | None,
        idempotency_key: str | None,
    ) -> Receipt:
        check_outbound(event)
        encoded = encode_payload(payload)
        publication = Publication(event=event, payload=encoded, exclude=_ids(exclude))
        engine.observe("broadcast", None, event, encoded, room=topic.name)
        receipt = await engine.publish(topic, publication, history=history, idempotency_key=idempotency_key)
        await engine.hub.breathe(topic)
        return receipt

    async def members(self, room: str) -> Sequence[Member]:
        """Everybody in `room`, on every node, in the order they joined. To count, use `count`: it loads nobody."""
        engine = await self._engine()
        self._check(room)
        return await engine.backend.presence.members(Topic(engine.settings.namespace, "room", room))

    async def count(self, room: str) -> int:
        """How many connections are in `room`, on every node."""
        engine = await self._engine()
        self._check(room)
        return await engine.backend.presence.count(Topic(engine.settings.namespace, "room", room))

    async def history(
        self, room: str, *, limit: int | None = None, since: Position | None = None
    ) -> Sequence[RoomMessage]:
        """What a room with history kept, oldest first: the newest `limit` messages, or those after `since`.

        Raises `LookupError` when `since` is no longer there, and `ValueError` for a room without history.
        """
        engine = await self._engine()
        declared = self._check(room)
        if declared is None or declared.history is None:
            raise ValueError(f"room {room!r} keeps no history; declare Room({room!r}, history=History(…))")
        topic = Topic(engine.settings.namespace, "room", room)
        kept = await engine.backend.history.read(topic, since=since, limit=limit)
        return [room_message(publication) for publication in kept]

    def _check(self, room: str) -> Room | None:
        try:
            check_room_name(room)
        except ValueError as error:
            raise ValidationFailed(str(error), details={"reason": "room_name"}) from None
        return self.declaration(room)


@asynccontextmanager
async def _alone(conn: Connection, room: str) -> AsyncIterator[None]:
    """Joins and leaves of one connection and one room take turns: overlapping, one would undo half of the other."""
    if conn.changing is None:
        conn.changing = {}
    while room in conn.changing:
        await conn.changing[room].wait()
    done = conn.changing[room] = asyncio.Event()
    try:
        yield
    finally:
        del conn.changing[room]
        done.set()


async def _allows(guard: Guard, conn: Connection, variables: dict[str, str]) -> bool:
    verdict = await guard.function(conn, **variables)
    if not isinstance(verdict, bool):
        raise TypeError(
            f"the room guard for {guard.pattern.source!r} must return True or False, not {type(verdict).__name__}"
        )
    return verdict


def _ids(exclude: Exclude) -> tuple[str, ...]:
    if exclude is None:
        return ()
    if isinstance(exclude, Connection):
        return (exclude.id,)
    if isinstance(exclude, str):
        return (exclude,)
    return tuple(item.id if isinstance(item, Connection) else item for item in exclude)
