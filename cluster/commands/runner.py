"""Runs commands: those of one turn of the event loop in one pipeline, each within its deadline, each at most once.

Each primary has two queues, one for its reads and one for everything else, and each queue has one pipeline under way.
So a slow shard holds up no other, and a long history holds up no publish. The commands of a queue reach the server in
the order they were given. A command that was certainly not carried out is tried again until its deadline; one that may
have been carried out is never sent twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from redis import exceptions as replied

from socketspec.cluster.commands.calls import Call, Queue, QueueKey, answer, are_sent, size_of
from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.failures import (
    READS,
    is_connection_lost,
    is_not_carried_out,
    is_of_another_type,
    refusal,
)
from socketspec.cluster.commands.publishing import still_to_send, with_nodes
from socketspec.cluster.options import RedisOptions
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
_SAME: Final = 0.05
"""Seconds by which a command may end later than its caller's deadline."""

_PASS_OVER: Final = READS | {"GET", "HDEL"}


class Runner:
    """Sends commands to the servers of `topology`. Every method belongs to the event loop that called `start`."""

    def __init__(self, topology: Topology, options: RedisOptions, tasks: Tasks) -> None:
        self._topology = topology
        self._timeout = options.command_timeout
        self._max_pending = options.max_pending
        self._tasks = tasks
        self._queues: dict[QueueKey, Queue] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # while commands are taken
        self._max_pending_bytes = options.max_pending_bytes
        self._pending = 0
        """Commands that wait to be sent, in all queues."""
        self.pending_bytes: int = 0
        """Bytes of their keys and arguments."""
        self._number = 0
        self.failed: int = 0
        """Commands that ended in a `BackendError`."""
        self.seconds: Histogram = Histogram(SECONDS)
        """How long each pipeline took, from sending it to its last reply."""

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
        for queue in self._queues.values():
            if queue.timer is not None:
                queue.timer.cancel()
        self._queues.clear()

    def _running(self) -> list[asyncio.Task[None]]:
        return [queue.task for queue in self._queues.values() if queue.task is not None]

    async def run(self, command: Command, deadline: float | None = None) -> Any:
        """The reply to `command`, within `command_timeout`, and by `deadline` of the event loop's clock.

        Raises `BackendError`, which says whether the command may have been carried out.
        """
        return await self._submit(command, deadline)

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order. Raises the first error, when all commands have ended."""
        outcomes = await self.outcomes(commands)
        for outcome in outcomes:
            if isinstance(outcome, BackendError):
                raise outcome
        return outcomes

    async def outcomes(self, commands: Sequence[Command], deadline: float | None = None) -> list[Any]:
        """What became of each command, in order: its reply, or a `BackendError`; an `UnsureError` where nobody knows.

        Raises `BackendError` where none of them was sent. `deadline`: as in `run`.
        """
        replies: list[asyncio.Future[Any]] = []
        try:
            replies += [self._submit(command, deadline) for command in commands]
            if replies:
                await asyncio.wait(replies)
            return [reply.exception() or reply.result() for reply in replies]
        finally:
            for reply in replies:
                if not reply.cancel() and not reply.cancelled():
                    reply.exception()  # asyncio would log the errors that are not raised here

    def _submit(self, command: Command, deadline: float | None = None) -> asyncio.Future[Any]:
        loop = self._loop
        if loop is None:
            raise BackendError(f"{command.name} was not sent: the Redis backend is not started, or was stopped.")
        size = size_of(command)
        if self._exceeded(size):
            self._drop_cancelled()
        if limit := self._exceeded(size):
            waiting = f"{self._pending} commands of {self.pending_bytes:,} bytes"
            self.failed += 1
            raise BackendError(f"{command.name} was not sent: {waiting} wait for Redis already ({limit}).")
        self._number += 1
        call = Call(command, self._number, loop.time() + self._timeout, loop.create_future(), size)
        self._put((call,))
        if deadline is not None and deadline < call.deadline - _SAME:
            self._end_early(call, deadline)
        return call.reply

    def _end_early(self, call: Call, deadline: float) -> None:
        """Fail the call at `deadline`. A queue's own clock counts on calls that end in the order in which they came."""

        def end() -> None:
            address = self._queue_key(call.command).address
            self._fail(call, call.unanswered(f"{self._timeout:g} s were over before it was", address))

        timer = asyncio.get_running_loop().call_at(deadline, end)
        call.reply.add_done_callback(lambda _: timer.cancel())

    def _exceeded(self, size: int) -> str:
        """The limit that one more command of this size exceeds; empty for none."""
        if self._pending >= self._max_pending:
            return "max_pending"
        return "max_pending_bytes" if 0 < self.pending_bytes > self._max_pending_bytes - size else ""

    def _no_longer_wait(self, calls: Iterable[Call]) -> None:
        for call in calls:
            self._pending -= 1
            self.pending_bytes -= call.size

    def _put(self, calls: Iterable[Call]) -> None:
        """Queue calls, those that were made earlier before those that were made later."""
        for call in calls:
            queue = self._queue_for(call.command)
            waiting = queue.calls
            if waiting and waiting[-1].number > call.number:
                queue.calls = deque(sorted((*waiting, call), key=lambda item: item.number))
            else:
                waiting.append(call)
            self._pending += 1
            self.pending_bytes += call.size
            if call.deadline < queue.next_look:
                self._look_at(queue, call.deadline)

    def _queue_key(self, command: Command) -> QueueKey:
        slot_key = command.slot_key
        address = None if slot_key is None else self._topology.address_for(slot_key)
        return QueueKey(address, command.name in READS)

    def _queue_for(self, command: Command) -> Queue:
        key = self._queue_key(command)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = Queue(key)
        if queue.task is None:
            queue.task = self._tasks.spawn(self._send_all(queue), name=queue.name)
        return queue

    async def _send_all(self, queue: Queue) -> None:
        try:
            await asyncio.sleep(0)  # the other commands of this turn of the loop go along
            while batch := self._take(queue):
                await self._send(queue, batch)
        finally:  # where this task was cancelled, somebody may still wait
            queue.task = None
            queue.backoff.reset()
            self._no_longer_wait(queue.calls)
            for call in (*queue.under_way, *queue.calls):
                self._fail(call, call.unanswered("the Redis backend was stopped before it was", queue.key.address))
            queue.under_way = ()
            queue.calls.clear()

    def _take(self, queue: Queue) -> list[Call]:
        """The next pipeline, without those whose callers were cancelled meanwhile."""
        batch: list[Call] = []
        size = 0
        while queue.calls and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            call = queue.calls.popleft()
            self._no_longer_wait((call,))
            if not call.reply.done():
                batch.append(call)
                size += call.size
        return batch

    async def _send(self, queue: Queue, batch: Sequence[Call]) -> None:
        queue.under_way = batch
        replies = await self._execute(batch)
        again: list[Call] = []
        asked: list[tuple[Call, replied.AskError]] = []
        is_trouble = False
        for call, reply in zip(batch, replies, strict=True):
            if not isinstance(reply, Exception):
                answer(call, reply)
            elif type(reply) is replied.AskError:
                asked.append((call, reply))
            else:
                is_trouble |= self._refused(call, reply, again)
        if asked:
            refused = await self._ask(asked)
            again = sorted((*again, *refused), key=lambda call: call.number)
            is_trouble |= bool(refused)
        if not all(isinstance(reply, Exception) for reply in replies):
            queue.backoff.reset()
        if is_trouble:
            await self._find_servers(queue, again)
        queue.under_way = ()
        if again or is_trouble:
            self._put_back(queue, again)

    def _refused(self, call: Call, reply: Exception, again: list[Call]) -> bool:
        """Fail the call, or put it `again`; whether the servers are in trouble."""
        if isinstance(reply, replied.NoScriptError) and not call.as_eval:
            call.as_eval, call.is_sent = True, False
            call.was_not_sent("its script was not loaded there")
            again.append(call)
            return False
        if is_not_carried_out(reply):
            call.was_not_sent(str(reply))
            again.append(call)
            return True
        if is_of_another_type(reply) and call.command.name in _PASS_OVER:
            answer(call, None)  # the key has nothing to be read; who asked passes it over
            return False
        self._fail(call, refusal(call.command, reply))
        return is_connection_lost(reply)

    async def _ask(self, asked: Sequence[tuple[Call, replied.AskError]]) -> list[Call]:
        """Go on with commands where ``ASK`` says. Those that were not carried out there are tried again."""
        again: list[Call] = []
        for call, refusal_ in asked:
            try:
                async with asyncio.timeout_at(call.deadline):
                    reply = await self._topology.ask(refusal_, call.command.as_asked())
            except TimeoutError:
                reply = replied.TimeoutError("no answer in time")
            except (replied.RedisError, OSError) as error:
                reply = error
            if not isinstance(reply, Exception):
                self._carried_out_elsewhere(call, reply)
            elif is_not_carried_out(reply):
                call.was_not_sent(str(reply))
                again.append(call)
            else:
                self._fail(call, refusal(call.command, reply))
        return again

    def _carried_out_elsewhere(self, call: Call, reply: Any) -> None:
        """Hand on the reply of a slot's next owner, after what its present one still has to send."""
        rest = still_to_send(call.command, reply)
        if rest is None:
            answer(call, reply)
            return
        sending: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def sent(_: asyncio.Future[Any]) -> None:
            error = None if sending.cancelled() else sending.exception()
            if call.reply.done():
                return
            # What is kept is found there by all who listen, whatever became of the sending.
            if error is None or not isinstance(reply, int):
                nodes = 0 if error is not None or sending.cancelled() else sending.result()
                call.reply.set_result(with_nodes(reply, nodes))
            else:
                call.reply.set_exception(error)

        sending.add_done_callback(sent)
        self._put((Call(rest, call.number, call.deadline, sending, call.size),))

    async def _execute(self, batch: Sequence[Call]) -> Sequence[Any]:
        problem: Exception
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(batch[-1].deadline):
                words = [call.words() for call in batch]
                return await self._topology.execute(words, partial(are_sent, batch), has_deadline=True)
        except TimeoutError:
            late = replied.TimeoutError("no answer in time")
            problem = late if batch[0].is_sent else NotSentError(BackendError(batch[0].problem))
        except (replied.RedisError, OSError) as error:
            problem = error
        finally:
            self.seconds.observe(asyncio.get_running_loop().time() - began)
        return [problem] * len(batch)

    async def _find_servers(self, queue: Queue, again: Sequence[Call]) -> None:
        """Look the servers up anew. Wait a moment where a command would go to the same one again."""
        try:
            await self._topology.refresh()
        except BackendError as error:
            for call in again:
                call.problem = str(error)
            logger.debug("Finding the servers anew failed: %s", error)
        if any(self._queue_key(call.command) == queue.key for call in again):
            await asyncio.sleep(queue.backoff.next())

    def _put_back(self, queue: Queue, again: list[Call]) -> None:
        """Queue what is to be sent again before all that waits; some of it may belong to another primary now."""
        calls = [*again, *queue.calls]
        self._no_longer_wait(queue.calls)
        queue.calls.clear()
        self._put(call for call in calls if not call.reply.done())

    def _fail_overdue(self, queue: Queue) -> None:
        """Fail the calls whose time is up, and come back when the next one's is. A queue without any is dropped here:
        one that lives from call to call costs each of them less.
        """
        now = asyncio.get_running_loop().time()
        overdue = [call for call in queue.under_way if call.deadline <= now]
        while queue.calls and queue.calls[0].deadline <= now:
            overdue.append(queue.calls.popleft())
            self._no_longer_wait(overdue[-1:])
        for call in overdue:
            self._fail(call, call.unanswered(f"{self._timeout:g} s were over before it was", queue.key.address))
        if queue.task is None:
            del self._queues[queue.key]
            queue.timer = None  # which knows the queue: the garbage collector would have to find the two
            return
        following = [call.deadline for call in (*queue.under_way, *islice(queue.calls, 1)) if call.deadline > now]
        # A clock may fire a fraction early: without a pause that would spin.
        when = max(min(following, default=now + self._timeout), now + _EARLY_WAKE_RETRY)
        self._look_at(queue, when)

    def _look_at(self, queue: Queue, when: float) -> None:
        """Have its overdue calls failed then, and not at another time."""
        if queue.timer is not None:
            queue.timer.cancel()
        queue.next_look = when
        queue.timer = asyncio.get_running_loop().call_at(when, self._fail_overdue, queue)

    def _drop_cancelled(self) -> None:
        """Make room: nobody waits any more for commands whose callers were cancelled."""
        for queue in self._queues.values():
            wanted = deque(call for call in queue.calls if not call.reply.done())
            self._no_longer_wait(call for call in queue.calls if call.reply.done())
            queue.calls = wanted

    def _fail(self, call: Call, error: BackendError) -> None:
        if not call.reply.done():
            self.failed += 1
            call.reply.set_exception(error)
