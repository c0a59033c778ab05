"""How a node lets its connections go: pace, order, and what is never cut off. In virtual time: no test waits."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketspec import Connection, SocketApp
from socketspec.errors import ConfigurationError
from socketspec.lifecycle.drain import JITTER, JITTER_AT_ONCE, LEAST_A_SECOND
from socketspec.pages.responses import Response
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.runtime import engines
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.engines import Engine, running
from tests.virtual_time import in_virtual_time, now

TICK = 0.1
"""Seconds between two waves, at most."""
INSTANT = 1e-4
"""Virtual seconds that turns of the loop may take, without any wait."""


def peak(times: Iterable[float], width: float) -> int:
    """How many of `times` fall into one of the bins of `width` seconds, at most."""
    return max(Counter(int(time / width) for time in times).values())


async def read(conn: TestConnection) -> tuple[list[dict[str, Any]], ConnectionClosed, float]:
    """Everything that comes, how it ended, and when."""
    messages: list[dict[str, Any]] = []
    while True:
        try:
            messages.append(await conn.receive(timeout=1000))
        except ConnectionClosed as closed:
            return messages, closed, now()


async def drained(count: int, window: float) -> tuple[list[float], list[float], list[int], float]:
    """Drain `count` connections: when each was closed, what each was told, in which order they left, and the end."""
    app = SocketApp(drain_window=window)
    async with TestClient(app) as client:
        readers = [asyncio.create_task(read(await client.connect())) for _ in range(count)]
        await asyncio.sleep(0)
        began = now()
        assert await app.drain() == count
        ended = now() - began
        results = [await reader for reader in readers]
    for messages, closed, _ in results:
        assert [message["event"] for message in messages] == ["__server_shutdown__"]
        assert (closed.code, closed.reason) == (1012, "server_shutdown")
    left = [time - began for _, _, time in results]
    told = [messages[0]["payload"]["reconnect_in"] for messages, _, _ in results]
    return left, told, sorted(range(count), key=left.__getitem__), ended


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 400), window=st.floats(0.5, 30))
def test_connections_leave_evenly_over_the_window(count: int, window: float) -> None:
    async def main() -> None:
        left, _, _, ended = await drained(count, window)
        span = min(window, count / LEAST_A_SECOND)
        assert max(left) == pytest.approx(span, abs=TICK)
        assert ended == pytest.approx(span, abs=TICK)
        for bins in (4, 10):
            width = max(span / bins, 2 * TICK)
            assert peak(left, width) <= 2 * max(count * width / span, 1)

    in_virtual_time(main)()


def test_what_clients_are_told_spreads_those_that_connect_again() -> None:
    async def main() -> None:
        left, told, _, _ = await drained(1000, 10.0)
        assert max(told) <= 10 + JITTER
        assert all(told_each > left_each for told_each, left_each in zip(told, left, strict=True)), "not while it is in"
        for times in (left, told, [a + b for a, b in zip(left, told, strict=True)]):
            width = (max(times) - min(times)) / 10
            assert peak(times, width) <= 2 * 1000 / 10

    in_virtual_time(main)()


def test_who_leaves_first_is_chance() -> None:
    async def main() -> None:
        orders = [(await drained(60, 3.0))[2] for _ in range(2)]
        assert orders[0] != orders[1]
        assert list(range(60)) not in orders

    in_virtual_time(main)()


def test_a_few_connections_leave_one_after_the_other_and_soon() -> None:
    async def main() -> None:
        left, _, _, ended = await drained(3, 600.0)
        assert len(set(left)) == 3
        assert ended < 1

    in_virtual_time(main)()


def test_without_a_window_all_leave_at_once_and_come_back_spread_out() -> None:
    async def main() -> None:
        left, told, _, ended = await drained(400, 0)
        assert max(*left, ended) < INSTANT
        assert 0 < min(told) < max(told) <= JITTER_AT_ONCE
        assert peak(told, JITTER_AT_ONCE / 10) <= 2 * 400 / 10

    in_virtual_time(main)()


def test_draining_a_node_without_connections_takes_no_time() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=10)
        assert await app.drain() == 0  # not started
        async with TestClient(app):
            assert await app.drain() == 0
        assert now() < INSTANT

    in_virtual_time(main)()


def test_the_drain_ends_when_all_have_left_by_themselves() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=10)
        async with TestClient(app) as client:
            connections = [await client.connect() for _ in range(300)]
            draining = asyncio.create_task(app.drain())
            await asyncio.sleep(1)
            for conn in connections:
                await conn.close()
            assert await draining == 300
            assert now() == pytest.approx(1, abs=TICK)

    in_virtual_time(main)()


def test_a_handler_under_way_finishes_and_its_answer_arrives_before_the_close() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=1, drain_grace=60)

        @app.on("work")
        async def work(conn: Connection, payload: dict[str, float]) -> dict[str, str]:
            await asyncio.sleep(payload["seconds"])
            return {"work": "done"}

        async with TestClient(app) as client:
            conn, idle = await client.connect(), await client.connect()
            for id, seconds in enumerate((5, 30)):
                await conn.send("work", {"seconds": seconds}, id=id)
            draining = asyncio.create_task(app.drain())
            _, _, idle_left = await read(idle)
            messages, closed, left = await read(conn)
            await draining
            assert [message.get("id") for message in messages] == [None, 0, 1]
            assert closed.code == 1012
            assert left == pytest.approx(30)
            assert idle_left <= 1, "nobody waits for others"

    in_virtual_time(main)()


def add_work(app: SocketApp, *, seconds: float) -> None:
    """An event whose handler takes that long."""

    @app.on("work")
    async def work(conn: Connection) -> dict[str, str]:
        await asyncio.sleep(seconds)
        return {}


def acked(messages: Iterable[dict[str, Any]]) -> list[int]:
    """The ids of the events that were answered, in order."""
    return [message["id"] for message in messages if message["event"] == "__ack__"]


@pytest.mark.parametrize("max_in_flight", [1, 8])
def test_a_client_that_goes_on_sending_leaves_once_what_it_sent_before_its_turn_is_handled(max_in_flight: int) -> None:
    async def main() -> None:
        app = SocketApp(drain_window=0.5, drain_grace=60, max_in_flight=max_in_flight)
        add_work(app, seconds=0.3)
        async with TestClient(app) as client:
            conn = await client.connect()
            reading = asyncio.create_task(read(conn))
            draining = asyncio.create_task(app.drain())
            for id in range(100):  # there is always one under way
                if not conn.connection.is_open:
                    break
                await conn.send("work", id=id)
                await asyncio.sleep(0.1)
            messages, closed, left = await reading
            await draining
            assert closed.code == 1012
            assert left < 1.5
            acks = acked(messages)
            assert acks == list(range(len(acks)))
            assert len(acks) >= 1

    in_virtual_time(main)()


def test_a_message_that_waits_for_its_place_is_handled_before_the_connection_leaves() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=0, drain_grace=60, max_in_flight=1)
        add_work(app, seconds=3)
        async with TestClient(app) as client:
            conn = await client.connect()
            sending = [asyncio.create_task(conn.send("work", id=id)) for id in range(2)]
            await asyncio.sleep(1)
            draining = asyncio.create_task(app.drain())
            messages, closed, left = await read(conn)
            await asyncio.gather(draining, *sending)
            assert acked(messages) == [0, 1]
            assert closed.code == 1012
            assert left == pytest.approx(6)

    in_virtual_time(main)()


def test_a_connection_whose_hooks_are_under_way_leaves_when_they_are_through() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=0, drain_grace=60)
        log: list[tuple[str, float]] = []

        @app.on_connect
        async def arrive(conn: Connection) -> None:
            await asyncio.sleep(5)
            log.append(("connected", now()))

        @app.on_disconnect
        async def depart(conn: Connection, reason: str) -> None:
            log.append((reason, now()))

        async with TestClient(app) as client:
            connecting = asyncio.create_task(client.connect())
            await asyncio.sleep(1)
            draining = asyncio.create_task(app.drain())
            _, closed, _ = await read(await connecting)
            await draining
            assert closed.code == 1012
            assert [what for what, _ in log] == ["connected", "server_shutdown"]
            assert log[0][1] == pytest.approx(5)

    in_virtual_time(main)()


def test_a_handler_that_does_not_finish_is_left_behind_after_the_grace_and_then_cancelled() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=0, drain_grace=7)
        cancelled: list[float] = []

        @app.on("hang")
        async def hang(conn: Connection) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(now())

        async with TestClient(app) as client:
            conn = await client.connect()
            await conn.send("hang")
            stopping = asyncio.create_task(app.stop())
            _, closed, left = await read(conn)
            assert closed.code == 1012
            assert left == pytest.approx(7)
            assert cancelled == []
            await stopping
            assert cancelled == [pytest.approx(7)]

    in_virtual_time(main)()


def test_a_connection_works_until_its_own_close() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=2)
        handled: Counter[str] = Counter()
        published = 0

        @app.on("note")
        async def note(conn: Connection) -> None:
            handled[conn.id] += 1

        async with TestClient(app) as client:
            connections = [await client.connect() for _ in range(40)]
            readers = [asyncio.create_task(read(conn)) for conn in connections]
            sent: Counter[str] = Counter()
            draining = asyncio.create_task(app.drain())
            publications: list[float] = []
            while not draining.done():
                for conn in connections:
                    if conn.connection.is_open:
                        await conn.send("note")
                        sent[conn.id] += 1
                await app.rooms.broadcast_all("number", {"n": published})
                publications.append(now())
                published += 1
                await asyncio.sleep(0.01)
            for reader in readers:
                messages, _, left = await reader
                numbers = [message["payload"]["n"] for message in messages if message["event"] == "number"]
                before = sum(time < left for time in publications)
                assert numbers == list(range(len(numbers))), "no gap and no duplicate"
                assert len(numbers) >= before, "everything published before the close came before it"
        assert sent
        assert handled == sent

    in_virtual_time(main)()


@pytest.mark.parametrize("window", [0, 0.5])
def test_what_a_large_room_has_not_been_sent_yet_is_sent_before_the_close(window: float) -> None:
    async def main() -> None:
        app = SocketApp(drain_window=window)
        async with TestClient(app) as client:
            readers = [asyncio.create_task(read(await client.connect())) for _ in range(1500)]
            await asyncio.sleep(0)
            for number in range(100):
                await app.rooms.broadcast_all("number", {"n": number})
            await app.drain()
            for reader in readers:
                messages, _, _ = await reader
                numbers = [message["payload"]["n"] for message in messages if message["event"] == "number"]
                assert numbers == list(range(100))

    in_virtual_time(main)()


def test_a_connection_that_opens_when_the_last_one_has_left_does_not_hold_up_the_loop() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=10)
        handshake = Handshake(path="/ws", headers=Headers([]), query_params=QueryParams([]))
        async with TestClient(app) as client:
            engine = await running(app)
            admission = await engine.admit(handshake)  # a moment before the drain
            connections = [await client.connect() for _ in range(300)]
            draining = asyncio.create_task(app.drain())
            await asyncio.sleep(1)
            closing = [asyncio.create_task(conn.close()) for conn in connections]
            await engine.directory.emptied.wait()
            transport = _Silent()
            await engine.open(admission, handshake, transport)
            assert transport.closed == 1012
            async with asyncio.timeout(1):
                assert await draining == 300
            await asyncio.gather(*closing)

    in_virtual_time(main)()


class _Silent:
    """A transport of which only the close matters."""

    can_ping = False
    buffered = 0
    closed = 0

    def __init__(self) -> None:
        self.on_slow: Callable[[], None] = self.abort

    def write(self, *messages: object) -> None: ...

    async def drain(self) -> None: ...

    def ping(self) -> None: ...

    def abort(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.closed = code


def test_every_call_joins_the_same_drain_and_the_stop_finds_it_done() -> None:
    async def main() -> None:
        app = SocketApp(drain_window=1, backend="memory")
        async with TestClient(app) as client:
            readers = [asyncio.create_task(read(await client.connect())) for _ in range(20)]
            engine = await running(app)
            assert engine in engines.engines()
            engines.drain_soon()
            engines.drain_soon()
            assert set(await asyncio.gather(app.drain(), app.drain(window=0), engines.drain())) == {20}
            ended = now()
            await asyncio.gather(app.stop(), app.stop())
            assert now() - ended < INSTANT
            assert ended == pytest.approx(1, abs=TICK)
            assert engine not in engines.engines()
            for reader in readers:
                messages, _, _ = await reader
                assert len(messages) == 1, "one goodbye"

    in_virtual_time(main)()


async def started(app: SocketApp) -> Engine:
    engine = await running(app)
    assert engine in engines.everywhere()
    return engine


def test_an_engine_whose_loop_ended_without_a_stop_is_read_no_more_and_let_go_at_the_next_start() -> None:
    ended = asyncio.run(started(SocketApp()))
    assert ended not in engines.everywhere()
    kept = weakref.ref(ended)
    del ended
    engines.remove(asyncio.run(started(SocketApp())))
    gc.collect()
    assert kept() is None


async def ask(app: SocketApp, method: str = "GET", authorization: str | None = "Bearer s3cret") -> Response:
    """What the drain's path answers."""
    headers = Headers([] if authorization is None else [("Authorization", authorization)])
    response = await app.pages.respond(method, "/drain", headers, QueryParams([]))
    assert response is not None
    return response


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_drain_path_answers_when_the_last_connection_has_left(method: str) -> None:
    async def main() -> None:
        app = SocketApp(drain_window=1, drain_url="/drain", drain_token="s3cret")
        async with TestClient(app) as client:
            readers = [asyncio.create_task(read(await client.connect())) for _ in range(20)]
            answers = await asyncio.gather(ask(app, method), ask(app, method))
            assert now() == pytest.approx(1, abs=TICK)
            assert [(answer.status, json.loads(answer.body)) for answer in answers] == [(200, {"drained": 20})] * 2
            await asyncio.gather(*readers)
            health = await app.pages.respond("GET", "/socket-health", Headers([]), QueryParams([]))
            assert health is not None
            assert (health.status, json.loads(health.body)["status"]) == (503, "stopping")

    in_virtual_time(main)()


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer S3cret", "Basic s3cret", "s3cret"])
async def test_without_its_token_the_drain_path_does_nothing(authorization: str | None) -> None:
    app = SocketApp(drain_url="/drain", drain_token="s3cret")
    async with TestClient(app) as client:
        await client.connect()
        assert (await ask(app, authorization=authorization)).status == 401
        engine = await running(app)
        assert not engine.stopping


async def test_the_drain_path_takes_no_other_method() -> None:
    app = SocketApp(drain_url="/drain", drain_token="s3cret")
    async with TestClient(app):
        answer = await ask(app, "DELETE")
        assert (answer.status, answer.extra["allow"]) == (405, "GET, POST")


async def test_without_drain_url_there_is_no_such_path() -> None:
    assert await SocketApp().pages.respond("GET", "/drain", Headers([]), QueryParams([])) is None


@pytest.mark.parametrize("token", [None, ""])
def test_a_drain_path_without_a_token_is_refused(token: str | None) -> None:
    with pytest.raises(ConfigurationError, match="drain_token"):
        SocketApp(drain_url="/drain", drain_token=token)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "10"])
@pytest.mark.parametrize("option", ["drain_window", "drain_grace"])
def test_seconds_that_cannot_be_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        SocketApp(**{option: value})
