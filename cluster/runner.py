"""Runs commands: batches them, times them, and says truly what became of each.

Commands for one server that are issued in the same turn of the event loop share a pipeline; while one is under way the
next gathers. So the load makes the batches, and the publishes of one node keep their order. A command is sent a second
time only where the first was certainly not carried out.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from socketspec.cluster.commands import Command
from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.topology import FateUnknownError, NotSentError, Topology
from socketspec.errors import BackendError, ConfigurationError
from socketspec.tasks import Tasks

__all__ = ("Runner",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

BATCH: Final = 512
"""Commands in one pipeline."""
FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 1.0
"""Seconds between tries, doubled each time, give or take a quarter."""

_NOT_CARRIED_OUT: Final = (MovedError, ReadOnlyError, BusyLoadingError, ClusterDownError, TryAgainError)
"""What a server answers that did nothing, and that may be otherwise in a moment or elsewhere."""


class _Pending:
    """One command on its way."""

    __slots__ = ("command", "deadline", "done", "with_source")

    def __init__(self, command: Command, deadline: float, done: asyncio.Future[Any]) -> None:
        self.command = command
        self.deadline = deadline
        self.done = done
        self.with_source = False
        """Whether the server does not know the script, and gets its text."""


class _Lane:
    """The commands for one server: one pipeline under way, the others waiting in order."""

    __slots__ = ("is_running", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Pending] = deque()
        self.is_running = False


class Runner:
    """Runs commands on the servers of a topology."""

    def __init__(self, topology: Topology, options: RedisOptions, tasks: Tasks) -> None:
        self._topology = topology
        self._options = options
        self._tasks = tasks
        self._lanes: dict[Address | None, _Lane] = {}
        self._pending = 0
        self._refreshing: asyncio.Task[None] | None = None
        self._stopped = False
        self.sent: int = 0
        """Commands sent so far."""
        self.failed: int = 0
        """Commands that ended with an error."""

    async def start(self) -> None:
        """Connect: tries for `start_timeout` seconds, and logs each failure. Raises `BackendError`."""
        deadline = time.monotonic() + self._options.start_timeout
        wait = FIRST_WAIT * 4
        while True:
            try:
                await self._topology.start()
            except NotSentError as error:
                if time.monotonic() + wait >= deadline:
                    raise BackendError(f"Redis is out of reach: {error}") from error
                logger.warning("Redis is out of reach, next try in %.1f s: %s", wait, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, 4 * LONGEST_WAIT)
            else:
                return

    async def stop(self) -> None:
        """Refuse what comes, and end what waits with `BackendError`."""
        self._stopped = True
        for lane in self._lanes.values():
            while lane.waiting:
                self._end(lane.waiting.popleft(), BackendError("The Redis backend was stopped before this was sent."))

    async def run(self, command: Command) -> Any:
        """The reply. Raises `BackendError`, which says whether the command may have been carried out."""
        return await self._enqueue(command)

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order, of commands that are sent together. Raises the first `BackendError`."""
        futures = [self._enqueue(command) for command in commands]
        replies = await asyncio.gather(*futures, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return replies

    def _enqueue(self, command: Command) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        if self._stopped or self._pending >= self._options.max_pending:
            problem = "is stopped" if self._stopped else f"has {self._pending} commands waiting, the most it may have"
            self.failed += 1
            done.set_exception(BackendError(f"Not sent: the Redis backend {problem}."))
            return done
        self._pending += 1
        self._push(_Pending(command, loop.time() + self._options.command_timeout, done))
        return done

    def _push(self, item: _Pending) -> None:
        address = self._topology.address_for(item.command.slot_key)
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = _Lane()
        lane.waiting.append(item)
        if not lane.is_running:
            lane.is_running = True
            self._tasks.spawn(self._serve(address, lane), name=f"commands for {address}")

    def _end(self, item: _Pending, outcome: Any) -> None:
        self._pending -= 1
        if isinstance(outcome, Exception):
            self.failed += 1
            if not item.done.done():
                item.done.set_exception(outcome)
                item.done.exception()  # seen here: its caller may have been cancelled in this very turn
        elif not item.done.done():
            item.done.set_result(outcome)

    async def _serve(self, address: Address | None, lane: _Lane) -> None:
        """Send what waits in one lane until nothing does."""
        wait = FIRST_WAIT
        try:
            while lane.waiting:
                again, problem = await self._send_batch(address, self._take(lane))
                if not again:
                    wait = FIRST_WAIT
                    continue
                if await self._wait_a_little(again, wait, problem):
                    wait = min(2 * wait, LONGEST_WAIT)
                moved = self._put_back(address, lane, again)
                if moved and not lane.waiting:
                    break
        finally:
            lane.is_running = False
            if lane.waiting and not self._stopped:  # cancelled: what waits is not left alone
                while lane.waiting:
                    self._end(lane.waiting.popleft(), BackendError("The Redis backend was stopped."))
            elif self._lanes.get(address) is lane:
                del self._lanes[address]

    def _take(self, lane: _Lane) -> list[_Pending]:
        """The next batch, without those whose time is over or whose caller is gone."""
        batch: list[_Pending] = []
        now = asyncio.get_running_loop().time()
        while lane.waiting and len(batch) < BATCH:
            item = lane.waiting.popleft()
            if item.done.cancelled():
                self._pending -= 1
            elif item.deadline <= now:
                self._end(item, self._late("it was not sent"))
            else:
                batch.append(item)
        return batch

    def _late(self, what: str) -> BackendError:
        return BackendError(f"Redis did not answer within {self._options.command_timeout:g} s: {what}.")

    async def _send_batch(self, address: Address | None, batch: list[_Pending]) -> tuple[list[_Pending], str]:
        """Send one batch; those to send again, and why."""
        if not batch:
            return [], ""
        if address is None:
            return batch, "no server is known for this key"
        words = [item.command.as_eval() if item.with_source else item.command.words() for item in batch]
        try:
            async with asyncio.timeout_at(batch[0].deadline):
                replies = await self._topology.execute(address, words)
        except NotSentError as error:
            return batch, str(error)
        except TimeoutError:
            for item in batch:
                self._end(item, self._late("it may have been carried out, or will be"))
            self._tasks.spawn(self._refresh(), name="look for the servers again")
            return [], ""
        except BaseException:
            for item in batch:
                self._end(item, BackendError("The Redis backend was stopped; the command may have been carried out."))
            raise
        return self._settle(batch, replies)

    def _settle(self, batch: list[_Pending], replies: Sequence[Any]) -> tuple[list[_Pending], str]:
        """End what was answered; those to send again, and why."""
        self.sent += len(batch)
        again: list[_Pending] = []
        problem = ""
        for item, reply in zip(batch, replies, strict=True):
            if isinstance(reply, NoScriptError) and not item.with_source:
                item.with_source = True
                again.append(item)
            elif isinstance(reply, _NOT_CARRIED_OUT):
                again.append(item)
                problem = str(reply)
            else:
                self._end(item, _outcome(reply, item.command))
        return again, problem

    async def _wait_a_little(self, again: list[_Pending], wait: float, problem: str) -> bool:
        """Look for the servers again and wait, if something is wrong with them."""
        if not problem:
            return False
        now = asyncio.get_running_loop().time()
        longest = max(min(item.deadline for item in again) - now, 0.0)
        await asyncio.sleep(min(wait * random.uniform(0.75, 1.25), longest))  # noqa: S311 - spreads load, hides nothing
        await self._refresh()
        now = asyncio.get_running_loop().time()
        for item in again:
            if item.deadline <= now:
                self._end(item, BackendError(f"Not carried out within {self._options.command_timeout:g} s: {problem}"))
        return True

    def _put_back(self, address: Address | None, lane: _Lane, again: list[_Pending]) -> bool:
        """Put commands back in front of their lane, or into another where their key has moved there."""
        moved = False
        for item in reversed(again):
            if item.done.done():
                continue
            if self._topology.address_for(item.command.slot_key) == address:
                lane.waiting.appendleft(item)
        for item in again:
            if not item.done.done() and self._topology.address_for(item.command.slot_key) != address:
                moved = True
                self._push(item)
        if moved:  # those behind them may have moved as well
            waiting, lane.waiting = lane.waiting, deque()
            for item in waiting:
                if self._topology.address_for(item.command.slot_key) == address:
                    lane.waiting.append(item)
                else:
                    self._push(item)
        return moved

    async def _refresh(self) -> None:
        """Discover the servers anew; several callers share one discovery."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._tasks.spawn(self._discover(), name="look for the servers")
        await asyncio.wait({self._refreshing})

    async def _discover(self) -> None:
        try:
            async with asyncio.timeout(self._options.command_timeout):
                await self._topology.refresh()
        except (BackendError, ConfigurationError) as error:
            logger.warning("Looking for the servers failed: %s", error)
        except TimeoutError:
            logger.warning("Looking for the servers took longer than %g s", self._options.command_timeout)


def _outcome(reply: Any, command: Command) -> Any:
    """What a caller gets for a reply: errors as `BackendError` with a sentence."""
    if isinstance(reply, FateUnknownError):
        return BackendError(f"{reply}; {command.name} may have been carried out.")
    if isinstance(reply, OutOfMemoryError):
        return BackendError(f"Redis is full (maxmemory): {command.name} was refused. {reply}")
    if isinstance(reply, ResponseError) and "OOM" in str(reply):
        return BackendError(f"Redis is full (maxmemory): {command.name} was refused. {reply}")
    if isinstance(reply, Exception):
        return BackendError(f"Redis refused {command.name}: {reply}")
    return reply
