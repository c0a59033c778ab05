"""Leave hooks for members whose node died: they run here, on the one node that was told.

Hooks take a connection, so each gets one that stands for the lost one: closed, with its id and its user's.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from socketspec.concurrency.tasks import Tasks
from socketspec.connection.connection import Connection
from socketspec.connection.hooks import Hooks
from socketspec.connection.sender import Sender
from socketspec.connection.states import State
from socketspec.declaration.registry import Registry
from socketspec.identity import ANONYMOUS, Identity
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.messages import Message
from socketspec.protocol.publications import Member, Topic
from socketspec.session.clock import SessionClock
from socketspec.session.config import Session, SessionConfig

__all__ = ("LostMembers",)

logger: logging.Logger = logging.getLogger("socketspec")

WORKERS: Final = 8
"""Hooks for lost members that run at once."""


class _Gone:
    """The transport of a connection that is no more."""

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


def _is_closed(conn: Connection) -> None:
    """There is nothing to clean up after."""


class LostMembers:
    """Runs the hooks, a few at a time. What waits is bounded by what the dead node's rooms held."""

    def __init__(self, registry: Registry, hooks: Hooks, sender: Sender, tasks: Tasks, config: SessionConfig) -> None:
        self._registry = registry
        self._hooks = hooks
        self._sender = sender
        self._tasks = tasks
        self._config = config
        self._waiting: deque[tuple[str, Member]] = deque()
        self._workers = 0

    def take(self, topic: Topic, members: Sequence[Member]) -> None:
        """Run the leave hooks of `topic`, if it is a room, for `members`; returns at once."""
        logger.info("%d members of %s %r are gone with their node", len(members), topic.kind, topic.name)
        if topic.kind != "room" or not self._registry.on_room_leave:
            return
        self._waiting.extend((topic.name, member) for member in members)
        for _ in range(min(WORKERS - self._workers, len(members))):
            self._workers += 1
            self._tasks.spawn(self._work(), name="hooks for lost members")

    async def _work(self) -> None:
        try:
            while self._waiting:
                room, member = self._waiting.popleft()
                await self._hooks.run_final(self._registry.on_room_leave, self._stand_in(room, member), room)
        finally:
            self._workers -= 1

    def _stand_in(self, room: str, member: Member) -> Connection:
        conn = Connection(
            sender=self._sender,
            closing=_is_closed,
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
