"""The connections of an `AsyncPublisher`: each event loop has some from its first call until the loop ends."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from typing import Final

from socketspec.cluster.commands.runner import Runner
from socketspec.cluster.options import RedisOptions, Servers
from socketspec.cluster.publishers.blocking_link import CHECK_EVERY, SIGN_OF_LIFE
from socketspec.cluster.publishers.turns import Turns
from socketspec.cluster.servers.shard import ReplicaError
from socketspec.cluster.servers.topology import make_topology
from socketspec.concurrency.loop_end import LoopEnd
from socketspec.concurrency.tasks import SeparateTasks
from socketspec.errors import BackendError

__all__ = ("MAX_LOOPS", "Lives")

MAX_LOOPS: Final = 64
"""Event loops of one process that have connections at the same time; one more waits for its turn."""
CONNECTING: Final = 0.8
"""The part of a call's time that one connection may take."""


class Lives:
    """A life for each event loop of this process. Safe in threads, and after a fork.

    A threaded WSGI server, for one, runs each request of an async view in an event loop of its own.
    """

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        self._servers = servers
        self._options = options
        self._of_parents: list[object] = []
        """Lives of the processes that we were forked from. Never dropped: with its last reference a connection would
        be taken off its event loop, whose selector the parent still uses."""
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._places = Turns(MAX_LOOPS)
        self._lives: dict[asyncio.AbstractEventLoop, _Life] = {}

    async def runner(self) -> Runner:
        """The runner of this event loop, started by whoever comes first. Raises `BackendError`."""
        if self._pid != os.getpid():
            self._of_parents.append(self._lives)
            self._start_anew()  # the lock may have been held at the fork, and the connections are the parent's
        loop = asyncio.get_running_loop()
        life = self._lives.get(loop)
        if life is None or life.is_over:
            with self._lock:
                life = self._lives[loop] = _Life(self._servers, self._options, loop, self._places)
        if not life.is_started:
            self._forget_ended()
        return await life.started()

    def _forget_ended(self) -> None:
        """Drop the lives of event loops that are closed. Most have ended by themselves, with their loop."""
        with self._lock:
            ended = [life for loop, life in self._lives.items() if life.is_over or loop.is_closed()]
            for life in ended:
                del self._lives[life.loop]
        for life in ended:
            life.give_place_back()

    async def close(self) -> None:
        """Close all connections: those of this event loop now, those of others as soon as they get to it."""
        if self._pid != os.getpid():
            return
        with self._lock:
            lives = list(self._lives.values())
            self._lives.clear()
        for life in lives:
            if life.loop is asyncio.get_running_loop():
                await life.end()
            else:
                life.end_soon()


class _Life:
    """The connections in one event loop."""

    def __init__(self, servers: Servers, options: RedisOptions, loop: asyncio.AbstractEventLoop, places: Turns) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.is_over: bool = False
        self._places = places
        self._has_place = False
        self._waits_for_place = False
        self._tasks = SeparateTasks()
        # A call may take `command_timeout`, and the first one connects.
        self._timeout = options.command_timeout
        options = replace(
            options,
            start_timeout=min(options.start_timeout, self._timeout),
            # Ends before the call does, so that the call can say what it has met, and to whom.
            connect_timeout=min(options.connect_timeout, CONNECTING * self._timeout),
        )
        self._topology = make_topology(servers, options, needs_all=False)
        self._runner = Runner(self._topology, options, self._tasks)
        self._starting = asyncio.Lock()
        self._ending: LoopEnd | None = None
        self._has_roles = servers.mode != "cluster"  # the replicas of a cluster answer where the primary is
        self._check_at = 0.0

    @property
    def is_started(self) -> bool:
        """Whether it has connections."""
        return self._ending is not None

    async def started(self) -> Runner:
        """The runner, started by whoever comes first."""
        if self._ending is not None:
            if self._has_roles and self.loop.time() >= self._check_at:
                await self._check_role()
            return self._runner
        try:
            async with asyncio.timeout(self._timeout), self._starting:
                if self._ending is None:
                    await self._start()
        except TimeoutError:
            if self._waits_for_place:
                raise BackendError(
                    f"{MAX_LOOPS} event loops of this process use this publisher, and none of them ended within "
                    f"{self._timeout:g} s."
                ) from None
            why = f" {self._topology.trouble}" if self._topology.trouble else ""
            raise BackendError(f"Redis could not be reached within {self._timeout:g} s.{why}") from None
        return self._runner

    async def _start(self) -> None:
        self._waits_for_place = True
        await self._places.take_in_loop()
        self._waits_for_place, self._has_place = False, True
        try:
            await self._topology.start()
            await self._runner.start()
        except BaseException:
            await self._topology.stop()
            self.give_place_back()
            raise
        self._check_at = self.loop.time() + CHECK_EVERY
        self._ending = LoopEnd(self._close)
        await self._ending.watch()

    async def _close(self) -> None:
        self.is_over = True
        await self._runner.stop()
        await self._tasks.close(1.0)
        await self._topology.stop()
        self.give_place_back()

    async def _check_role(self) -> None:
        """Raise `ReplicaError` where the server is no primary any more. Calls that come meanwhile wait."""
        async with self._starting:
            if self.loop.time() < self._check_at:
                return
            try:
                async with asyncio.timeout(min(SIGN_OF_LIFE, CONNECTING * self._timeout)):
                    await self._topology.refresh(routine=True)
            except ReplicaError:
                raise
            except (BackendError, TimeoutError):
                pass  # the command that follows meets the same trouble, and says so
            self._check_at = self.loop.time() + CHECK_EVERY

    async def end(self) -> None:
        """Close the connections now."""
        self.is_over = True
        if self._ending is not None:
            await self._ending.now()

    def end_soon(self) -> None:
        """Close them as soon as their event loop, which is another one, gets to it."""
        try:
            self.loop.call_soon_threadsafe(lambda: self._tasks.spawn(self.end(), name="closing a publisher"))
        except RuntimeError:  # it is closed
            self.give_place_back()

    def give_place_back(self) -> None:
        """Let another event loop have connections."""
        if self._has_place:
            self._has_place = False
            self._places.give_back()
