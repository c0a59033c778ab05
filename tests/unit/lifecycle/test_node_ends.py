"""How a node starts and stops: what is undone, who has how long for what, and what clients are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from socketspec import Connection, SocketApp
from socketspec.errors import (
    BackendError,
)
from socketspec.protocol.publications import Publication, Topic
from socketspec.testing import TestClient
from tests.backends import WatchedBackend, WatchedBroker
from tests.carriers import Carrier, opened
from tests.engines import is_running, running
from tests.virtual_time import in_virtual_time


async def test_a_start_that_fails_half_way_is_undone() -> None:
    class Broker(WatchedBroker):
        failures = 1

        async def subscribe(self, topic: Topic) -> None:
            if topic.kind == "all" and self.failures:
                self.failures -= 1
                raise BackendError("not yet")
            await super().subscribe(topic)

    backend = WatchedBackend()
    backend.broker.__class__ = Broker
    app = SocketApp(backend=backend)
    with pytest.raises(BackendError):
        await running(app)
    assert (backend.started, is_running(app)) == ([], False)
    await running(app)
    assert backend.started == ["/"]
    await app.stop()
    assert backend.started == []


async def test_a_node_that_has_stopped_is_subscribed_to_nothing() -> None:
    backend = WatchedBackend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        assert (await app.rooms.broadcast_all("x")).nodes == 1
        await app.rooms.join((await client.connect()).connection, "hall")
    for topic in (Topic("/", "all", ""), Topic("/", "control", ""), Topic("/", "room", "hall")):
        assert (await backend.broker.publish(topic, Publication("x", b"{}"))).nodes == 0


@in_virtual_time
async def test_a_handler_has_the_grace_and_a_hook_another_one() -> None:
    app = SocketApp(drain_window=0, drain_grace=5)
    ended: dict[str, float] = {}

    def now() -> float:
        return asyncio.get_running_loop().time()

    @app.on("hang")
    async def hang(conn: Connection) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended["handler"] = now()

    @app.on_disconnect
    async def slow(conn: Connection, reason: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended["hook"] = now()

    async with app.lifespan():
        hangs, carrier = Carrier(), Carrier()
        conn = await opened(app, hangs)
        await opened(app, carrier)
        engine = await running(app)
        engine.receive(conn, '{"event":"hang"}', binary=False)
        await asyncio.sleep(0)
        began = now()
        await asyncio.gather(app.stop(), app.stop())
        assert carrier.closed == hangs.closed == (1012, "server_shutdown")
    assert ended["handler"] - began == pytest.approx(5, abs=0.1)
    assert ended["hook"] - began == pytest.approx(10, abs=0.2)


@in_virtual_time
async def test_a_connection_that_is_being_opened_leaves_as_soon_as_its_hooks_are_through() -> None:
    app = SocketApp(drain_window=0, drain_grace=1000)

    @app.on_connect
    async def slow(conn: Connection) -> None:
        await asyncio.sleep(3)

    async with app.lifespan():
        carrier = Carrier()
        opening = asyncio.create_task(opened(app, carrier))
        await asyncio.sleep(1)
        began = asyncio.get_running_loop().time()
        assert await app.drain() == 1
        assert asyncio.get_running_loop().time() - began == pytest.approx(2, abs=0.1)
        assert carrier.closed == (1012, "server_shutdown")
        await opening


@in_virtual_time
@pytest.mark.parametrize("others", [0, 200])
async def test_a_handler_whose_client_has_left_has_the_grace_too(others: int) -> None:
    app = SocketApp(drain_window=10, drain_grace=5)
    done: list[str] = []
    takes = 12 if others else 4

    @app.on("work")
    async def work(conn: Connection) -> None:
        await asyncio.sleep(takes)
        done.append(conn.id)

    async with app.lifespan() as engine:
        for _ in range(others):
            await opened(app, Carrier())
        conn = await opened(app, Carrier())
        engine.receive(conn, '{"event":"work"}', binary=False)
        await asyncio.sleep(0)
        await engine.closed(conn, 1000)
        began = asyncio.get_running_loop().time()
        await app.stop()
        assert asyncio.get_running_loop().time() - began == pytest.approx(takes, abs=0.1)
    assert done == [conn.id]


@in_virtual_time
@pytest.mark.parametrize(
    ("bound", "window", "count", "expected"),
    [
        (min, 1 / 3, 100, [round((number + 1) / 300 + 0.1, 3) for number in range(100)]),
        (max, 1 / 3, 100, [round((number + 1) / 300 + 0.5, 3) for number in range(100)]),
        (min, 10, 2, [0.15, 0.2]),
        (min, 0, 3, [0.1] * 3),
        (max, 0, 3, [5.0] * 3),
    ],
)
async def test_a_goodbye_says_when_to_come_back(
    bound: Callable[[float, float], float], window: float, count: int, expected: list[float]
) -> None:
    app = SocketApp(drain_window=window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("random.uniform", bound)
        async with app.lifespan():
            carriers = [Carrier() for _ in range(count)]
            for carrier in carriers:
                await opened(app, carrier)
            await app.drain()
    goodbyes = [message for carrier in carriers for message in carrier.messages]
    assert {message["event"] for message in goodbyes} == {"__server_shutdown__"}
    assert sorted(message["payload"]["reconnect_in"] for message in goodbyes) == sorted(expected)


async def test_very_many_goodbyes_let_the_loop_turn_between_a_few_hundred() -> None:
    app = SocketApp(drain_window=1000)
    async with app.lifespan():
        carriers = [Carrier() for _ in range(1100)]
        for carrier in carriers:
            await opened(app, carrier)
        draining = asyncio.create_task(app.drain())
        told = [0]
        for _ in range(10):
            await asyncio.sleep(0)
            told.append(sum(bool(carrier.written) for carrier in carriers))
        assert max(after - before for before, after in pairwise(told)) <= 500
        assert told[-1] == 1100
        for carrier in carriers:
            carrier.abort()
        engine = await running(app)
        for conn in list(engine.connections.values()):
            engine.lost(conn, 1006)
        assert await draining == 1100


@in_virtual_time
async def test_a_stop_may_be_given_other_times() -> None:
    app = SocketApp(drain_window=100, drain_grace=100)

    @app.on("hang")
    async def hang(conn: Connection) -> None:
        await asyncio.sleep(1000)

    async with app.lifespan():
        conn = await opened(app, Carrier())
        engine = await running(app)
        engine.receive(conn, '{"event":"hang"}', binary=False)
        began = asyncio.get_running_loop().time()
        await app.stop(grace=2, window=0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(2, abs=0.2)
