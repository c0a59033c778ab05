"""One process of the load: its share of the connections and of the publishers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

from socketspec.cli.bench.client import Client, Dialer, RefusedError
from socketspec.cli.bench.counting import Counts, Histogram, Sequences, count_in
from socketspec.cli.bench.exchange import Beat, Done, Expect, Go, Published, Ready, Stop
from socketspec.cli.bench.load import Load, Stream
from socketspec.cli.bench.wording import Wording
from socketspec.errors import BackendError

__all__ = ("run_worker",)

UNDER_WAY: Final = 512
"""Handshakes of one process at any moment."""
BATCH: Final = 500
"""Messages that go to the backend in one round trip, and over sockets before other things get a turn."""
MAX_BEHIND: Final = 20_000
"""Messages due that the backend has not taken; beyond, they are left out."""
MAX_OVERTIME: Final = 2.0
"""Seconds after the end in which messages that were due before are still published."""
MAX_SETTLE: Final = 60.0
"""Seconds of waiting at the end, however much still arrives."""


def run_worker(load: Load, process: int, pipe: Connection, began: float, beat: float) -> None:
    """Work until told to stop or the pipe breaks; `beat` is the seconds between two `Beat`s, counted from `began`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one tells this one
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        asyncio.run(_Worker(load, process, pipe, began, beat).work())


class _Publisher(Protocol):
    """What is used of an `AsyncPublisher`, which only those have who installed the extra."""

    async def broadcast_many(self, messages: Sequence[tuple[str, str, object]]) -> object: ...

    async def count(self, room: str) -> int: ...

    async def close(self) -> None: ...


