"""A frame of the wrong kind ends the connection with 1003; what it holds is not handled, however well it reads."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.protocol.handshake import Handshake
from socketspec.testing import ConnectionClosed, TestClient

ENVELOPE = {"event": "act", "payload": {}, "id": 1}
TEXT = json.dumps(ENVELOPE)
PACKED: Any = msgpack.packb(ENVELOPE)


@pytest.mark.parametrize(
    ("subprotocols", "frame", "speaks"),
    [
        ([], TEXT.encode(), "JSON text"),
        ([], PACKED, "JSON text"),
        (["socketspec.v1.json"], TEXT.encode(), "JSON text"),
        (["socketspec.v1.msgpack"], TEXT, "binary MessagePack"),
        (["socketspec.v1.msgpack"], PACKED.decode("latin-1"), "binary MessagePack"),
    ],
)
async def test_a_frame_of_the_wrong_kind_reaches_no_handler(
    subprotocols: list[str], frame: str | bytes, speaks: str
) -> None:
    app = SocketApp()
    handled: list[str] = []

    @app.on("act")
    async def act(conn: Connection) -> None:
        handled.append(conn.id)

    async with TestClient(app) as client:
        conn = await client.connect(subprotocols=subprotocols)
        await conn.send_raw(frame)
        error = await conn.receive_event("__error__")
        assert error["payload"]["code"] == "VALIDATION_ERROR"
        assert error["payload"]["message"] == f"This connection speaks {speaks} frames."
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert (closed.value.code, closed.value.reason) == (1003, "unsupported_data")
    assert handled == [], "the client stops when all handlers are through"


async def test_a_protocol_event_in_a_frame_of_the_wrong_kind_is_not_answered_either() -> None:
    tokens: list[str | None] = []

    class Auth:
        async def authenticate(self, handshake: Handshake) -> Identity:
            tokens.append(handshake.token)
            return Identity(user_id="ada")

    async with TestClient(SocketApp(auth=Auth())) as client:
        conn = await client.connect()
        await conn.send_raw(b'{"event":"__refresh_auth__","payload":{"token":"secret"}}')
        assert (await conn.receive())["payload"]["code"] == "VALIDATION_ERROR"
        with pytest.raises(ConnectionClosed):
            await conn.receive()
    assert tokens == [None], "asked at the handshake, and not with what came in the frame"


@pytest.mark.parametrize(
    ("subprotocols", "frame"),
    [([], TEXT), (["socketspec.v1.json"], TEXT), (["socketspec.v1.msgpack"], PACKED)],
)
async def test_a_frame_of_the_right_kind_is_handled(subprotocols: list[str], frame: str | bytes) -> None:
    app = SocketApp()

    @app.on("act")
    async def act(conn: Connection) -> None: ...

    async with TestClient(app) as client:
        conn = await client.connect(subprotocols=subprotocols)
        await conn.send_raw(frame)
        assert await conn.receive_event("__ack__") == {"event": "__ack__", "payload": {}, "id": 1}
