"""Runs the leave hooks for members whose node died: on one node, the one that the backend told.

The backend is told when they are through. Where this node stops before that, another one runs them.

Hooks take a connection, so each gets one that stands in for the lost one: closed, with the same id and user.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from socketspec.concurrency.tasks import Tasks
from socketspec.connection.connection import Connection
from socketspec.connection.hooks import Hooks
from socketspec.connection.sender import Sender
from socketspec.connection.states import State
from socketspec.declaration.registry import Registry
from socketspec.identity import ANONYMOUS, Identity
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.publications import Member, Topic
from socketspec.session.clock import SessionClock
from socketspec.session.config import Session, SessionConfig
from socketspec.text import get_logger

__all__ = ("LeaveHooks",)

logger: logging.Logger = get_logger("socketspec")

WORKERS: Final = 8
"""Hooks for lost members that run at once."""


class _Gone:
    """The transport of a connection that does not exist any more."""

    can_ping: bool = False
    buffered: int = 0

    def __init__(self) -> None:
        self.on_slow: Callable[[], None] = self.abort

    def write(self, *messages: Message) -> None:
        return

    async def drain(self) -> None:
        return

    def ping(self) -> None:
        return

    def close(self, code: int, reason: str) -> None:
        return

    def abort(self) -> None:
        return


def _nothing_to_clean_up(conn: Connection) -> None:
    """Called where such a connection is closed by a hook."""


class _Round:
    """Members that were lost together. It is over when the hooks of the last one are through."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def one_is_through(self) -> None:
        self._left -= 1
        if not self._left and not self.is_over.done():
            self.is_over.set_result(None)


class LeaveHooks:
    """Runs the leave hooks of lost members, a few at a time. No more wait than the dead node had members."""

    def __init__(self, registry: Registry, hooks: Hooks, sender: Sender, tasks: Tasks, config: SessionConfig) -> None:
        self._registry = registry
        self._hooks = hooks
        self._sender = sender
        self._tasks = tasks
        self._config = config
        self._waiting: deque[tuple[str, Member, _Round]] = deque()
        self._workers = 0

    def take(self, topic: Topic, members: Sequence[Member]) -> Awaitable[None] | None:
        """Run the leave hooks of `topic`, if it is a room, for `members`; what to await until they are through."""
        logger.info("%d members of %s %r are gone with their node", len(members), topic.kind, topic.name)
        if topic.kind != "room" or not members or not self._registry.on_room_leave:
            return None
        taken = _Round(len(members))
        self._waiting.extend((topic.name, member, taken) for member in members)
        for _ in range(min(WORKERS - self._workers, len(members))):
            self._workers += 1
            self._tasks.spawn(self._work(), name="hooks for lost members")
        return taken.is_over

    async def _work(self) -> None:
        try:
            while self._waiting:
                room, member, taken = self._waiting.popleft()
                stand_in = self._stand_in(room, member)
                await self._hooks.run_final(self._registry.on_room_leave, stand_in, room)
                await self._hooks.release(stand_in)
                taken.one_is_through()
        finally:
            self._workers -= 1

    def _stand_in(self, room: str, member: Member) -> Connection:
        conn = Connection(
            sender=self._sender,
            closing=_nothing_to_clean_up,
            transport=_Gone(),
            handshake=Handshake(),
            format=Format.PLAIN,
            session=Session(config=self._config, started_at=member.joined_at),
            clock=SessionClock(self._config, now=self._sender.now()),
            identity=ANONYMOUS if member.user_id is None else Identity(user_id=member.user_id),
            state=State.CLOSED,
            id=member.connection_id,
        )
        conn.connected_at = member.joined_at
        conn.departed = frozenset({room})
        conn.close_reason = "node_lost"
        return conn
