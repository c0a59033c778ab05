"""An event that had to wait is not handled when its connection was closed meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.backend.memory import MemoryLimits
from socketspec.protocol.handshake import Handshake
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import TestClient, TestConnection
from tests.backends import SharedBackend


class SlowLimits(MemoryLimits):
    """Limits that other nodes share: an answer takes until the test lets it through."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        self.asked.set()
        await self.answer.wait()
        return 0.0


async def end(conn: TestConnection, how: str) -> None:
    if how == "by the server":
        await conn.connection.disconnect()
    else:
        await conn.close()


@pytest.mark.parametrize("how", ["by the server", "by the client"])
async def test_what_waited_for_the_shared_limit_of_a_closed_connection_is_not_handled(how: str) -> None:
    limits = SlowLimits()
    app = SocketApp(backend=SharedBackend(limits), rate_limit=RateLimit(10, 10, scope="ip"))
    handled: list[str] = []

    @app.on("act")
    async def act(conn: Connection) -> None:
        handled.append(conn.id)

    async with TestClient(app) as client:
        conn, other = await client.connect(), await client.connect()
        waiting = [asyncio.create_task(each.send("act", id=1)) for each in (conn, other)]
        await limits.asked.wait()
        await end(conn, how)
        limits.answer.set()
        await asyncio.gather(*waiting)
        assert (await other.receive())["event"] == "__ack__"
    assert handled == [other.id]


async def test_a_token_that_waited_for_the_shared_limit_of_a_closed_connection_is_not_looked_at() -> None:
    limits, tokens = SlowLimits(), list[str | None]()

    class Auth:
        async def authenticate(self, handshake: Handshake) -> Identity:
            tokens.append(handshake.token)
            return Identity(user_id="ada")

    app = SocketApp(backend=SharedBackend(limits), auth=Auth(), rate_limit=RateLimit(10, 10, scope="ip"))
    async with TestClient(app) as client:
        conn = await client.connect()
        waiting = asyncio.create_task(conn.send("__refresh_auth__", {"token": "newer"}))
        await limits.asked.wait()
        await conn.connection.disconnect()
        limits.answer.set()
        await waiting
    assert tokens == [None]


@pytest.mark.parametrize("how", ["by the server", "by the client"])
async def test_what_waited_for_a_free_slot_of_a_closed_connection_is_not_handled(how: str) -> None:
    app = SocketApp(max_in_flight=1)
    began: list[int] = []
    free = asyncio.Event()

    @app.on("act")
    async def act(conn: Connection, payload: dict[str, int]) -> None:
        began.append(payload["n"])
        await free.wait()

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("act", {"n": 1})
        waiting = asyncio.create_task(conn.send("act", {"n": 2}))
        await asyncio.sleep(0)
        assert not waiting.done()
        await end(conn, how)
        free.set()
        await waiting
    assert began == [1]
