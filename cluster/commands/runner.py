"""Runs commands: those of one turn of the event loop in one pipeline, each within its deadline, each at most once.

A *lane* is a queue of commands with one pipeline under way: one lane for each primary, so that a slow shard holds up
nobody else, and a second one for its reads, so that a long history holds up no publish. Within a lane commands reach
the server in the order they were given. What certainly was not carried out is tried again until its deadline; what
may have been is never sent twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from redis import exceptions as replied

from socketspec.cluster.commands.command import Argument, Command
from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.servers.backoff import Backoff
from socketspec.cluster.servers.shard import NotSentError
from socketspec.cluster.servers.topology import Topology
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.telemetry.counters import SECONDS, Histogram

__all__ = ("MAX_BATCH", "Runner")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

MAX_BATCH: Final = 512
"""Commands in one pipeline."""
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes of arguments at which a pipeline is sent though it has fewer commands."""
STOP_GRACE: Final = 1.0
"""Seconds that commands under way get when the runner stops."""
_EARLY_WAKE_RETRY: Final = 0.001

READS: Final = frozenset({"read", "XRANGE", "XREVRANGE", "HGETALL", "HKEYS", "HVALS", "HMGET", "SMEMBERS", "ZRANGE"})
"""Commands and scripts that only read and whose replies may be long."""

NOT_CARRIED_OUT: Final = (
    NotSentError,
    replied.AskError,  # and MovedError, which is one
    replied.BusyLoadingError,
    replied.ClusterDownError,  # and MasterDownError
    replied.ReadOnlyError,
    replied.TryAgainError,
)
"""Errors that pass when the servers have settled, and that say that nothing was done."""


class _LaneKey(NamedTuple):
    address: Address | None
    reads: bool


class _Waiting:
    """A command somebody waits for."""

    __slots__ = ("as_eval", "command", "deadline", "number", "problem", "reply", "sent")

    def __init__(self, command: Command, number: int, deadline: float, reply: asyncio.Future[Any]) -> None:
        self.command = command
        self.number = number
        self.deadline = deadline
        self.reply = reply
        self.as_eval = False
        self.sent = False
        self.problem = "the servers have not got round to it"
        """Why it was not carried out so far."""

    def words(self) -> list[Argument]:
        return self.command.as_eval() if self.as_eval else self.command.words()

    def not_sent(self, problem: str) -> None:
        self.sent = False
        self.problem = problem


class _Lane:
    __slots__ = ("backoff", "key", "queue", "task", "timer", "under_way")

    def __init__(self, key: _LaneKey) -> None:
        self.key = key
        self.queue: deque[_Waiting] = deque()
        self.under_way: Sequence[_Waiting] = ()
        self.backoff = Backoff()
        """Between tries of what was not carried out; begins anew with the next reply."""
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None


