"""Fan-out to one room of 1,000 connections: the bare loop of ``send()`` as the limit, FastAPI and other libraries.

    python tests/benchmarks/bench_fanout.py [--rounds 5] [--quick]

- "one write a message": the next message is published when the last has been written out, so nothing is joined;
- "saturating": a publisher that does not wait, in the server itself;
- "through Redis": the same, from a process of its own, through a Valkey of its own.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from socketspec.cluster.embedded import EmbeddedServer
from tests.benchmarks.sockets import Readers
from tests.benchmarks.stage import (
    CHANNELS,
    CHANX,
    FASTAPI,
    OURS,
    PUBLISHED,
    SOCKETIO,
    STOCK,
    Bare,
    Failed,
    Publisher,
    Server,
    Target,
    frame_size,
)
from tests.benchmarks.suite import TEXT, Goal, Results, Settings, in_turns, run, say

BARE = "a bare loop of send()"
PACED, SATURATED, REDIS = "fanout_paced", "fanout_saturated", "fanout_redis"
SIZE = frame_size(TEXT)
MOST = 20_000
"""Messages that are published for one figure at most."""


class Room:
    """A server with all clients in one room, and how many bytes a message is for each of them."""

    def __init__(self, server: Server, clients: int, publisher: Publisher | None = None) -> None:
        self._server = server
        self._publisher = publisher
        self._count = clients
        probe = server.target.app == "socketspec" and not server.target.environment
        opened = server.open(clients, lambda index: "probe=1" if probe and not index else "")
        self.readers = Readers(opened)
        self.readers.drain(0.5 if server.target.app == "socketio" else 0.2)
        self.size = self._learn()
        self.cpu = 0.0
        """Microseconds of the server's CPU for each message that was delivered last."""

    def close(self) -> None:
        self.readers.close()

    def _learn(self) -> int:
        """Some servers let clients in before they are in the room: until two messages in a row have one size."""
        size = 0
        for _ in range(20):
            self._publish(1, paced=True)
            got = self.readers.drain(0.3)
            self._answer()
            if got and got == size * self._count:
                return size
            size = got // self._count
        raise Failed(f"{self._server.target.label} does not deliver to all of its {self._count} clients")

    def _publish(self, count: int, *, paced: bool) -> None:
        if self._publisher is not None:
            self._publisher.publish(count, TEXT)
        else:
            self._server.publish(count, TEXT, paced=paced)

    def _answer(self) -> None:
        (self._publisher or self._server).answer()

    def rate(self, seconds: float, *, paced: bool) -> float:
        """Messages delivered a second, over about so many seconds."""
        count = 8 if paced else 64
        while True:
            rate, took = self._deliver(count, paced=paced)
            if took >= seconds / 2 or count >= MOST:
                return rate
            count = max(count, min(MOST, 10 * count, int(rate * seconds / self._count)))

    def _deliver(self, messages: int, *, paced: bool) -> tuple[float, float]:
        window = self._server.target.window or messages
        delivered, took, cpu = 0.0, 0.0, self._server.cpu()
        for start in range(0, messages, window):
            count = min(window, messages - start)
            began = time.perf_counter()
            self._publish(count, paced=paced)
            tally = self.readers.read(count * self._count * self.size, patience=3.0)
            self._answer()
            if tally.closed or not tally.bytes:
                raise Failed(f"{self._server.target.label} closed {tally.closed} connections")
            delivered += tally.bytes / self.size
            took += tally.last - began
        self.cpu = (self._server.cpu() - cpu) / delivered * 1e6
        return delivered / took, took


def local(target: Target, settings: Settings, results: Results) -> None:
    """One start of a server: paced, and where joining is to be expected, saturated."""
    with Server(target, settings.platform) as server:
        room = Room(server, settings.connections)
        try:
            if target.app == "socketspec" and not target.environment:
                server.ask("writes")
            rate = room.rate(settings.seconds, paced=True)
            results.add(PACED, target.key, rate)
            results.add(f"{PACED}_cpu", target.key, room.cpu)
            if target.app != "socketspec" or target.environment:
                results.add(SATURATED, target.key, rate)  # one write a message here too
                return
            counted = server.ask("writes")
            if counted["writes"] != counted["messages"]:
                raise Failed(f"messages were joined, though paced: {counted}")
            results.add(SATURATED, target.key, room.rate(settings.seconds, paced=False))
        finally:
            room.close()


def through_redis(target: Target, settings: Settings, results: Results, url: str) -> None:
    with Server(target, settings.platform, url) as server, Publisher(target, settings.platform, url) as publisher:
        room = Room(server, settings.connections, publisher)
        try:
            results.add(REDIS, target.key, room.rate(settings.seconds, paced=False))
        finally:
            room.close()


def bare(settings: Settings, results: Results) -> None:
    with Bare(settings.connections) as process:
        messages = 20
        while True:
            began, cpu = time.perf_counter(), process.cpu()
            process.tell(f"{messages} {SIZE}")
            tally = process.readers.read(messages * settings.connections * SIZE)
            process.answer()
            took = tally.last - began
            if took >= settings.seconds / 2:
                break
            messages = max(messages + 1, min(10 * messages, int(messages * settings.seconds / took)))
        delivered = tally.bytes / SIZE
        results.add(PACED, BARE, delivered / took)
        results.add(f"{PACED}_cpu", BARE, (process.cpu() - cpu) / delivered * 1e6)


def benchmark(settings: Settings) -> Results:
    results = Results()
    here = settings.targets(OURS, FASTAPI, STOCK, SOCKETIO, CHANX, PUBLISHED)
    with_redis = settings.targets(OURS, SOCKETIO, CHANNELS, CHANX)
    with EmbeddedServer() as redis:
        for number in range(settings.rounds):
            say(f" round {number + 1}")
            bare(settings, results)
            for target in in_turns(here, number):
                results.attempt(target, partial(local, target, settings, results))
            for target in in_turns(with_redis, number):
                results.attempt(target, partial(through_redis, target, settings, results, redis.url))
    report(results)
    return results


def report(results: Results) -> None:
    what = "fan-out, one write a message"
    results.compare(what, PACED, OURS, BARE, goal=Goal(at_least=0.65))
    for target in (FASTAPI, SOCKETIO, CHANX, PUBLISHED, STOCK):
        results.compare(what, PACED, OURS, target)
    for limit in (BARE, FASTAPI):
        results.compare("the same, server CPU a message", f"{PACED}_cpu", OURS, limit, form="{:.1f} µs")
    what = "fan-out, saturating publisher"
    results.compare(what, SATURATED, OURS, BARE, goal=Goal(at_least=5), other_figure=PACED)
    for target in (FASTAPI, SOCKETIO, CHANX, PUBLISHED, STOCK):
        results.compare(what, SATURATED, OURS, target)
    what = "fan-out through Redis, saturating"
    results.compare(what, REDIS, OURS, BARE, goal=Goal(at_least=5), other_figure=PACED)
    for target in (SOCKETIO, CHANNELS, CHANX):
        results.compare(what, REDIS, OURS, target)


if __name__ == "__main__":
    run({"fanout": benchmark}, __doc__)
