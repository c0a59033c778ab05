"""Heartbeats, warnings and ends of connections, each at its second. In virtual time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from socketspec import Identity, SocketApp
from socketspec.protocol.handshake import Handshake
from socketspec.session import SessionConfig
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.carriers import Carrier, opened
from tests.virtual_time import in_virtual_time

V1 = ["socketspec.v1.json"]


class ByToken:
    """The token says in how many seconds it expires; it may come as the first message."""

    first_message = True

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        token = handshake.token or handshake.query_params.get("token")
        if token is None:
            return None
        return Identity(user_id="ada", token_expires_at=time.time() + float(token))


def now() -> float:
    return asyncio.get_running_loop().time()


async def all_of(conn: TestConnection) -> list[tuple[int, Any]]:
    """Everything that comes, the end included, each with its second from now; no reply is sent to pings."""
    began, got = now(), list[tuple[int, Any]]()
    while True:
        try:
            message = await conn.receive(timeout=10_000)
        except ConnectionClosed as closed:
            return [*got, (round(now() - began), (closed.code, closed.reason))]
        payload = message["payload"]
        got.append((round(now() - began), (message["event"], payload.get("expires_in", payload.get("code")))))


@in_virtual_time
async def test_a_client_without_credentials_has_so_long_for_its_first_message() -> None:
    async with TestClient(SocketApp(auth=ByToken(), auth_timeout=7)) as client:
        conn = await client.connect()
        assert await all_of(conn) == [(7, ("__error__", "AUTH_ERROR")), (7, (4001, "auth_error"))]


@in_virtual_time
async def test_who_authenticated_in_time_stays() -> None:
    async with TestClient(SocketApp(auth=ByToken(), auth_timeout=7)) as client:
        conn = await client.connect()
        await asyncio.sleep(6)
        await conn.send("__refresh_auth__", {"token": "1000000"}, id=1)
        assert (await conn.receive())["event"] == "__ack__"
        await asyncio.sleep(1000)
        assert conn.connection.is_open


@in_virtual_time
@pytest.mark.parametrize("subprotocols", [[], V1])
async def test_a_silent_client_is_pinged_and_then_closed(subprotocols: list[str]) -> None:
    config = SessionConfig(heartbeat_interval=20, heartbeat_timeout=5)
    async with TestClient(SocketApp(session=config)) as client:
        conn = await client.connect(subprotocols=subprotocols, answer_pings=False)
        if subprotocols:
            assert (await conn.receive())["payload"]["heartbeat"]["interval"] == 20
        assert await all_of(conn) == [(20, ("__ping__", None)), (25, (4004, "heartbeat_timeout"))]


@in_virtual_time
async def test_a_client_that_answers_pings_stays() -> None:
    async with TestClient(SocketApp(session=SessionConfig(heartbeat_interval=20, heartbeat_timeout=5))) as client:
        conn = await client.connect()
        for _ in range(5):
            began = now()
            assert (await conn.receive(timeout=100))["event"] == "__ping__"
            assert now() - began == pytest.approx(20, abs=0.06)  # the wheel's ticks
            await asyncio.sleep(4)
            await conn.send("__pong__")


@in_virtual_time
@pytest.mark.parametrize(("can_ping", "pings"), [(True, 1), (False, 0)])
async def test_a_plain_client_is_pinged_by_frames_or_not_at_all(can_ping: bool, pings: int) -> None:
    app, carrier = SocketApp(), Carrier(can_ping=can_ping)
    async with app.lifespan():
        conn = await opened(app, carrier)
        await asyncio.sleep(24)
        assert carrier.pings == 0
        await asyncio.sleep(2)
        assert carrier.pings == pings
        await asyncio.sleep(10)
        assert conn.is_open is (pings == 0)
        assert carrier.closed == ((4004, "heartbeat_timeout") if pings else None)
        assert carrier.events == [], "no message that it did not cause"
        await conn.disconnect()


@in_virtual_time
async def test_a_client_that_we_do_not_read_from_is_not_taken_for_silent() -> None:
    app, carrier = SocketApp(), Carrier(can_ping=True)
    async with app.lifespan():
        conn = await opened(app, carrier)
        conn.held = True  # an adapter says so while it does not read
        await asyncio.sleep(200)
        assert conn.is_open
        conn.held = False
        await asyncio.sleep(50)
        assert carrier.closed == (4004, "heartbeat_timeout")


@in_virtual_time
async def test_a_client_that_does_nothing_is_warned_and_then_closed() -> None:
    async with TestClient(SocketApp(session=SessionConfig(idle_timeout=100, idle_warning=30))) as client:
        conn = await client.connect()
        assert await all_of(conn) == [
            (70, ("__idle_warning__", pytest.approx(30, abs=0.49))),
            (100, ("__error__", "IDLE_TIMEOUT")),
            (100, (4003, "idle_timeout")),
        ]


@in_virtual_time
async def test_a_session_ends_after_a_warning() -> None:
    async with TestClient(SocketApp(session=SessionConfig(max_duration=100, expiry_warning=20))) as client:
        conn = await client.connect()
        assert await all_of(conn) == [
            (80, ("__session_expiring__", pytest.approx(20, abs=0.49))),
            (100, ("__error__", "SESSION_EXPIRED")),
            (100, (4002, "max_duration")),
        ]


@in_virtual_time
async def test_a_token_expires_after_a_warning() -> None:
    config = SessionConfig(token_refresh_window=60)
    async with TestClient(SocketApp(auth=ByToken(), session=config)) as client:
        conn = await client.connect(query_params={"token": "100"})
        assert await all_of(conn) == [
            (40, ("__auth_expiring__", pytest.approx(60, abs=0.49))),
            (100, ("__error__", "AUTH_EXPIRED")),
            (100, (4001, "auth_expired")),
        ]


@in_virtual_time
async def test_a_newer_token_moves_the_end_and_is_warned_of_anew() -> None:
    async with TestClient(SocketApp(auth=ByToken(), session=SessionConfig(token_refresh_window=60))) as client:
        conn = await client.connect(query_params={"token": "100"})
        await asyncio.sleep(90)
        assert (await conn.receive())["event"] == "__auth_expiring__"
        # The wall clock stands still here: what the token calls a hundred seconds from now is at 190.
        await conn.send("__refresh_auth__", {"token": "100"})
        assert (await conn.receive())["event"] == "__ack__"
        assert await all_of(conn) == [
            (40, ("__auth_expiring__", pytest.approx(60, abs=0.49))),
            (100, ("__error__", "AUTH_EXPIRED")),
            (100, (4001, "auth_expired")),
        ]


@in_virtual_time
async def test_a_newer_token_that_ends_sooner_is_gone_by_too() -> None:
    async with TestClient(SocketApp(auth=ByToken(), session=SessionConfig(token_refresh_window=1))) as client:
        conn = await client.connect(query_params={"token": "10000"})
        await conn.send("__refresh_auth__", {"token": "50"})
        await conn.receive()
        assert [second for second, _ in await all_of(conn)] == [49, 50, 50]


@in_virtual_time
@pytest.mark.parametrize("seconds", [5.25, 0.75])
async def test_a_warning_that_comes_late_says_what_is_left(seconds: float) -> None:
    async with TestClient(SocketApp(auth=ByToken(), session=SessionConfig(token_refresh_window=60))) as client:
        conn = await client.connect(query_params={"token": str(seconds)})
        (_, first), *_ = await all_of(conn)
        assert first == ("__auth_expiring__", pytest.approx(seconds, abs=0.24))


@in_virtual_time
async def test_a_warning_tells_milliseconds() -> None:
    async with TestClient(SocketApp(session=SessionConfig(idle_timeout=10 / 3, idle_warning=1 / 3))) as client:
        conn = await client.connect()
        payload = (await conn.receive())["payload"]
        assert payload["expires_in"] == round(payload["expires_in"], 3) == pytest.approx(1 / 3, abs=0.15)


@in_virtual_time
async def test_a_newer_token_does_not_bring_the_warning_of_the_sessions_end_again() -> None:
    config = SessionConfig(max_duration=100, expiry_warning=40, token_refresh_window=1)
    async with TestClient(SocketApp(auth=ByToken(), session=config)) as client:
        conn = await client.connect(query_params={"token": "10000"})
        await asyncio.sleep(80)
        assert (await conn.receive())["event"] == "__session_expiring__"
        await conn.send("__refresh_auth__", {"token": "10000"})
        assert (await conn.receive())["event"] == "__ack__"
        assert [second for second, _ in await all_of(conn)] == [20, 20]
