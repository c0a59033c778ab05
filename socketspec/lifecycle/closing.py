"""Cleans up after a connection: from its end, whoever caused that, to the last hook."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from socketspec.concurrency.tasks import Tasks
from socketspec.concurrency.timing_wheel import TimingWheel
from socketspec.connection.connection import Connection
from socketspec.connection.hooks import Hooks
from socketspec.connection.states import State
from socketspec.declaration.registry import Registry
from socketspec.errors import BackendError
from socketspec.fanout.hub import Hub
from socketspec.membership.directory import Directory
from socketspec.membership.rooms import RoomMembership
from socketspec.membership.users import UserMembership
from socketspec.protocol.publications import Topic
from socketspec.telemetry.context import Requests, current_request
from socketspec.telemetry.counters import Counters
from socketspec.text import get_logger

__all__ = ("Closing",)

logger: logging.Logger = get_logger("socketspec")

LEAVE_TIMEOUT: Final = 1.5
"""Seconds that hooks wait for a connection to leave all its rooms. Leaving goes on behind them."""
GIVE_UP: Final = 10.0
"""Seconds that leaving one room may take."""

CLIENT_REASONS: Final = {
    1000: "client_closed",
    1001: "client_going_away",
    1005: "connection_lost",
    1006: "connection_lost",
    1009: "message_too_big",
    1012: "server_shutdown",
}
"""The reason that hooks are given, by close code, when the client or the network has ended a connection."""


class Closing:
    """Cleans up after connections, each once."""

    def __init__(
        self,
        everybody: Topic,
        directory: Directory,
        wheel: TimingWheel[Connection],
        hub: Hub,
        rooms: RoomMembership,
        users: UserMembership,
        hooks: Hooks,
        registry: Registry,
        counters: Counters,
        requests: Requests,
        tasks: Tasks,
    ) -> None:
        self._everybody = everybody
        self._directory = directory
        self._wheel = wheel
        self._hub = hub
        self._rooms = rooms
        self._users = users
        self._hooks = hooks
        self._registry = registry
        self._counters = counters
        self._requests = requests
        self._tasks = tasks
        self._under_way: dict[Connection, asyncio.Task[None]] = {}

    def by_server(self, conn: Connection) -> None:
        """Begin to clean up after a connection that this node closes: `Connection.close` calls this."""
        self._counters.count_closing(conn.close_reason)
        self._begin(conn)

    def lost(self, conn: Connection, code: int) -> None:
        """The transport is gone: begin to clean up, unless that has begun."""
        if conn.state is not State.CLOSED:
            if conn.state is not State.CLOSING:
                conn.close_reason = CLIENT_REASONS.get(code, f"client:{code}")
            conn.move(State.CLOSED)
        self._begin(conn)

    async def closed(self, conn: Connection, code: int) -> None:
        """As `lost`, and wait until the connection has been cleaned up after. Who stops waiting does not stop that."""
        self.lost(conn, code)
        task = self._under_way.get(conn)
        if task is not None:
            await asyncio.shield(task)

    def _begin(self, conn: Connection) -> None:
        if conn in self._under_way or conn.departed is not None:
            return
        task = self._tasks.spawn(self._clean_up(conn), name=f"clean-up of {conn.id}")
        if not task.done():
            self._under_way[conn] = task  # until its last line

    async def _clean_up(self, conn: Connection) -> None:
        # For log records of this task, which an event of another connection may have started. Ends with the task.
        current_request.set((conn.id, self._requests, None, 0))
        self._wheel.cancel(conn)
        self._hub.remove(self._everybody, conn.id, write_rest=conn.is_open)
        self._directory.drop_subjects(conn)
        conn.departed = conn.rooms
        topics, conn.topics = conn.topics, {}
        try:
            leaving: list[Coroutine[Any, Any, None]] = []
            if conn.user_topic is not None:
                leaving.append(self._leave(conn, "its user", self._users.leave(conn)))
            leaving += [
                self._leave(conn, f"room {topic.name!r}", self._rooms.exit(conn, topic)) for topic in topics.values()
            ]
            if leaving:
                started = [self._tasks.spawn(one, name=f"leaving of {conn.id}") for one in leaving]
                await asyncio.wait(started, timeout=LEAVE_TIMEOUT)
            for room, topic in topics.items():
                if await self._rooms.runs_leave_hooks(conn, topic):
                    await self._hooks.run_final(self._registry.on_room_leave, conn, room)
            if conn.welcomed:
                await self._hooks.run_final(self._registry.on_disconnect, conn, conn.close_reason)
        finally:
            try:
                if conn.resources is not None:
                    await self._hooks.release(conn)
            finally:
                self._directory.remove(conn)
                self._under_way.pop(conn, None)
                self._counters.count_closed(conn.close_reason)

    async def _leave(self, conn: Connection, what: str, leaving: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(GIVE_UP):
                await leaving
        except (BackendError, TimeoutError) as error:
            logger.error("Leaving %s failed for connection %s: %r", what, conn.id, error)
        except Exception:
            logger.exception("Leaving %s failed for connection %s", what, conn.id)
