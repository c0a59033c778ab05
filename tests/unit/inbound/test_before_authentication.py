"""Before a client has authenticated it may say one thing; everything else closes the connection with 4001."""

from __future__ import annotations

import json
from typing import Any

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.protocol.handshake import Handshake
from socketspec.runtime.settings import MAX_FIRST_MESSAGE
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.engines import running


class ByToken:
    """The token is the user's name; it may come as the first message."""

    first_message = True

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        return None if handshake.token is None else Identity(user_id=handshake.token)


class SharedBackend(MemoryBackend):
    """The memory backend, taken for one that nodes share: limits are asked of it."""

    shared = True


def app(**options: Any) -> SocketApp:
    made = SocketApp(auth=ByToken(), **options)

    @made.on("event")
    async def event(conn: Connection) -> None: ...

    return made


async def end_of(conn: TestConnection) -> tuple[list[str], int]:
    """The codes of the errors that came, and the close code."""
    codes: list[str] = []
    while True:
        try:
            message = await conn.receive(timeout=1)
        except ConnectionClosed as closed:
            return codes, closed.code
        assert message["event"] == "__error__"
        codes.append(message["payload"]["code"])


def text(event: str, **payload: Any) -> str:
    return json.dumps({"event": event, "payload": payload, "id": 1})


REFUSED: dict[str, str | bytes] = {
    "an event": text("event"),
    "an unknown event": text("nothing"),
    "a resume": text("__resume__", rooms={"lobby": None}),
    "a ping": text("__ping__"),
    "a pong": text("__pong__"),
    "a server's event": text("__ack__"),
    "no JSON": "{",
    "nothing": "",
    "no envelope": "[]",
    "an unknown field": '{"event":"__refresh_auth__","payload":{"token":"ada"},"more":1}',
    "a binary frame": b"\x80",
    "a long message": text("__refresh_auth__", token="a" * MAX_FIRST_MESSAGE),
    "a long message beyond ASCII": text("__refresh_auth__", token="☃" * (MAX_FIRST_MESSAGE // 2)),
    "far too long a message": "x" * 1_000_000,
    "many items": json.dumps([[]] * 6000),
}


@pytest.mark.parametrize("limit", [None, RateLimit(1, 1, scope="ip")])
@pytest.mark.parametrize("backend", [MemoryBackend, SharedBackend])
@pytest.mark.parametrize("what", REFUSED)
async def test_anything_else_is_refused_with_4001(
    what: str, backend: type[MemoryBackend], limit: RateLimit | None
) -> None:
    async with TestClient(app(backend=backend(), rate_limit=limit)) as client:
        conn = await client.connect()
        await conn.send_raw(REFUSED[what])
        assert await end_of(conn) == (["AUTH_ERROR"], 4001)


@pytest.mark.parametrize("backend", [MemoryBackend, SharedBackend])
@pytest.mark.parametrize("what", REFUSED)
async def test_so_is_what_comes_when_the_rate_limit_allows_nothing(what: str, backend: type[MemoryBackend]) -> None:
    limited = app(backend=backend(), rate_limit=RateLimit(0.001, 1, scope="ip"))
    async with TestClient(limited) as client:
        first = await client.connect()
        await first.send("__refresh_auth__", {"token": "ada"}, id=1)
        assert (await first.receive())["event"] == "__ack__"
        conn = await client.connect()
        await conn.send_raw(text("__refresh_auth__", token="bob"))
        assert (await conn.receive())["payload"]["code"] == "RATE_LIMIT_ERROR"
        await conn.send_raw(REFUSED[what])
        assert await end_of(conn) == (["AUTH_ERROR"], 4001)


async def test_a_text_frame_on_a_messagepack_connection_is_no_exception() -> None:
    async with TestClient(app()) as client:
        conn = await client.connect(subprotocols=["socketspec.v1.msgpack"])
        await conn.send_raw(text("__refresh_auth__", token="ada"))
        assert await end_of(conn) == (["AUTH_ERROR"], 4001)


def by_path(conn: Connection) -> str:
    return conn.handshake.path


@pytest.mark.parametrize("scope", ["ip", "user", "connection", None, by_path])
@pytest.mark.parametrize("backend", [MemoryBackend, SharedBackend])
async def test_the_first_message_passes_a_rate_limit(backend: type[MemoryBackend], scope: Any) -> None:
    limited = app(backend=backend(), rate_limit=RateLimit(10, 10, scope=scope))
    async with TestClient(limited) as client:
        conn = await client.connect()
        await conn.send("__refresh_auth__", {"token": "ada"}, id=1)
        assert (await conn.receive(timeout=1))["event"] == "__ack__"
        assert conn.identity.user_id == "ada"


async def test_a_first_message_beyond_the_rate_limit_may_come_again() -> None:
    limited = app(rate_limit=RateLimit(0.01, 1, scope="ip"))
    async with TestClient(limited) as client:
        first, second = await client.connect(), await client.connect()
        await first.send("__refresh_auth__", {"token": "ada"}, id=1)
        await second.send("__refresh_auth__", {"token": "bob"}, id=1)
        error = (await second.receive())["payload"]
        assert error["code"] == "RATE_LIMIT_ERROR"
        assert second.connection.state.value == "authenticating"


async def test_the_longest_tokens_fit_and_a_smaller_limit_of_the_app_holds() -> None:
    assert app().settings.max_first_message == MAX_FIRST_MESSAGE == 20_480
    small = app(max_payload_size=1000)
    assert small.settings.max_first_message == 1000
    async with TestClient(app()) as client:
        for subprotocols in ([], ["socketspec.v1.msgpack"]):
            conn = await client.connect(subprotocols=subprotocols)
            await conn.send("__refresh_auth__", {"token": "a" * 500}, id=1)
            assert conn.identity.user_id == "a" * 500


async def test_what_is_larger_than_the_adapter_reads_is_refused_too() -> None:
    socket = app()
    async with TestClient(socket) as client:
        engine = await running(socket)
        waiting = await client.connect()
        engine.oversized(waiting.connection)
        assert await end_of(waiting) == (["AUTH_ERROR"], 4001)
        ada = await client.connect()
        await ada.send("__refresh_auth__", {"token": "ada"}, id=1)
        engine.oversized(ada.connection)
        assert ada.connection.is_open, "it is the adapter that closes, with 1009"
        assert engine.counters.events["unknown", "too_large"] == 2


async def test_after_authentication_mistakes_are_answered_as_always() -> None:
    async with TestClient(app()) as client:
        conn = await client.connect()
        await conn.send("__refresh_auth__", {"token": "ada"}, id=1)
        assert (await conn.receive())["event"] == "__ack__"
        await conn.send_raw("{")
        assert (await conn.receive())["payload"]["code"] == "VALIDATION_ERROR"
        await conn.send("__ping__")
        assert (await conn.receive())["event"] == "__pong__"
