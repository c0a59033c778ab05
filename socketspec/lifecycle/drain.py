"""How a node lets its connections go: announced, spread over a window, never while one of its handlers runs.

    not ready -> ``__server_shutdown__`` to everybody -> connections leave evenly, each once its handlers are through
    -> whoever is left after the grace is closed all the same

Until its turn comes, a connection works as ever: what it sends is handled, and what is published reaches it. From then
on nothing that it sends is handled: otherwise a client that always has a handler under way would never leave.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from socketspec.concurrency.tasks import Tasks
from socketspec.connection.connection import Connection
from socketspec.errors import CloseCode
from socketspec.membership.directory import Directory
from socketspec.protocol.encoding import Message, encode_payload
from socketspec.text import get_logger

__all__ = ("LEAST_A_SECOND", "Drain")

logger: logging.Logger = get_logger("socketspec")

TICK: Final = 0.05
"""Seconds between two groups of connections that leave."""
LEAST_A_SECOND: Final = 20
"""Connections that leave in a second at least, so that a node with few of them does not take the whole window."""
JITTER: Final = 0.5
"""Seconds over which clients that connect again are spread, counted from when each one leaves."""
JITTER_AT_ONCE: Final = 5.0
"""The same when all leave at once (``window=0``)."""
GOODBYES_A_TURN: Final = 500
"""Connections that are told before the event loop gets a turn."""


class Drain:
    """The drain of one engine. It begins once, however often it is asked for."""

    def __init__(self, directory: Directory, tasks: Tasks, now: Callable[[], float]) -> None:
        self._directory = directory
        self._tasks = tasks
        self._now = now
        self.stopping: bool = False
        """Whether it has begun: nobody is let in any more."""
        self._task: asyncio.Task[int] | None = None
        self.deadline: float = 0.0
        """Until when handlers may finish, on the event loop's clock. Final once the drain is done."""

    def begin(self, window: float, grace: float) -> asyncio.Task[int]:
        """Begin; the task's result is how many connections there were. Later calls give the same task."""
        if self._task is None:
            self.stopping = True
            self._task = self._tasks.spawn(self._run(window, grace), name="drain")
        return self._task

    async def _run(self, window: float, grace: float) -> int:
        connections = list(self._directory.connections.values())
        self.deadline = self._now() + grace
        if not connections:
            return 0
        random.shuffle(connections)
        span = min(window, len(connections) / LEAST_A_SECOND)
        logger.info("Draining: %d connections leave within %.1f s", len(connections), span)
        began = self._now()
        await self._say_goodbye(connections, span)
        await self._let_go(connections, began, span)
        self.deadline = self._now() + grace
        await self._until_empty(grace)
        for conn in list(self._directory.connections.values()):
            conn.close(CloseCode.SERVICE_RESTART)
        return len(connections)

    async def _say_goodbye(self, connections: list[Connection], span: float) -> None:
        """Tell each client when to connect again: after its turn to leave, so that reconnects are spread as well."""
        for number, conn in enumerate(connections):
            turn = (number + 1) / len(connections) * span
            delay = turn + random.uniform(0.1, JITTER if span else JITTER_AT_ONCE)  # noqa: S311 - spreads load, hides nothing
            conn.send(Message("__server_shutdown__", encode_payload({"reconnect_in": round(delay, 3)})))
            if number % GOODBYES_A_TURN == GOODBYES_A_TURN - 1:
                await asyncio.sleep(0)

    async def _let_go(self, connections: list[Connection], began: float, span: float) -> None:
        """Have them leave one after the other, evenly over `span` seconds; ends early if all are gone before."""
        gone = 0
        while gone < len(connections) and self._directory.connections:
            passed = self._now() - began
            due = len(connections) if passed >= span else int(len(connections) * passed / span)
            for conn in connections[gone:due]:
                conn.leave()
            gone = max(gone, due)
            if gone < len(connections):
                await self._until_empty(TICK)

    async def _until_empty(self, seconds: float) -> None:
        """Wait until the last connection has left and was cleaned up after, `seconds` at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._directory.emptied.wait()
        except TimeoutError:
            pass
