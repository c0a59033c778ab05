"""Joining and leaving rooms: guards, limits, hooks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from socketspec.connection.connection import Connection
from socketspec.connection.hooks import Hooks
from socketspec.declaration.refusals import as_event_error
from socketspec.declaration.registry import Guard, Registry
from socketspec.declaration.rooms import DeclaredRooms, Room
from socketspec.errors import EventError, PermissionDenied, RoomNotFound
from socketspec.fanout.hub import Hub
from socketspec.membership.topics import Topics
from socketspec.protocol.encoding import Write
from socketspec.protocol.publications import Topic
from socketspec.telemetry.counters import Counters

__all__ = ("Proof", "RoomFull", "RoomMembership")

Proof = Callable[[Topic], Awaitable[bool]]
"""Says whether a client was in a room before."""

_Guards = Sequence[tuple[Guard, dict[str, str]]]


class RoomFull(PermissionDenied):
    """The connection may join the room, but has to wait for a place in it."""


class RoomMembership:
    """Which of this node's connections are in which rooms."""

    def __init__(
        self,
        namespace: str,
        declared: DeclaredRooms,
        registry: Registry,
        topics: Topics,
        hub: Hub,
        hooks: Hooks,
        counters: Counters,
        *,
        max_rooms: int,
    ) -> None:
        self._namespace = namespace
        self._declared = declared
        self._registry = registry
        self._topics = topics
        self._hub = hub
        self._hooks = hooks
        self._counters = counters
        self._max_rooms = max_rooms
        self._changing: dict[str, dict[str, asyncio.Event]] = {}
        """Joins and leaves under way, by connection id and room; set when they are through."""

    async def join(self, conn: Connection, room: str, write: Write) -> None:
        """Put `conn` into `room`, as the app wants it; what is published there is written with `write`. Idempotent.

        Raises `ValidationFailed` for a name that cannot be one, `RoomNotFound`, `PermissionDenied`, and
        `BackendError`.
        """
        await self._join(conn, room, write, None)

    async def rejoin(self, conn: Connection, room: str, write: Write, proof: Proof) -> bool:
        """Put `conn` into a room that its client names, if it has a right to it; False where it was in it already.

        Where there are guards, they alone decide. Else the app has to open the room to clients, or `proof` to say
        that the client was in it before. Raises as `join` does.
        """
        return await self._join(conn, room, write, proof)

    def is_open_to_clients(self, room: str) -> bool:
        """Whether every client has a right to `room`, so that nobody has to be asked."""
        try:
            declared = self._declared.check(room)
        except EventError:
            return False
        return declared is not None and declared.client_join and not self._registry.guards_for(room)

    async def _join(self, conn: Connection, room: str, write: Write, proof: Proof | None) -> bool:
        declared = self._declared.check(room)
        async with self._alone(conn, room) as changing:
            if room in conn.topics:
                return False
            if len(conn.topics.keys() | changing.keys()) > self._max_rooms:
                raise PermissionDenied(
                    f"This connection is in {self._max_rooms} rooms already, the most there may be.",
                    details={"reason": "too_many_rooms", "limit": self._max_rooms},
                )
            await self._check_right(conn, room, declared, proof)
            await self._enter(conn, room, declared, write)
        if room in conn.topics:
            await self._hooks.run(self._registry.on_room_join, conn, room)
        return True

    async def _check_right(self, conn: Connection, room: str, declared: Room | None, proof: Proof | None) -> None:
        guards = self._registry.guards_for(room)
        if guards:
            await self._check_guards(conn, room, guards)
            return
        is_open = proof is None or (declared is not None and declared.client_join)
        if proof is not None and not is_open and not await proof(Topic(self._namespace, "room", room)):
            raise PermissionDenied(
                f"You may not join {room!r} by its name alone.", details={"reason": "no_right", "room": room}
            )

    async def _check_guards(self, conn: Connection, room: str, guards: _Guards) -> None:
        with self._hooks.log_context(conn):
            for guard, variables in guards:
                values = guard.variables.converted(variables)
                if values is None:
                    raise RoomNotFound(f"There is no room {room!r}.", details={"room": room})
                if not await _allows(guard, conn, values):
                    raise PermissionDenied(f"You may not join {room!r}.", details={"reason": "guard", "room": room})

    async def _enter(self, conn: Connection, room: str, declared: Room | None, write: Write) -> None:
        topic = Topic(self._namespace, "room", room)
        limit = None if declared is None else declared.max_members
        has_history = declared is not None and declared.history is not None
        if not await self._topics.enter(topic, conn.id, conn.identity.user_id, limit=limit, has_history=has_history):
            raise RoomFull(f"{room!r} is full.", details={"reason": "room_full", "room": room, "max_members": limit})
        if not conn.is_open:  # it left while we waited, and its clean-up did not know of this room
            await self._topics.exit(topic, conn.id, write_rest=False)
            return
        self._hub.add(topic, conn.id, write)
        conn.topics[room] = topic
        self._counters.joins += 1

    async def leave(self, conn: Connection, room: str) -> None:
        """Take `conn` out of `room`; nothing happens if it is not in it."""
        async with self._alone(conn, room):
            topic = conn.topics.pop(room, None)
            if topic is None:
                return
            await self.exit(conn, topic)
        if await self.runs_leave_hooks(conn, topic):
            await self._hooks.run(self._registry.on_room_leave, conn, room)

    async def runs_leave_hooks(self, conn: Connection, topic: Topic) -> bool:
        """Whether the leave hooks of `conn`, which has left `topic`, are to be run here: not where another node has."""
        return bool(self._registry.on_room_leave) and await self._topics.runs_leave_hooks(topic, conn.id)

    async def exit(self, conn: Connection, topic: Topic) -> None:
        """Undo what joining did, without hooks."""
        self._counters.leaves += 1
        await self._topics.exit(topic, conn.id, write_rest=conn.is_open)

    @asynccontextmanager
    async def _alone(self, conn: Connection, room: str) -> AsyncIterator[dict[str, asyncio.Event]]:
        """Joins and leaves of one connection and one room take turns: overlapping, one would undo half of the other."""
        while (other := self._changing.get(conn.id, {}).get(room)) is not None:
            await other.wait()
        changing = self._changing.setdefault(conn.id, {})
        done = changing[room] = asyncio.Event()
        try:
            yield changing
        finally:
            del changing[room]
            if not changing:
                del self._changing[conn.id]
            done.set()


async def _allows(guard: Guard, conn: Connection, values: Sequence[object]) -> bool:
    try:
        verdict = await guard.function(conn, *values)
    except Exception as error:
        refusal = as_event_error(error)
        if refusal is None or refusal is error:
            raise
        raise refusal from error
    if not isinstance(verdict, bool):
        raise TypeError(
            f"the room guard for {guard.pattern.source!r} must return True or False, not {type(verdict).__name__}"
        )
    return verdict
