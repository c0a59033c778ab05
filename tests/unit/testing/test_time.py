"""Time that a test moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from socketspec import History, Room, SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.backend.memory import MemoryBackend
from socketspec.security.auth import JWTAuth
from socketspec.security.ratelimit import RateLimit
from socketspec.session import SessionConfig
from socketspec.testing import ConnectionClosed, EventFailed, TestClient
from tests.engines import running
from tests.unit.testing.apps import ADA, shop

SECRET = "a secret that is long enough for HS256"
HOUR = SessionConfig(max_duration=3600, idle_timeout=600)


def itself(socket: SocketApp) -> SocketApp:
    return socket


WAYS = pytest.mark.parametrize("served", [itself, ASGIApp])


async def ends(conn: Any) -> tuple[list[str], int]:
    """The events that still come, and the close code."""
    events: list[str] = []
    while True:
        try:
            events.append((await conn.receive())["event"])
        except ConnectionClosed as closed:
            return events, closed.code


@WAYS
async def test_a_session_is_warned_and_ends_and_cannot_be_gone_on_with(served: Callable[[SocketApp], Any]) -> None:
    async with TestClient(served(SocketApp(session=SessionConfig(max_duration=3600)))) as client:
        conn = await client.connect(format="json", client=("10.0.0.1", 1))
        session = (await conn.receive())["payload"]["session"]
        await client.advance(3500)
        await conn.assert_nothing()
        await client.advance(100)
        events, code = await ends(conn)
        assert [event for event in events if event != "__ping__"] == ["__session_expiring__", "__error__"]
        assert code == 4002
        again = await client.connect(query_params={"session": session})
        with pytest.raises(EventFailed, match="SESSION_EXPIRED"):
            await again.receive(dict)


@WAYS
async def test_an_idle_client_is_warned_first(served: Callable[[SocketApp], Any]) -> None:
    async with TestClient(served(shop(session=HOUR))) as client:
        conn = await client.connect(identity=ADA)
        await client.advance(500)
        await conn.request("whoami")
        await client.advance(590)
        assert 0 < (await conn.expect("__idle_warning__"))["expires_in"] <= 30
        await client.advance(10)
        assert await ends(conn) == (["__error__"], 4003)


@WAYS
async def test_heartbeats_are_answered_unless_the_client_has_fallen_silent(served: Callable[[SocketApp], Any]) -> None:
    async with TestClient(served(SocketApp())) as client:
        conn = await client.connect(format="msgpack")
        dead = await client.connect(format="json", answer_pings=False)
        await client.advance(24)
        assert not dead.is_closed
        await client.advance(12)
        assert await ends(dead) == (["__connect__", "__ping__"], 4004)
        await client.advance(500)
        assert not conn.is_closed
        await conn.assert_nothing()


@pytest.mark.parametrize("scope", ["connection", "ip"])
async def test_a_rate_limit_refills(scope: Any) -> None:
    limit = RateLimit(rate=0.1, capacity=1, scope=scope)
    async with TestClient(shop(rate_limit=limit)) as client, client.connect(identity=ADA) as conn:
        await conn.request("whoami")
        with pytest.raises(EventFailed, match="RATE_LIMIT_ERROR"):
            await conn.request("whoami")
        await client.advance(9)
        with pytest.raises(EventFailed, match="RATE_LIMIT_ERROR"):
            await conn.request("whoami")
        await client.advance(1)
        assert await conn.request("whoami") == {"user": "ada"}


async def test_a_connections_token_expires_and_a_new_one_is_taken() -> None:
    def token() -> str:
        return jwt.encode({"sub": "ada", "exp": int(time.time()) + 120}, SECRET)

    async with TestClient(SocketApp(auth=JWTAuth(secret=SECRET))) as client:
        conn = await client.connect(token=token())
        await client.advance(70)
        await conn.expect("__auth_expiring__")
        await conn.request("__refresh_auth__", {"token": token()})
        await client.advance(100)
        assert not conn.is_closed
        await client.advance(30)
        assert (await ends(conn))[1] == 4001


async def test_histories_grow_old() -> None:
    socket = SocketApp(rooms=[Room("news", history=History(size=5, ttl=60))])
    async with TestClient(socket) as client:
        await socket.rooms.broadcast("news", "said")
        await client.advance(50)
        assert len(await socket.rooms.history("news")) == 1
        await client.advance(11)
        assert await socket.rooms.history("news") == []


async def test_what_cannot_be_moved_says_why() -> None:
    socket = SocketApp(backend="redis://127.0.0.1:1")
    client = TestClient(SocketApp())
    with pytest.raises(RuntimeError, match="enter the client first"):
        await client.advance(1)
    async with TestClient(SocketApp()) as entered:
        with pytest.raises(ValueError, match="0 or more"):
            await entered.advance(-1)
        await entered.advance(0)
    started = SocketApp()
    await running(started)
    async with TestClient(started) as late:
        with pytest.raises(RuntimeError, match="that this TestClient has started"):
            await late.advance(1)
    assert socket.clock is None


class Elsewhere:
    """A backend without time of its own to move, as a server's."""

    shared = True

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "advance":
            raise AttributeError(name)
        return getattr(self._inner, name)


async def test_the_time_of_a_server_stays_and_the_error_says_what_to_do() -> None:
    async with TestClient(SocketApp(backend=Elsewhere(MemoryBackend()))) as client:
        with pytest.raises(RuntimeError, match=r"this app has a Elsewhere\. .*SOCKETSPEC_BACKEND=memory"):
            await client.advance(1)
