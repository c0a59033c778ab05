"""Messages that are refused unread cost what others cost: tokens, and in the end the connection."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from socketspec import Connection, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.engines import running

TOO_LARGE = "x" * 70_000


class SharedBackend(MemoryBackend):
    """The memory backend, taken for one that nodes share: limits are asked of it."""

    shared = True


async def flood(conn: TestConnection, message: str, count: int) -> list[str]:
    """Send `message` so many times; the codes of the errors that came, the close code last."""
    for _ in range(count):
        await conn.send_raw(message)
    codes: list[str] = []
    while True:
        try:
            codes.append((await conn.receive(timeout=0.2))["payload"]["code"])
        except ConnectionClosed as closed:
            return [*codes, str(closed.code)]
        except TimeoutError:
            return codes


@pytest.mark.parametrize("scope", ["connection", "ip"])
@pytest.mark.parametrize("backend", [MemoryBackend, SharedBackend])
async def test_messages_that_are_too_large_are_limited_and_close_in_the_end(
    backend: type[MemoryBackend], scope: Any
) -> None:
    limit = RateLimit(0.001, 3, scope=scope, max_violations=10)
    async with TestClient(SocketApp(backend=backend(), rate_limit=limit)) as client:
        conn = await client.connect()
        codes = await flood(conn, TOO_LARGE, 50)
        assert codes == ["PAYLOAD_TOO_LARGE"] * 3 + ["RATE_LIMIT_ERROR"] * 8 + ["4007"]


async def test_every_refusal_is_a_violation_also_of_a_message_that_is_too_large_now_and_then() -> None:
    limit = RateLimit(0.001, 1000, max_violations=10)
    async with TestClient(SocketApp(rate_limit=limit)) as client:
        conn = await client.connect()
        assert await flood(conn, TOO_LARGE, 50) == ["PAYLOAD_TOO_LARGE"] * 11 + ["4007"]


async def test_without_a_rate_limit_a_message_that_is_too_large_is_answered_and_nothing_more() -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        assert await flood(conn, TOO_LARGE, 200) == ["PAYLOAD_TOO_LARGE"] * 200


class Slow(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def _take_long(cls, text: str) -> str:
        end = asyncio.get_running_loop().time() + 0.002
        while asyncio.get_running_loop().time() < end:
            pass
        return text


@pytest.mark.parametrize(("size", "gives_way"), [(2000, True), (50, False)])
async def test_after_a_costly_message_the_event_loop_gets_a_turn(size: int, gives_way: bool) -> None:
    app = SocketApp()
    turns: list[int] = []

    def turn(number: int) -> None:
        turns.append(number)
        if number < 100:
            asyncio.get_running_loop().call_soon(turn, number + 1)

    @app.on("slow")
    async def slow(conn: Connection, payload: Slow) -> None: ...

    async with TestClient(app) as client:
        engine = await running(app)
        conn = await client.connect()
        message = json.dumps({"event": "slow", "payload": {"text": "x" * size}})
        asyncio.get_running_loop().call_soon(turn, 1)
        pending = engine.receive(conn.connection, message, binary=False)
        assert (pending is not None) is gives_way
        if pending is not None:
            await pending
            assert turns == [1]


async def test_many_messages_that_cost_less_give_way_too() -> None:
    app = SocketApp()

    @app.on("text")
    async def text(conn: Connection, payload: dict[str, Any]) -> None: ...

    async with TestClient(app) as client:
        engine = await running(app)
        conn = await client.connect()
        message = json.dumps({"event": "text", "payload": {"text": "x" * 2000}})
        conn.connection.spent = 0.00099
        taken = 0
        while (pending := engine.receive(conn.connection, message, binary=False)) is None:
            taken += 1
            assert taken < 1000
        await pending
        assert conn.connection.spent == 0.0


async def test_a_large_message_that_is_quick_costs_no_turn() -> None:
    app = SocketApp()

    @app.on("text")
    async def text(conn: Connection, payload: dict[str, Any]) -> None: ...

    async with TestClient(app) as client:
        engine = await running(app)
        conn = await client.connect()
        message = json.dumps({"event": "text", "payload": {"text": "x" * 5000}})
        pendings = [engine.receive(conn.connection, message, binary=False) for _ in range(10)]
        assert None in pendings
        for pending in pendings:  # a disturbed machine may have been slow once
            if pending is not None:
                await pending
