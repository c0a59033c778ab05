"""Limits of events and routers: who shares which bucket, and what a client is told."""

from __future__ import annotations

from typing import Any

import pytest

from socketspec import Connection, EventRouter, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.backends import SharedBackend
from tests.engines import engine_of


async def handler(conn: Connection) -> None: ...


async def ask(conn: TestConnection, event: str) -> dict[str, Any]:
    await conn.send(event, {}, id=1)
    answer: dict[str, Any] = await conn.receive()
    return answer


async def codes(conn: TestConnection, *events: str) -> list[str]:
    return [(await ask(conn, event))["payload"].get("code", "ok") for event in events]


SLOW = RateLimit(0.001, 2)
REFUSED = "RATE_LIMIT_ERROR"


@pytest.mark.parametrize("backend", [MemoryBackend, SharedBackend])
async def test_events_of_a_router_share_a_bucket_and_an_event_has_its_own(backend: type[MemoryBackend]) -> None:
    scope: Any = "ip"
    limit = RateLimit(0.001, 2, scope=scope)
    socket = SocketApp(backend=backend())
    router = EventRouter(prefix="a.", rate_limit=limit)
    other = EventRouter(prefix="b.", rate_limit=limit)
    router.on("one")(handler)
    router.on("two")(handler)
    other.on("one")(handler)
    socket.on("own", rate_limit=limit)(handler)
    socket.on("free")(handler)
    socket.include_router(router)
    socket.include_router(other)
    async with TestClient(socket) as client:
        conn = await client.connect()
        assert await codes(conn, "a.one", "a.two", "a.one", "a.two") == ["ok", "ok", REFUSED, REFUSED]
        assert await codes(conn, "b.one", "b.one", "b.one") == ["ok", "ok", REFUSED]
        assert await codes(conn, "own", "own", "own", "free") == ["ok", "ok", REFUSED, "ok"]
        another = await client.connect()
        assert await codes(another, "own") == [REFUSED]


async def test_a_refusal_names_the_event_its_id_and_when_to_try_again() -> None:
    socket = SocketApp()
    socket.on("x", rate_limit=RateLimit(0.5, 1))(handler)
    async with TestClient(socket) as client:
        conn = await client.connect()
        await ask(conn, "x")
        answer = await ask(conn, "x")
        assert (await codes(await client.connect(), "x")) == ["ok"]
        assert engine_of(socket).counters.events["x", "rate_limited"] == engine_of(socket).counters.rate_limited == 1
    payload = answer["payload"]
    assert (answer["event"], answer["id"], payload["event"]) == ("__error__", 1, "x")
    assert 1.0 < payload["details"]["retry_after"] <= 2.0


async def test_routers_event_and_app_all_have_to_let_an_event_pass() -> None:
    socket = SocketApp(rate_limit=RateLimit(0.001, 5))
    router = EventRouter(rate_limit=RateLimit(0.001, 3))
    router.on("x", rate_limit=RateLimit(0.001, 1))(handler)
    router.on("y")(handler)
    socket.on("z")(handler)
    socket.include_router(router)
    async with TestClient(socket) as client:
        conn = await client.connect()
        assert await codes(conn, "x", "x", "y", "y", "z", "z") == ["ok", REFUSED, "ok", REFUSED, "ok", REFUSED]


async def test_a_client_that_goes_on_is_closed_as_by_the_apps_limit() -> None:
    socket = SocketApp()
    socket.on("x", rate_limit=RateLimit(0.001, 1, max_violations=2))(handler)
    async with TestClient(socket) as client:
        conn = await client.connect()
        assert await codes(conn, "x", "x", "x") == ["ok", REFUSED, REFUSED]
        assert await codes(conn, "x") == [REFUSED]
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
    assert closed.value.code == 4007


@pytest.mark.parametrize("backend", [MemoryBackend, SharedBackend])
async def test_a_scope_function_that_fails_is_a_failure_of_the_event(backend: type[MemoryBackend]) -> None:
    def scope(conn: Connection) -> str:
        raise KeyError("tenant")

    socket = SocketApp(backend=backend())
    socket.on("x", rate_limit=RateLimit(1, 1, scope=scope))(handler)
    async with TestClient(socket) as client:
        assert await codes(await client.connect(), "x") == ["HANDLER_ERROR"]


@pytest.mark.parametrize(
    ("text", "rate", "capacity"),
    [("5/s", 5, 5), ("120/minute", 2, 120), ("7200 per hour", 2, 7200), ("30/m", 0.5, 30), ("1/second", 1, 1)],
)
def test_a_limit_may_be_a_text(text: str, rate: float, capacity: float) -> None:
    socket = SocketApp(rate_limit=text)
    assert socket.settings.rate_limit == RateLimit(rate, capacity)
