"""The protocol's own events but `__resume__`: what they are answered with, and what they are refused for."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.backend.memory import MemoryBackend, MemorySessions
from socketspec.errors import AuthError, BackendError
from socketspec.logs import JsonFormatter
from socketspec.protocol.handshake import Handshake
from socketspec.testing import ConnectionClosed, TestClient, TestConnection

log = logging.getLogger("an_auth_backend")


class ByToken:
    """Takes ``user/expiry`` for a verified token, "bad" for a wrong one."""

    first_message = True

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        token = handshake.token or handshake.query_params.get("token")
        if token is None:
            return None
        log.warning("looking at %s", token)
        if token == "bad":
            raise AuthError("The signature is wrong.")
        user, _, expiry = token.partition("/")
        return Identity(user_id=user, token_expires_at=float(expiry) if expiry else None)


class AwaySessions(MemorySessions):
    """Where revocations are looked up; cannot be reached once it is away."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)
        self.away = False

    async def is_revoked(self, subjects: Sequence[str]) -> bool:
        if self.away:
            raise BackendError("redis is gone")
        return False


def away_app() -> tuple[SocketApp, AwaySessions]:
    backend = MemoryBackend()
    backend.sessions = sessions = AwaySessions()
    return SocketApp(backend=backend, auth=ByToken()), sessions


async def nothing_more(conn: TestConnection) -> None:
    """The pong must be the next thing the client gets."""
    await conn.send("__ping__", id="end")
    assert await conn.receive() == {"event": "__pong__", "payload": {}, "id": "end"}


async def error_of(conn: TestConnection) -> dict[str, Any]:
    message = await conn.receive()
    assert message["event"] == "__error__", message
    payload: dict[str, Any] = message["payload"]
    return payload | {"id": message.get("id")}