class _Worker:
    def __init__(self, load: Load, process: int, pipe: Connection, began: float, beat: float) -> None:
        self._load = load
        self._process = process
        self._pipe = pipe
        self._began = began
        self._beat = beat
        self._counts = Counts()
        self._wording = Wording(load)
        self._clients: dict[int, Client] = {}
        self._streams: list[Stream] = []
        self._published: dict[int, int] = {}
        self._owner = {} if load.is_echoed else self._owners()
        self._example = ""
        self._publisher: _Publisher | None = None
        self._behind = 0.0
        self._stopping = asyncio.Event()
        self._orders: asyncio.Queue[Any] = asyncio.Queue()  # at most three orders ever come
        self._reported = (0, 0, Histogram())

    def _owners(self) -> dict[int, int]:
        everybody = range(self._load.processes)
        return {stream.number: stream.connection for process in everybody for stream in self._load.streams_of(process)}

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._take_order)
        beats = asyncio.create_task(self._report_beats())
        try:
            if self._load.backend is not None:
                await self._connect_backend()
            await self._open_all()
            live = [each for each in self._load.streams_of(self._process) if self._is_live(each)]
            self._streams = live
            joined = sum(client.is_joined for client in self._clients.values())
            self._pipe.send(Ready(joined, len(live), dict(self._counts.failed), self._example))
            order = await self._orders.get()
            cpu = 0.0
            start = time.monotonic()
            if isinstance(order, Go):
                start = order.start
                cpu = await self._publish(order)
            self._pipe.send(Published(self._published))
            order = await self._orders.get()
            if isinstance(order, Expect):
                last = await self._settle(order.by_stream)
                self._judge(order.by_stream)
                beats.cancel()
                self._send_beat(int((time.monotonic() - self._began) / self._beat))
                self._pipe.send(Done(self._counts, cpu, self._behind, max(last - start, 0.0)))
            await self._leave()
        finally:
            if self._publisher is not None:
                await self._publisher.close()
            beats.cancel()
            loop.remove_reader(self._pipe.fileno())

    def _take_order(self) -> None:
        try:
            order = self._pipe.recv()
        except (EOFError, OSError):  # the first process is gone
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            order = Stop()
            self._orders.put_nowait(order)
            self._orders.put_nowait(order)
        if isinstance(order, Stop):
            self._stopping.set()
        else:
            self._orders.put_nowait(order)

    def _is_live(self, stream: Stream) -> bool:
        if stream.connection < 0:
            return True
        client = self._clients.get(stream.connection)
        return client is not None and client.is_open

    # Opening

    async def _open_all(self) -> None:
        try:
            dialer = Dialer(self._load, self._wording, self._counts)
        except RefusedError as error:
            self._refused(error)
            return
        each = self._load.processes / self._load.connect_rate
        slots = asyncio.Semaphore(UNDER_WAY)
        async with asyncio.TaskGroup() as group:
            for place, index in enumerate(self._load.connections_of(self._process)):
                due = self._began + place * each
                if (wait := due - time.monotonic()) > 0:
                    await self._pause(wait)
                await slots.acquire()
                if self._stopping.is_set():
                    break
                task = group.create_task(self._open(dialer, index))
                task.add_done_callback(lambda _: slots.release())

    async def _open(self, dialer: Dialer, index: int) -> None:
        counts, began = self._counts, time.monotonic_ns()
        sequences = Sequences(stream for stream in self._load.heard_by(index) if self._owner.get(stream, -1) != index)
        try:
            client = await dialer.open(index, sequences)
            opened = time.monotonic_ns()
            counts.opened += 1
            counts.connecting.add(opened - began)
            await dialer.join(client, self._load.rooms_of(index))
        except RefusedError as error:
            self._refused(error)
            return
        if not client.is_joined:
            self._refused(RefusedError("closed right after the handshake"))
            return
        counts.joined += 1
        counts.joining.add(time.monotonic_ns() - opened)
        self._clients[index] = client

    def _refused(self, error: RefusedError) -> None:
        count_in(self._counts.failed, error.kind)
        self._example = str(error)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the run is stopped."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    # Publishing

    async def _publish(self, go: Go) -> float:
        """Publish what is due until the time is over; the CPU it took, as a part of one core."""
        self._published = {stream.number: 0 for stream in self._streams}
        await self._pause(max(go.start - time.monotonic(), 0))
        cpu, began = time.process_time(), time.monotonic()
        if self._streams and go.rate > 0 and not self._stopping.is_set():
            if self._publisher is not None:
                await self._publish_to_backend(go, self._publisher)
            else:
                await self._publish_to_sockets(go)
        rest = go.start + self._load.duration - time.monotonic()
        if rest > 0:
            await self._pause(rest)
        return (time.process_time() - cpu) / max(time.monotonic() - began, 1e-9)

    def _due(self, go: Go, sent: int) -> int:
        """How many messages should be out by now; notes how late the first of them is."""
        passed = min(time.monotonic() - go.start, self._load.duration)
        due = min(int(passed * go.rate) + 1, max(round(self._load.duration * go.rate), 1))
        if due > sent:
            self._behind = max(self._behind, passed - sent / go.rate)
        return due

    def _is_over(self, go: Go, sent: int) -> bool:
        if self._stopping.is_set() or (left := max(round(self._load.duration * go.rate), 1) - sent) <= 0:
            return True
        if is_late := time.monotonic() > go.start + self._load.duration + MAX_OVERTIME:
            self._counts.skipped += left
        return is_late

    def _next_text(self, stream: Stream) -> str:
        number = self._published[stream.number] + 1
        self._published[stream.number] = number
        self._counts.published += 1
        return self._wording.text(stream.number, number, time.monotonic_ns())

    async def _publish_to_sockets(self, go: Go) -> None:
        turn = deque((stream, self._clients[stream.connection]) for stream in self._streams)
        sent = 0
        while turn and not self._is_over(go, sent):
            due = self._due(go, sent)
            until = min(due, sent + BATCH)
            while sent < until and turn:
                stream, client = turn[0]
                if not client.is_open:
                    turn.popleft()
                    continue
                turn.rotate(-1)
                sent += 1
                if client.is_held_back:
                    self._counts.skipped += 1
                else:
                    client.publish(stream.room, self._next_text(stream))
            # A sleep of nothing lets what has arrived be read.
            await asyncio.sleep(max(go.start + sent / go.rate - time.monotonic(), 0) if sent == due else 0)

    async def _publish_to_backend(self, go: Go, publisher: _Publisher) -> None:
        load, sent = self._load, 0
        turn = deque(self._streams)
        while not self._is_over(go, sent):
            due = self._due(go, sent)
            if (excess := due - sent - MAX_BEHIND) > 0:
                self._counts.skipped += excess
                sent += excess
            batch: list[tuple[str, str, object]] = []
            while sent < due and len(batch) < BATCH:
                stream = turn[0]
                turn.rotate(-1)
                payload = self._wording.payload(stream.room, self._next_text(stream))
                batch.append((load.room(stream.room), load.receive_events[0], payload))
                sent += 1
            try:
                await publisher.broadcast_many(batch)
            except BackendError as error:
                count_in(self._counts.failed_publishes, str(error))
            if sent == due:
                await self._pause(max(go.start + sent / go.rate - time.monotonic(), 0))

    async def _connect_backend(self) -> None:
        # Imported here, not above: the rest of the command works without the extra.
        from socketspec.cluster import AsyncPublisher

        load = self._load
        self._publisher = AsyncPublisher(load.backend, prefix=load.prefix, namespace=load.namespace)
        with contextlib.suppress(BackendError):  # what is published will say it again
            await self._publisher.count(load.room(0))

    # The end

    async def _settle(self, published: dict[int, int]) -> float:
        """Wait until everything has arrived, or nothing has for a while; when the last thing did."""
        counts = self._counts
        wanted = sum(client.sequences.expected(published) for client in self._clients.values() if client.is_joined)
        end = time.monotonic() + MAX_SETTLE
        had, last = counts.delivered, time.monotonic()
        while counts.delivered < wanted and (now := time.monotonic()) < min(end, last + self._load.settle):
            await asyncio.sleep(0.02)
            if counts.delivered != had:
                had, last = counts.delivered, now
        return last

    def _judge(self, published: dict[int, int]) -> None:
        for client in self._clients.values():
            self._counts.expected += client.sequences.expected(published)
            missing = client.sequences.missing(published)
            if client.is_open:
                self._counts.lost += missing.messages
                self._counts.gaps += missing.gaps
            else:
                self._counts.missed += missing.messages

    async def _leave(self) -> None:
        for number, client in enumerate(self._clients.values()):
            client.leave()
            if number % 200 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        for client in self._clients.values():
            client.abort()
        await asyncio.sleep(0)

    async def _report_beats(self) -> None:
        while True:
            number = int((time.monotonic() - self._began) / self._beat)
            await asyncio.sleep(max(self._began + (number + 1) * self._beat - time.monotonic(), 0))
            self._send_beat(number)

    def _send_beat(self, number: int) -> None:
        counts, (published, delivered, latency) = self._counts, self._reported
        failed = counts.failed.total()
        since = counts.latency.since(latency)
        opened = counts.joined - counts.closed.total()
        tried = counts.joined + failed
        self._pipe.send(
            Beat(number, opened, tried, failed, counts.published - published, counts.delivered - delivered, since)
        )
        self._reported = counts.published, counts.delivered, counts.latency.copy()
