"""What dependencies raise to refuse, as FastAPI does, is an answer."""

from __future__ import annotations

import logging
from typing import Annotated

import fastapi
import pytest
from fastapi import HTTPException, WebSocketException

from socketspec import Connection, Depends, SocketApp
from socketspec.testing import ConnectionClosed, TestClient
from tests.asking import ask, joining


class Away(HTTPException):
    pass


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (HTTPException(401, "Sign in."), "AUTH_ERROR", "Sign in."),
        (Away(403, "Admins only."), "PERMISSION_ERROR", "Admins only."),
        (HTTPException(404), "NOT_FOUND", "Not Found"),
        (HTTPException(422, "No."), "VALIDATION_ERROR", "No."),
        (HTTPException(429, "Slowly."), "RATE_LIMIT_ERROR", "Slowly."),
        (HTTPException(409, {"why": "taken"}), "REFUSED", "Conflict."),
        (WebSocketException(1008, "Policy."), "PERMISSION_ERROR", "Policy."),
        (WebSocketException(4401), "AUTH_ERROR", "Unauthorized."),
        (WebSocketException(3000, "Who?"), "AUTH_ERROR", "Who?"),
    ],
)
async def test_fastapis_refusals_are_answers_and_the_connection_stays(
    error: Exception, code: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise error

    socket = SocketApp()
    joining(socket)

    @socket.on("x", dependencies=[fastapi.Depends(refuse)])
    async def x(conn: Connection) -> None: ...

    @socket.room_guard("r")
    async def guard(conn: Connection, _: Annotated[None, Depends(refuse)]) -> bool:
        return True

    async with TestClient(socket) as client:
        conn = await client.connect()
        for event, payload in (("x", None), ("join", {"room": "r"})):
            await conn.send(event, payload, id=1)
            answer = (await conn.receive())["payload"]
            assert (answer["code"], answer["message"]) == (code, message)
        assert conn.connection.is_open
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_details_and_the_time_to_wait_reach_the_client() -> None:
    def refuse(retry: bool) -> None:
        raise HTTPException(429, {"why": "often"}, {"Retry-After": "30"})

    socket = SocketApp()

    @socket.on("x", dependencies=[Depends(refuse)])
    async def x(conn: Connection) -> None: ...

    async with TestClient(socket) as client:
        conn = await client.connect(query_params={"retry": "1"})
        await conn.send("x")
        assert (await conn.receive())["payload"]["details"] == {"detail": {"why": "often"}, "retry_after": 30}


@pytest.mark.parametrize("error", [HTTPException(503, "Away."), WebSocketException(1011), HTTPException(307)])
async def test_a_failure_of_the_server_stays_one(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    socket = SocketApp()

    @socket.on("x")
    async def x(conn: Connection) -> None:
        raise error

    async with TestClient(socket) as client:
        assert await ask(await client.connect(), "x") == "HANDLER_ERROR"
    assert caplog.records[-1].exc_info is not None


@pytest.mark.parametrize("error", [HTTPException(404, "Nobody."), WebSocketException(1008, "Nobody.")])
async def test_in_on_connect_they_refuse_with_4001(error: Exception) -> None:
    def refuse() -> None:
        raise error

    socket = SocketApp()

    @socket.on_connect
    async def connected(conn: Connection, _: None = Depends(refuse)) -> None: ...

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await conn.receive())["payload"]["message"] == "Nobody."
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert closed.value.code == 4001
