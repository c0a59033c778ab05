"""What a node measures of its fan-out, its order and pace, and joins that share one subscription."""

from __future__ import annotations

import asyncio
import gc

import pytest

from socketspec import SocketApp
from socketspec.adapters.prometheus import SocketSpecCollector
from socketspec.errors import BackendError
from socketspec.fanout.channel import MESSAGES_A_WRITE
from socketspec.protocol.publications import Topic
from socketspec.telemetry.counters import Histogram
from socketspec.testing import TestClient
from tests.backends import WatchedBackend, WatchedBroker
from tests.carriers import Carrier, opened
from tests.engines import Engine, running
from tests.identities import ByName


def observed(histogram: Histogram) -> tuple[int, float]:
    """How many values, and their sum."""
    return sum(histogram.counts), histogram.sum


def rooms_of(engine: Engine) -> float:
    """The gauge of rooms that are used on this node."""
    metrics = SocketSpecCollector([engine]).collect()
    return next(metric.samples[0].value for metric in metrics if metric.name == "socketspec_rooms")


async def test_each_publication_is_measured_by_its_members_and_each_write_is_counted() -> None:
    app = SocketApp()
    async with app.lifespan() as engine:
        carriers = [Carrier() for _ in range(3)]
        conns = [await opened(app, carrier) for carrier in carriers]
        for conn in conns[:2]:
            await app.rooms.join(conn, "hall")
        figures = engine.counters
        await app.rooms.broadcast("hall", "a")
        await app.rooms.broadcast("hall", "b", exclude=conns[0])
        await asyncio.sleep(0)
        assert [carrier.events for carrier in carriers] == [["a"], ["a", "b"], []]
        assert observed(figures.fanout_recipients) == (2, 4.0)
        assert figures.sent == 4, "who is excluded counts: that is looked at when it is written"
        assert observed(figures.fanout_seconds)[0] == 1, "both were written in one go"
        assert 0 < observed(figures.fanout_seconds)[1] < 10, "what passed, not what a clock shows"
        await conns[2].emit("c")
        assert figures.sent == 5
        for conn in conns:
            await conn.disconnect()


async def test_what_has_no_member_here_is_not_measured() -> None:
    app = SocketApp()
    async with app.lifespan() as engine:
        await app.rooms.broadcast("hall", "a")
        assert (await app.rooms.broadcast_all("b")).nodes == 1, "this node listens, and nobody is here"
        await asyncio.sleep(0)
        assert observed(engine.counters.fanout_recipients) == (0, 0.0)
        assert observed(engine.counters.fanout_seconds)[0] == 0


async def test_rooms_with_members_are_counted_and_nothing_else() -> None:
    app = SocketApp(auth=ByName())
    async with TestClient(app) as client:
        engine = await running(app)
        assert rooms_of(engine) == 0
        one, two = [await client.connect(query_params={"user": "ada"}) for _ in range(2)]
        for conn, room in ((one, "a"), (two, "a"), (one, "b")):
            await app.rooms.join(conn.connection, room)
        assert rooms_of(engine) == 2
        await one.close()
        assert rooms_of(engine) == 1


async def test_what_is_sent_to_one_client_keeps_its_order_when_somebody_joins_in_between() -> None:
    app, carrier = SocketApp(), Carrier()
    async with app.lifespan():
        conn, other = await opened(app, carrier), await opened(app, Carrier())
        await app.rooms.join(conn, "hall")
        await app.rooms.broadcast("hall", "to all")
        await conn.emit("first")
        await app.rooms.join(other, "hall")
        await conn.emit("second")
        await asyncio.sleep(0)
        assert carrier.events == ["to all", "first", "second"]
        for each in (conn, other):
            await each.disconnect()


async def test_who_broadcasts_without_a_pause_lets_what_was_published_be_written() -> None:
    app, carrier = SocketApp(), Carrier()
    async with app.lifespan():
        conn = await opened(app, carrier)
        await app.rooms.join(conn, "hall")
        for _ in range(MESSAGES_A_WRITE - 1):
            await app.rooms.broadcast("hall", "x")
        assert carrier.events == []
        await app.rooms.broadcast("hall", "x")
        assert carrier.events == ["x"] * MESSAGES_A_WRITE
        await conn.disconnect()


class Gated(WatchedBroker):
    """Subscribes to rooms when the test says so, and fails as often as it says."""

    gate: asyncio.Event
    failures = 0
    asked = 0

    async def subscribe(self, topic: Topic) -> None:
        if topic.kind == "room":
            self.asked += 1
            await self.gate.wait()
            if self.failures:
                self.failures -= 1
                raise BackendError("redis is gone")
        await super().subscribe(topic)


def gated() -> tuple[SocketApp, Gated]:
    backend = WatchedBackend()
    backend.broker.__class__ = Gated
    broker = backend.broker
    assert isinstance(broker, Gated)
    broker.gate = asyncio.Event()
    return SocketApp(backend=backend), broker


@pytest.mark.parametrize("failures", [0, 1])
async def test_who_joins_together_asks_once_and_shares_the_outcome(failures: int) -> None:
    app, broker = gated()
    broker.failures = failures
    async with TestClient(app) as client:
        conns = [(await client.connect()).connection for _ in range(3)]
        joins = [asyncio.create_task(app.rooms.join(conn, "hall")) for conn in conns]
        await asyncio.sleep(0)
        broker.gate.set()
        outcomes = await asyncio.gather(*joins, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [BackendError if failures else type(None)] * 3
        assert broker.asked == 1
        assert await app.rooms.count("hall") == (0 if failures else 3)
        await app.rooms.join(conns[0], "hall")
        assert broker.asked == 1 + failures


async def test_a_failure_that_only_one_waits_for_is_not_reported_a_second_time() -> None:
    app, broker = gated()
    broker.failures = 1
    broker.gate.set()
    async with TestClient(app) as client:
        conn = (await client.connect()).connection
        failed = False
        try:
            await app.rooms.join(conn, "hall")
        except BackendError:
            failed = True
        assert failed
        gc.collect()  # what nobody looked at is reported now, and fails the test
        await asyncio.sleep(0)