async def end_of(conn: TestConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        await conn.receive()
    return closed.value.code, closed.value.reason


@pytest.mark.parametrize("id", ["a", 7, 0])
async def test_a_ping_is_answered_with_its_id(id: str | int) -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        await conn.send("__ping__", id=id)
        assert await conn.receive() == {"event": "__pong__", "payload": {}, "id": id}
        await conn.send("__ping__")
        assert await conn.receive() == {"event": "__pong__", "payload": {}}


async def test_a_pong_is_taken_in_silence() -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        await conn.send("__pong__", id=1)
        await nothing_more(conn)


async def test_a_client_that_has_yet_to_authenticate_may_ping_and_pong_and_nothing_else() -> None:
    app = SocketApp(auth=ByToken())

    @app.on("act")
    async def act(conn: Connection) -> None:
        raise AssertionError("not before it is authenticated")

    async with TestClient(app) as client:
        for event in ("__resume__", "act", "nobody", "__unknown__"):
            conn = await client.connect()
            await conn.send("__pong__")
            await nothing_more(conn)
            await conn.send(event, id=1)
            error = await error_of(conn)
            assert error["code"] == "AUTH_ERROR"
            assert "__refresh_auth__" in error["message"]
            assert await end_of(conn) == (4001, "auth_error")


# __refresh_auth__


async def test_a_renewal_is_acknowledged_with_the_new_expiry() -> None:
    async with TestClient(SocketApp(auth=ByToken())) as client:
        conn = await client.connect(query_params={"token": "ada/4102444800"})
        await conn.send("__refresh_auth__", {"token": "ada/4102448400"}, id="r")
        answer = {"event": "__ack__", "payload": {"token_expires_at": 4102448400.0}, "id": "r"}
        assert await conn.receive() == answer
        assert conn.identity.token_expires_at == 4102448400.0
        await conn.send("__refresh_auth__", {"token": "ada"}, id="s")
        assert await conn.receive() == {"event": "__ack__", "payload": {"token_expires_at": None}, "id": "s"}


async def test_a_first_message_is_acknowledged_after_the_welcome() -> None:
    async with TestClient(SocketApp(auth=ByToken())) as client:
        conn = await client.connect(subprotocols=["socketspec.v1.json"])
        await conn.send("__refresh_auth__", {"token": "ada/4102444800"}, id=1)
        assert (await conn.receive())["event"] == "__connect__"
        assert await conn.receive() == {"event": "__ack__", "payload": {"token_expires_at": 4102444800.0}, "id": 1}


async def test_a_token_of_another_user_is_refused_and_changes_nothing() -> None:
    async with TestClient(SocketApp(auth=ByToken())) as client:
        conn = await client.connect(query_params={"token": "ada/4102444800"})
        await conn.send("__refresh_auth__", {"token": "bob/4102448400"}, id=1)
        error = await error_of(conn)
        assert (error["code"], error["event"], error["id"]) == ("AUTH_ERROR", "__refresh_auth__", 1)
        assert "another user" in error["message"]
        assert (conn.identity.user_id, conn.identity.token_expires_at) == ("ada", 4102444800.0)
        await nothing_more(conn)


@pytest.mark.parametrize("payload", [{}, {"token": None}, {"token": ""}, {"token": 5}, {"token": ["ada"]}])
async def test_what_cannot_be_a_token_is_refused_before_anybody_looks_at_it(
    payload: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with TestClient(SocketApp(auth=ByToken())) as client:
        conn = await client.connect(query_params={"token": "ada"})
        caplog.clear()
        await conn.send("__refresh_auth__", payload, id=1)
        error = await error_of(conn)
        assert (error["code"], error["id"]) == ("VALIDATION_ERROR", 1)
        await nothing_more(conn)
        assert "looking at" not in caplog.text


async def test_an_app_without_auth_says_that_it_takes_no_tokens() -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        await conn.send("__refresh_auth__", {"token": "ada"}, id=1)
        error = await error_of(conn)
        assert (error["code"], error["message"]) == ("AUTH_ERROR", "This server does not use tokens.")
        await nothing_more(conn)


async def test_a_refusal_has_the_id_by_which_the_log_tells_what_led_to_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    async with TestClient(SocketApp(auth=ByToken())) as client:
        conn = await client.connect(query_params={"token": "ada"})
        caplog.clear()
        await conn.send("__refresh_auth__", {"token": "bad"}, id=1)
        error = await error_of(conn)
        (line,) = [json.loads(text) for text in caplog.text.splitlines()]
        assert line["message"] == "looking at bad"
        assert line["request"] == error["request_id"]
        assert (error["message"], error["id"]) == ("The signature is wrong.", 1)
        assert conn.connection.is_open


async def test_a_refused_first_message_ends_the_connection() -> None:
    async with TestClient(SocketApp(auth=ByToken())) as client:
        conn = await client.connect()
        await conn.send("__refresh_auth__", {"token": "bad"}, id=1)
        assert (await error_of(conn))["code"] == "AUTH_ERROR"
        assert await end_of(conn) == (4001, "auth_error")


async def test_a_first_message_that_cannot_be_looked_up_is_told_to_try_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, sessions = away_app()
    sessions.away = True
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("__refresh_auth__", {"token": "ada"}, id=1)
        assert await end_of(conn) == (1013, "try_again_later")
    (failure,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "redis is gone" in failure.getMessage()
    assert conn.id in failure.getMessage()


async def test_a_renewal_that_cannot_be_looked_up_fails_and_keeps_what_there_was() -> None:
    app, sessions = away_app()
    async with TestClient(app) as client:
        conn = await client.connect(query_params={"token": "ada/4102444800"})
        sessions.away = True
        await conn.send("__refresh_auth__", {"token": "ada/4102448400"}, id=1)
        error = await error_of(conn)
        assert (error["code"], error["id"]) == ("HANDLER_ERROR", 1)
        await nothing_more(conn)
        assert conn.identity.token_expires_at == 4102444800.0
