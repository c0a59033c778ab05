"""What becomes of each message of a client: how it is measured, counted, limited and timed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from socketspec import Connection, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryLimits
from socketspec.security.ratelimit import RateLimit
from socketspec.session import SessionConfig
from socketspec.testing import ConnectionClosed, TestClient
from tests.backends import SharedBackend
from tests.engines import running
from tests.items import counted, error_of, make_app
from tests.virtual_time import in_virtual_time

# Counting


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ('{"event":"item","payload":{"n":0}}', ("item", "ok")),
        ('{"event":"item","payload":{"n":1}}', ("item", "refused")),
        ('{"event":"item","payload":{"n":2}}', ("item", "error")),
        ('{"event":"item","payload":{"n":"x"}}', ("item", "invalid")),
        ('{"event":"item","payload":{"n":13}}', ("item", "error")),
        ('{"event":"nobody"}', ("unknown", "unknown")),
        ('{"event":"__nobody__"}', ("unknown", "unknown")),
        ('{"event":"__ping__"}', ("__ping__", "ok")),
        ("{", ("unknown", "malformed")),
        ('{"event":"item","payload":{"n":0,"x":"' + "x" * 200 + '"}}', ("unknown", "too_large")),
    ],
)
async def test_each_message_is_counted_once_by_event_and_outcome(frame: str, expected: tuple[str, str]) -> None:
    app = make_app(max_payload_size=200)
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send_raw(frame)
        await asyncio.sleep(0)
        assert await counted(app) == {expected: 1}
        engine = await running(app)
        assert engine.counters.received_bytes == len(frame)
        timed = expected[0] == "item" and "invalid" not in expected and "13" not in frame
        assert [sum(histogram.counts) for histogram in engine.counters.handler_seconds.values()] == [1] * timed


@pytest.mark.parametrize("backend", [MemoryBackend, SharedBackend])
async def test_a_rate_limited_message_is_counted_as_one(backend: type[MemoryBackend]) -> None:
    app = make_app(backend=backend(), rate_limit=RateLimit(0.001, 1, scope="ip"))
    async with TestClient(app) as client:
        conn = await client.connect()
        for _ in range(3):
            await conn.send("item", {"n": 0})
        await asyncio.sleep(0)
        assert await counted(app) == {("item", "ok"): 1, ("unknown", "rate_limited"): 2}
        assert (await running(app)).counters.rate_limited == 2


@in_virtual_time
async def test_the_time_a_handler_takes_is_measured() -> None:
    app = SocketApp()

    @app.on("slow")
    async def slow(conn: Connection) -> None:
        await asyncio.sleep(3)

    async with TestClient(app) as client:
        conn = await client.connect()
        await asyncio.sleep(50)
        await conn.send("slow", id=1)
        await conn.receive()
        engine = await running(app)
        assert engine.counters.handler_seconds["slow"].sum == pytest.approx(3)


# Size


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("x" * 49, True),
        ("x" * 50, False),
        ("é" * 24 + "x", True),
        ("é" * 25, False),
        ("é" * 49, False),
        ("😀" * 12 + "x", True),
        ("😀" * 13, False),
    ],
)
async def test_a_message_is_measured_in_bytes(text: str, allowed: bool) -> None:
    app = make_app(max_payload_size=100)
    frame = f'{{"event":"item","payload":{{"n":0}},"id":"{text}"}}'
    rest = 100 - len(frame.encode()) + len(text.encode()) - 49
    frame += " " * rest  # 100 bytes, where the text has 49
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send_raw(frame)
        if allowed:
            assert await conn.receive() == {"event": "__ack__", "payload": {}, "id": text}
        else:
            error = await error_of(conn)
            assert (error["code"], error["event"], error["id"]) == ("PAYLOAD_TOO_LARGE", None, None)
            assert error["details"] == {"max_payload_size": 100}
            assert "100 bytes" in error["message"]


@pytest.mark.parametrize(("length", "allowed"), [(100, True), (101, False)])
async def test_packed_messages_are_measured_as_they_are(length: int, allowed: bool) -> None:
    app = make_app(max_payload_size=100)
    envelope = {"event": "item", "payload": {"n": 0}, "id": "é" * 24}
    frame: Any = msgpack.packb(envelope)
    frame = frame if length == len(frame) else msgpack.packb(envelope | {"id": "é" * 24 + "x" * (length - len(frame))})
    assert len(frame) == length
    async with TestClient(app) as client:
        conn = await client.connect(subprotocols=["socketspec.v1.msgpack"])
        await conn.send_raw(frame)
        await conn.receive_event("__ack__" if allowed else "__error__", timeout=1)


# Limits


class Limits(MemoryLimits):
    """Shared limits with an answer that the test chose."""

    def __init__(self, answer: float) -> None:
        super().__init__(lambda: 0.0)
        self.answer = answer

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        return self.answer


@pytest.mark.parametrize("wait", [0.0004, 0.5, 2.34567])
async def test_any_wait_is_a_refusal_and_is_told_in_milliseconds(wait: float) -> None:
    app = make_app(backend=SharedBackend(Limits(wait)), rate_limit=RateLimit(10, 10, scope="ip"))
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("item", {"n": 0}, id=1)
        error = await error_of(conn)
        assert (error["code"], error["event"], error["id"]) == ("RATE_LIMIT_ERROR", None, None)
        assert error["details"] == {"retry_after": round(wait, 3)}


async def test_a_wait_of_less_than_a_second_is_a_refusal_here_too() -> None:
    async with TestClient(make_app(rate_limit=RateLimit(2, 1))) as client:
        conn = await client.connect()
        await conn.send("item", {"n": 0})
        await conn.send("item", {"n": 0})
        assert 0 < (await error_of(conn))["details"]["retry_after"] <= 0.5


@pytest.mark.parametrize("shared", [False, True])
async def test_who_goes_on_and_on_is_told_why_and_closed(shared: bool) -> None:
    backend = SharedBackend(Limits(1.0)) if shared else MemoryBackend()
    limit = RateLimit(0.001, 1, scope="ip", max_violations=2)
    async with TestClient(make_app(backend=backend, rate_limit=limit)) as client:
        conn = await client.connect()
        for _ in range(3 if shared else 4):
            await conn.send("item", {"n": "no ack"})
        codes = [(await error_of(conn))["code"] for _ in range(3 if shared else 4)]
        assert codes == ["VALIDATION_ERROR"] * (not shared) + ["RATE_LIMIT_ERROR"] * 3
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert closed.value.code == 4007


@in_virtual_time
async def test_a_shared_limit_that_answers_late_judges_abuse_by_the_time_then() -> None:
    class Late(Limits):
        async def take(self, key: str, *, rate: float, capacity: float) -> float:
            await asyncio.sleep(10)
            return 1.0

    limit = RateLimit(0.1, 1, scope="ip", max_violations=1)
    async with TestClient(make_app(backend=SharedBackend(Late(1.0)), rate_limit=limit)) as client:
        conn = await client.connect()
        for _ in range(5):  # one every ten seconds is forgotten when the next one comes
            await conn.send("item", {"n": 0})
            assert (await error_of(conn))["code"] == "RATE_LIMIT_ERROR"
        assert conn.connection.is_open


# Activity


@in_virtual_time
async def test_any_message_keeps_the_heartbeat_away() -> None:
    app = make_app(session=SessionConfig(heartbeat_interval=10, heartbeat_timeout=5))
    async with TestClient(app) as client:
        conn = await client.connect(answer_pings=False)
        for frame in ['{"event":"item","payload":{"n":0}}', "{", '{"event":"__pong__"}'] * 4:
            await asyncio.sleep(9)
            await conn.send_raw(frame)
        assert conn.connection.is_open
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive_event("what never comes", timeout=100)
        assert closed.value.code == 4004


@in_virtual_time
@pytest.mark.parametrize(
    ("frame", "counts"),
    [
        ('{"event":"item","payload":{"n":0}}', True),
        ('{"event":"item","payload":{"n":"x"}}', True),
        ('{"event":"nobody"}', True),
        ('{"event":"__ping__"}', False),
        ('{"event":"__pong__"}', False),
        ("{", False),
    ],
)
async def test_events_are_activity_and_heartbeats_are_not(frame: str, counts: bool) -> None:
    app = make_app(session=SessionConfig(idle_timeout=10, idle_warning=0))
    async with TestClient(app) as client:
        conn = await client.connect()
        for _ in range(3):
            await asyncio.sleep(9)
            if conn.connection.is_open:
                await conn.send_raw(frame)
        assert conn.connection.is_open is counts