class Runner:
    """Sends commands to the servers of `topology`. Every method belongs to the event loop that called `start`."""

    def __init__(self, topology: Topology, options: RedisOptions, tasks: Tasks) -> None:
        self._topology = topology
        self._timeout = options.command_timeout
        self._max_pending = options.max_pending
        self._tasks = tasks
        self._lanes: dict[_LaneKey, _Lane] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # while commands are taken
        self._queued = 0
        self._number = 0
        self.sent: int = 0
        """Commands written to a server, tries included."""
        self.failed: int = 0
        """Commands that ended in a `BackendError`."""
        self.seconds: Histogram = Histogram(SECONDS)
        """How long each pipeline took, from sending it to its last reply."""
        self.last_error: str | None = None
        self.last_success: float | None = None
        """The loop's time of the newest reply; None before the first."""

    @property
    def pending(self) -> int:
        """Commands that wait to be sent."""
        return self._queued

    async def start(self) -> None:
        """Take commands from now on."""
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """Let what is under way end, for a second at most; what is not done then fails."""
        self._loop = None
        try:
            async with asyncio.timeout(STOP_GRACE):
                while running := self._running():
                    await asyncio.wait(running)
        except TimeoutError:
            running = self._running()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _running(self) -> list[asyncio.Task[None]]:
        return [lane.task for lane in self._lanes.values() if lane.task is not None]

    async def run(self, command: Command) -> Any:
        """The reply to `command`, within `command_timeout`.

        Raises `BackendError`, which says whether the command may have been carried out.
        """
        return await self._submit(command)

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order. Raises the first error, when all commands have ended."""
        replies: list[asyncio.Future[Any]] = []
        try:
            replies += map(self._submit, commands)
            if replies:
                await asyncio.wait(replies)
            return [reply.result() for reply in replies]
        finally:
            for reply in replies:
                if not reply.cancel() and not reply.cancelled():
                    reply.exception()  # seen: only the first one is raised

    def _submit(self, command: Command) -> asyncio.Future[Any]:
        loop = self._loop
        if loop is None:
            raise BackendError(f"{command.name} was not sent: the Redis backend is not started, or was stopped.")
        if self._queued >= self._max_pending:
            self._drop_abandoned()
        if self._queued >= self._max_pending:
            raise self._failure(
                f"{command.name} was not sent: {self._queued} commands wait for Redis already (max_pending)."
            )
        self._number += 1
        waiting = _Waiting(command, self._number, loop.time() + self._timeout, loop.create_future())
        self._put((waiting,))
        return waiting.reply

    def _put(self, commands: Iterable[_Waiting]) -> None:
        """Queue commands, those that were given earlier before those that were given later."""
        for waiting in commands:
            lane = self._lane_for(waiting.command)
            queue = lane.queue
            if queue and queue[-1].number > waiting.number:
                lane.queue = deque(sorted((*queue, waiting), key=lambda item: item.number))
            else:
                queue.append(waiting)
            self._queued += 1
            if lane.timer is None:
                self._watch(lane)

    def _lane_key(self, command: Command) -> _LaneKey:
        slot_key = command.slot_key
        address = None if slot_key is None else self._topology.address_for(slot_key)
        return _LaneKey(address, command.name in READS)

    def _lane_for(self, command: Command) -> _Lane:
        key = self._lane_key(command)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
            lane.task = self._tasks.spawn(self._drain(lane), name=f"redis commands to {key.address}")
        return lane

    async def _drain(self, lane: _Lane) -> None:
        try:
            await asyncio.sleep(0)  # the other commands of this turn of the loop go along
            while batch := self._take(lane):
                await self._send(lane, batch)
        finally:  # where this task was cancelled, somebody may still wait
            del self._lanes[lane.key]
            self._queued -= len(lane.queue)
            for waiting in (*lane.under_way, *lane.queue):
                self._fail(waiting, _ended(waiting, "the Redis backend was stopped before it was"))
            if lane.timer is not None:
                lane.timer.cancel()

    def _take(self, lane: _Lane) -> list[_Waiting]:
        """The next pipeline, without those whose callers were cancelled meanwhile."""
        batch: list[_Waiting] = []
        size = 0
        while lane.queue and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            waiting = lane.queue.popleft()
            self._queued -= 1
            if not waiting.reply.done():
                batch.append(waiting)
                size += sum(len(word) for word in waiting.command.args if isinstance(word, bytes | str))
        return batch

    async def _send(self, lane: _Lane, batch: Sequence[_Waiting]) -> None:
        lane.under_way = batch
        replies = await self._execute(batch)
        again: list[_Waiting] = []
        is_trouble = False
        for waiting, reply in zip(batch, replies, strict=True):
            if not isinstance(reply, Exception):
                if not waiting.reply.done():
                    waiting.reply.set_result(reply)
            elif isinstance(reply, replied.NoScriptError) and not waiting.as_eval:
                waiting.as_eval = True
                waiting.not_sent("its script was not loaded there")
                again.append(waiting)
            elif _is_not_carried_out(reply):
                waiting.not_sent(str(reply))
                again.append(waiting)
                is_trouble = True
            else:
                self._fail(waiting, _refusal(waiting.command, reply))
                is_trouble |= _is_lost(reply)
        self._count(lane, replies)
        if is_trouble:
            await self._recover(lane, again)
        lane.under_way = ()
        if again or is_trouble:
            self._reroute(lane, again)

    async def _execute(self, batch: Sequence[_Waiting]) -> Sequence[Any]:
        for waiting in batch:
            waiting.sent = True
        problem: Exception
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(batch[-1].deadline):
                return await self._topology.execute([waiting.words() for waiting in batch])
        except TimeoutError:
            problem = replied.TimeoutError("no answer in time")
        except (replied.RedisError, OSError) as error:
            problem = error
        finally:
            self.seconds.observe(asyncio.get_running_loop().time() - began)
        return [problem] * len(batch)

    def _count(self, lane: _Lane, replies: Sequence[Any]) -> None:
        self.sent += sum(not isinstance(reply, NotSentError) for reply in replies)
        if not all(isinstance(reply, Exception) for reply in replies):
            lane.backoff.reset()
            self.last_success = asyncio.get_running_loop().time()

    async def _recover(self, lane: _Lane, again: Sequence[_Waiting]) -> None:
        """Find the servers anew, and wait a moment where that leads to the same one again."""
        try:
            await self._topology.refresh()
        except BackendError as error:
            self.last_error = str(error)
            for waiting in again:
                waiting.problem = str(error)
            logger.debug("Finding the servers anew failed: %s", error)
        if any(self._lane_key(waiting.command) == lane.key for waiting in again):
            await asyncio.sleep(lane.backoff.next())

    def _reroute(self, lane: _Lane, again: list[_Waiting]) -> None:
        """Queue what is to be sent again before all that waits; some of it may belong to another primary now."""
        waiting = [*again, *lane.queue]
        self._queued -= len(lane.queue)
        lane.queue.clear()
        self._put(item for item in waiting if not item.reply.done())

    def _watch(self, lane: _Lane) -> None:
        """Fail whoever's time is up, and come back when the next one's is."""
        now = asyncio.get_running_loop().time()
        for waiting in lane.under_way:
            if waiting.deadline <= now:
                self._fail(waiting, _ended(waiting, f"{self._timeout:g} s were over before it was"))
        while lane.queue and lane.queue[0].deadline <= now:
            self._queued -= 1
            waiting = lane.queue.popleft()
            self._fail(waiting, _ended(waiting, f"{self._timeout:g} s were over before it was"))
        following = [
            waiting.deadline for waiting in (*lane.under_way, *islice(lane.queue, 1)) if waiting.deadline > now
        ]
        # A clock may fire a fraction early: without a pause that would spin.
        when = max(min(following, default=now + self._timeout), now + _EARLY_WAKE_RETRY)
        lane.timer = asyncio.get_running_loop().call_at(when, self._watch, lane)

    def _drop_abandoned(self) -> None:
        """Make room: nobody waits any more for commands whose callers were cancelled."""
        for lane in self._lanes.values():
            wanted = deque(waiting for waiting in lane.queue if not waiting.reply.done())
            self._queued -= len(lane.queue) - len(wanted)
            lane.queue = wanted

    def _fail(self, waiting: _Waiting, text: str) -> None:
        if not waiting.reply.done():
            waiting.reply.set_exception(self._failure(text))

    def _failure(self, text: str) -> BackendError:
        self.failed += 1
        self.last_error = text
        return BackendError(text)


def _is_not_carried_out(reply: Exception) -> bool:
    return isinstance(reply, NOT_CARRIED_OUT) or str(reply).startswith("BUSY ")


def _is_lost(reply: Exception) -> bool:
    """Whether the connection failed, and so maybe the server."""
    if isinstance(reply, replied.AuthenticationError | replied.AuthorizationError):
        return False
    return isinstance(reply, replied.ConnectionError | replied.TimeoutError | OSError)


def _ended(waiting: _Waiting, cause: str) -> str:
    name = waiting.command.name
    if waiting.sent:
        return f"{name} was sent to Redis, but {cause} answered: whether it was carried out is unknown."
    return f"{name} was not carried out: {cause} accepted, because {waiting.problem.rstrip('.')}."


def _refusal(command: Command, reply: Exception) -> str:
    """The sentence for an error that trying again does not help against."""
    if _is_lost(reply):
        return (
            f"{command.name} was sent to Redis, but its answer did not come ({reply}): "
            "whether it was carried out is unknown."
        )
    for kind, sentence in _REFUSALS:
        if isinstance(reply, kind):
            return f"{command.name} was refused: {sentence} ({reply})"
    return f"{command.name} was refused by Redis: {reply}"


_REFUSALS: Final = (
    (replied.OutOfMemoryError, "Redis has reached its maxmemory; raise it, or let it evict keys"),
    (replied.NoPermissionError, "the Redis user lacks a permission; grant it with ACL SETUSER"),
    (replied.AuthenticationError, "the connection is not logged in; check the user and the password"),
    (replied.NoScriptError, "Redis forgets scripts at once; does something call SCRIPT FLUSH all the time?"),
    (replied.ClusterCrossSlotError, "its keys are in different hash slots"),
)
