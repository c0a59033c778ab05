"""Hooks and handlers that end in unusual ways: cancelled from within, closing what they are opening, refusing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
import pytest

from socketspec import Broadcasts, Connection, Emits, SocketApp
from socketspec.connection.outbox import Backpressure, Outbox, Overflow
from socketspec.errors import ConfigurationError, PermissionDenied
from socketspec.lifecycle.deadlines import due
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.security.auth import JWTAuth
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.carriers import account
from tests.engines import engine_of

SECRET = "a secret that is long enough for HS256"


async def await_something_cancelled() -> None:
    inner = asyncio.ensure_future(asyncio.sleep(9))
    await asyncio.sleep(0)
    inner.cancel()
    await inner


async def closing_code(conn: TestConnection) -> int:
    try:
        while True:
            await conn.receive()
    except ConnectionClosed as ended:
        return ended.code


async def test_a_handler_cancelled_from_within_is_answered_and_reported() -> None:
    socket = SocketApp()
    errors: list[Exception] = []

    @socket.on("x")
    async def x(conn: Connection) -> None:
        await await_something_cancelled()

    @socket.on_error
    async def on_error(conn: Connection, error: Exception) -> None:
        errors.append(error)

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("x", id=1)
        reply = await conn.receive()
    assert (reply["event"], reply["id"], reply["payload"]["code"]) == ("__error__", 1, "HANDLER_ERROR")
    assert [type(error).__name__ for error in errors] == ["CancelledWithinError"]


async def test_a_connect_hook_cancelled_from_within_closes_with_1011_and_leaves_nothing_behind() -> None:
    socket = SocketApp()

    @socket.on_connect
    async def on_connect(conn: Connection) -> None:
        await socket.rooms.join(conn, "r")
        await await_something_cancelled()

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert await closing_code(conn) == 1011
        await conn.close()
        assert await socket.rooms.count("r") == 0
        assert not engine_of(socket).connections


async def test_a_server_that_cancels_a_slow_connect_hook_leaves_nothing_behind() -> None:
    socket = SocketApp()
    entered = asyncio.Event()

    @socket.on_connect
    async def on_connect(conn: Connection) -> None:
        await socket.rooms.join(conn, "r")
        entered.set()
        await asyncio.sleep(60)

    async with TestClient(socket) as client:
        connecting = asyncio.ensure_future(client.connect())
        await entered.wait()
        assert await socket.rooms.count("r") == 1
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert await socket.rooms.count("r") == 0
        assert not engine_of(socket).connections


@pytest.mark.parametrize(("refuse", "expected"), [(False, ["banned"]), (True, [])])
async def test_on_disconnect_follows_a_connect_hook_that_closes_but_not_a_first_one_that_refuses(
    refuse: bool, expected: list[str]
) -> None:
    socket = SocketApp()
    reasons: list[str] = []

    @socket.on_connect
    async def on_connect(conn: Connection) -> None:
        if refuse:
            raise PermissionDenied("no")
        await conn.disconnect("banned")

    @socket.on_disconnect
    async def on_disconnect(conn: Connection, reason: str) -> None:
        reasons.append(reason)

    async with TestClient(socket) as client:
        conn = await client.connect()
        await closing_code(conn)
        await conn.close()
    assert reasons == expected


async def test_what_a_hook_broadcasts_is_not_charged_to_the_handler_that_caused_it() -> None:
    socket = SocketApp()

    @socket.on_room_join
    async def joined(conn: Connection, room: str) -> None:
        await socket.rooms.broadcast(room, "joined")

    @socket.on("enter", broadcasts=[Broadcasts("said", room="{room}")])
    async def enter(conn: Connection) -> None:
        await socket.rooms.join(conn, "r")

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("enter")
        assert (await conn.receive())["event"] == "joined"


@pytest.mark.parametrize(("age", "accepted"), [(5, True), (60, False)])
async def test_a_token_within_the_leeway_lives_as_long_as_the_handshake_would_take_it(age: int, accepted: bool) -> None:
    token = jwt.encode({"sub": "ada", "exp": int(time.time()) - age}, SECRET, "HS256")
    socket = SocketApp(auth=JWTAuth(secret=SECRET, leeway=30))

    @socket.on("who")
    async def who(conn: Connection) -> dict[str, Any]:
        return {"user": conn.identity.user_id}

    async with TestClient(socket) as client:
        conn = await client.connect(query_params={"token": token})
        if accepted:
            due(conn.connection, engine_of(socket).now())
            await conn.send("who")
            assert (await conn.receive_event("__ack__"))["payload"] == {"user": "ada"}
        else:
            assert await closing_code(conn) == 4001


async def test_connect_comes_first_for_a_client_that_authenticates_by_message() -> None:
    socket = SocketApp(auth=JWTAuth(secret=SECRET, first_message=True))
    token = jwt.encode({"sub": "ada", "exp": int(time.time()) + 600}, SECRET, "HS256")
    async with TestClient(socket) as client:
        conn = await client.connect(subprotocols=["socketspec.v1.json"])
        await conn.send("__refresh_auth__", {"token": token}, id=1)
        assert [(await conn.receive())["event"] for _ in range(2)] == ["__connect__", "__ack__"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tags": "chat"}, "tags=['chat']"),
        ({"emits": ["ack"]}, "Emits('ack')"),
        ({"emits": Emits("ack")}, "must be a list"),
        ({"emits": [Emits("__ack__")]}, "reserved"),
        ({"emits": [Emits("a", model=list[int])]}, "list"),
        ({"broadcasts": [Broadcasts("a", room="x:{")]}, "x:{"),
        ({"broadcasts": [Emits("a")]}, "Broadcasts("),
    ],
)
def test_declarations_that_cannot_be_meant_are_refused_at_registration(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SocketApp().on("x", **options)
    assert says in str(refused.value)


def test_an_empty_list_of_auth_backends_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="everybody could connect"):
        SocketApp(auth=[])


def test_a_subclass_may_have_options_of_its_own() -> None:
    class Mine(SocketApp):
        def __init__(self, color: str, **options: Any) -> None:
            super().__init__(**options)
            self.color = color

    assert Mine("red", debug=True).settings.debug


async def test_a_scope_that_is_not_a_string_fails_closed() -> None:
    socket = SocketApp(rate_limit=RateLimit(1, 1, scope=lambda conn: None))  # type: ignore[arg-type, return-value] # the mistake under test

    @socket.on("x")
    async def x(conn: Connection) -> None: ...

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("x", id=1)
        assert (await conn.receive())["payload"]["code"] == "HANDLER_ERROR"


def test_too_many_query_fields_are_a_value_error() -> None:
    with pytest.raises(ValueError, match="fields"):
        Handshake.parse_query(b"&".join([b"a=1"] * 300))


def test_a_full_buffer_drops_old_broadcasts_without_looking_at_all_of_them() -> None:
    measured = 0

    class Counting(Message):
        def data(self, format: Format) -> bytes:
            nonlocal measured
            measured += 1
            return super().data(format)

    outbox = Outbox(Backpressure(policy="drop_oldest", max_buffer=1_000_000), Format.PLAIN, account(), lambda: None)
    message = Counting("tick", room="r")
    while outbox.push(message) is Overflow.QUEUED:
        pass
    measured = 0
    for _ in range(100):
        assert outbox.push(message) is Overflow.DROPPED
    assert len(outbox) > 1000
    assert measured < 500
