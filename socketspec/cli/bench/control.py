"""The process that the user started: it starts the load's processes, leads them through the run and adds up."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final, NamedTuple, TypeVar

from socketspec.cli.bench.client import Client, Dialer, RefusedError
from socketspec.cli.bench.counting import Counts, Sequences
from socketspec.cli.bench.exchange import Beat, Done, Expect, Go, Published, Ready, Stop
from socketspec.cli.bench.load import Load
from socketspec.cli.bench.progress import Progress
from socketspec.cli.bench.result import Point, Result
from socketspec.cli.bench.wording import PREFLIGHT, Wording
from socketspec.cli.bench.worker import run_worker

__all__ = ("BenchError", "preflight", "run_load")

T = TypeVar("T")

POINTS: Final = 300
"""Points of a plot, about."""
MAX_POINTS: Final = 5_000
SHORTEST: Final = 0.25
"""Seconds of a point, at least."""
AHEAD: Final = 0.3
"""Seconds after which everybody begins, once told."""
FIRST_ANSWER: Final = 5.0
"""Seconds within which the message of the preflight has to come back."""
LOOK: Final = 0.1


class BenchError(Exception):
    """It could not be measured; the text says why and what to do."""


# Before the run


def preflight(load: Load) -> None:
    """Open two connections, join, publish and receive: what does not work is said at once. Raises `BenchError`."""
    asyncio.run(_preflight(load))


async def _preflight(load: Load) -> None:
    wording = Wording(load)
    clients: list[Client] = []
    try:
        dialer = Dialer(load, wording, Counts())
        for index in range(min(load.connections, 1 if load.is_echoed else 2)):
            clients.append(await dialer.open(index, Sequences(())))
            await dialer.join(clients[-1], [0])
        await _try_message(load, wording, clients)
    except RefusedError as error:
        raise BenchError(_advice(load, error)) from None
    finally:
        for client in clients:
            client.leave()
        await asyncio.sleep(0)
        for client in clients:
            client.abort()


async def _try_message(load: Load, wording: Wording, clients: Sequence[Client]) -> None:
    text = wording.text(PREFLIGHT, 1, time.monotonic_ns())
    if load.backend is not None:
        await _try_backend(load, wording, text)
        through = "the backend: do --backend, --namespace and --prefix name the app's?"
    else:
        clients[0].publish(0, text)
        through = f"{load.publish_event!r}: do --publish-event, --publish-payload and --receive-event fit the app?"
    try:
        async with asyncio.timeout(FIRST_ANSWER):
            await clients[-1].preflight
    except TimeoutError:
        said = _errors(clients[0])
        events = " or ".join(map(repr, load.receive_events))
        raise BenchError(
            f"joined {load.room(0)!r}, but no {events} came within {FIRST_ANSWER:g} s of publishing "
            f"through {through}{said}"
        ) from None


async def _try_backend(load: Load, wording: Wording, text: str) -> None:
    # Imported here, not above: the rest of the command works without the extra.
    from socketspec.cluster import AsyncPublisher
    from socketspec.errors import BackendError, ConfigurationError

    try:
        publisher = AsyncPublisher(load.backend, prefix=load.prefix, namespace=load.namespace)
        try:
            await publisher.broadcast_many([(load.room(0), load.receive_events[0], wording.payload(0, text))])
        finally:
            await publisher.close()
    except (BackendError, ConfigurationError, ValueError) as error:
        raise BenchError(str(error)) from None


def _errors(client: Client) -> str:
    said = "; ".join(f"{code}: {text}" for code, text in client.errors.items())
    return f" The app answered {said}" if said else ""


def _advice(load: Load, error: RefusedError) -> str:
    advice = {
        "HTTP 401": "give credentials with --token, --token-file or --header",
        "HTTP 403": "the app may accept certain origins only: --header 'Origin: https://…'; or credentials: --token",
        "HTTP 404": "is the path right? An app is mounted on /ws unless it says otherwise",
        "HTTP 503": "the node is stopping, or cannot reach its backend",
        "closed with 4001": "the app wants credentials: --token, --token-file or --header",
        "join refused: AUTH_ERROR": "the app wants credentials: --token, --token-file or --header",
        "join refused: UNKNOWN_EVENT": "the app has another event to join with: --join-event and --join-payload, "
        "or --no-join where connecting is enough",
        "join refused: VALIDATION_ERROR": "the app wants another payload: --join-payload",
        "join refused: ROOM_NOT_FOUND": "the app declares its rooms: --room-name",
        "join refused: PERMISSION_ERROR": "the app guards this room: --room-name, --token",
        "join not answered": "does the app answer events that have an id?",
        "connection refused": "nothing listens there",
        "TLS failed": "trust its authority with --ca FILE, or check nothing with --insecure",
        "subprotocol refused": "leave --subprotocol out",
    }.get(error.kind, "")
    target = load.url.partition("?")[0]
    return f"cannot connect to {target}: {error}" + (f" ({advice})" if advice else "")


# The run


class _Process(NamedTuple):
    process: SpawnProcess
    pipe: Connection


def run_load(load: Load, progress: Progress) -> Result:
    """Make the run; Ctrl-C ends it early and in order. Raises `BenchError` where there is nothing to report."""
    controller = _Controller(load, progress)
    with controller.processes(), controller.interruptible():
        return controller.run()


class _Controller:
    def __init__(self, load: Load, progress: Progress) -> None:
        self._load = load
        self._progress = progress
        self._began = 0.0
        ramp = load.connections / load.connect_rate
        self._interval = max((ramp + load.duration) / POINTS, SHORTEST)
        self._processes: list[_Process] = []
        self._points: dict[int, Point] = {}
        self._beats: dict[int, Beat] = {}
        self._phase = "connecting"
        self._start = 0.0
        self._delivered = self._published = self._joined = 0
        self._is_interrupted = False

    @contextmanager
    def processes(self) -> Iterator[None]:
        """The load's processes, ended whatever happens."""
        context = multiprocessing.get_context("spawn")
        self._began = time.monotonic() + 1.0 + 0.1 * self._load.processes  # a process takes a moment to start
        try:
            for number in range(self._load.processes):
                mine, theirs = context.Pipe()
                arguments = (self._load, number, theirs, self._began, self._interval)
                process = context.Process(target=run_worker, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._processes.append(_Process(process, mine))
            yield
        finally:
            for each in self._processes:
                each.pipe.close()
            for each in self._processes:
                each.process.join(5)
                each.process.kill()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C ends the run in order, the second one at once."""

        def interrupt(number: int, frame: object) -> None:
            if self._is_interrupted:
                raise KeyboardInterrupt
            self._is_interrupted = True
            with suppress(OSError):  # a process that is gone is found out elsewhere
                self._tell(Stop())

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def run(self) -> Result:
        load = self._load
        started = datetime.now(UTC).isoformat(timespec="seconds")
        ready = self._gather(Ready)
        ramp = max(time.monotonic() - self._began, 0.0)
        streams = sum(each.streams for each in ready)
        self._joined = sum(each.joined for each in ready)
        if not streams or not self._joined:
            raise BenchError(self._nobody(ready))
        self._phase, self._start = "publishing", self._next_interval()
        for each, (_, pipe) in zip(ready, self._processes, strict=True):
            pipe.send(Go(self._start, load.rate * each.streams / streams))
        published: dict[int, int] = {}
        for report in self._gather(Published):
            published |= report.by_stream
        self._phase = "settling"
        self._tell(Expect(published))
        done = self._gather(Done)
        result = Result(
            load=load,
            started=started,
            interval=self._interval,
            ramp=ramp,
            start=self._start - self._began,
            points=self._points,
            cpu=[each.cpu for each in done],
            behind=max(each.behind for each in done),
            lasted=max(each.lasted for each in done),
            is_interrupted=self._is_interrupted,
        )
        for each_done in done:
            result.counts.add(each_done.counts)
        return result

    def _next_interval(self) -> float:
        """When to begin: soon, and where a point of the plots does."""
        passed = (time.monotonic() + AHEAD - self._began) / self._interval
        return self._began + math.ceil(passed) * self._interval

    def _nobody(self, ready: Sequence[Ready]) -> str:
        failed: Counter[str] = Counter()
        for each in ready:
            failed.update(each.failed)
        if not failed:
            return "interrupted before a connection was open"
        listed = ", ".join(f"{number:,} {kind}" for kind, number in failed.most_common())
        return f"no publisher could connect: {listed}; the last one: {ready[-1].example}"

    def _tell(self, order: Expect | Stop) -> None:
        for _, pipe in self._processes:
            pipe.send(order)

    def _gather(self, kind: type[T]) -> list[T]:
        """Wait until every process has sent one of `kind`; meanwhile show what they report."""
        found: dict[int, T] = {}
        while len(found) < len(self._processes):
            pipes: list[Any] = [pipe for _, pipe in self._processes]
            for pipe in wait(pipes, LOOK):
                number = pipes.index(pipe)
                message = self._receive(number)
                if isinstance(message, Beat):
                    self._note(number, message)
                elif isinstance(message, kind):
                    found[number] = message
            self._show()
        return [found[number] for number in range(len(self._processes))]

    def _receive(self, number: int) -> object:
        process, pipe = self._processes[number]
        try:
            received: object = pipe.recv()
        except (EOFError, OSError):
            process.join(2)
            raise BenchError(
                f"load process {number + 1} of {len(self._processes)} ended by itself (status {process.exitcode}); "
                "is there enough memory?"
            ) from None
        return received

    def _note(self, number: int, beat: Beat) -> None:
        self._beats[number] = beat
        self._published += beat.published
        self._delivered += beat.delivered
        if beat.number < 0 or (beat.number not in self._points and len(self._points) >= MAX_POINTS):
            return
        point = self._points.setdefault(beat.number, Point())
        point.open += beat.open
        point.published += beat.published
        point.delivered += beat.delivered
        point.latency.merge(beat.latency)

    def _show(self) -> None:
        load = self._load
        if self._phase == "connecting":
            tried = sum(beat.tried for beat in self._beats.values())
            failed = sum(beat.failed for beat in self._beats.values())
            text = f"{tried:,} of {load.connections:,} connections" + (f", {failed:,} failed" if failed else "")
            self._progress.show(self._phase, tried / load.connections, text)
            return
        passed = min(max(time.monotonic() - self._start, 0.0), load.duration)
        whole = [point for point in self._points.values() if point.latency.count]
        p99 = f", p99 {whole[-1].latency.percentile(0.99) / 1e6:.1f} ms" if whole else ""
        text = f"{passed:.1f} of {load.duration:g} s, {self._published:,} published, {self._delivered:,} delivered{p99}"
        missing = load.connections - self._joined
        gone = f", {missing:,} connections failed" if missing else ""
        self._progress.show(self._phase, passed / load.duration, text + gone)
