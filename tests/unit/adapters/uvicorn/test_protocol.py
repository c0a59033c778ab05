"""The hand-over: what came between the accept and the receiver reaches the receiver, once and in order."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from socketspec.adapters.handover import EXTENSION, RawConnection
from socketspec.adapters.uvicorn import WebSocketProtocol
from tests.unit.adapters.uvicorn.test_frame_connection import PlayedReceiver, PlayedTransport
from tests.unit.adapters.uvicorn.test_frames import frame

REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Rig:
    """A connection to an application that accepts it, and hands it over when it is told to."""

    def __init__(self) -> None:
        self.receiver = PlayedReceiver()
        self.connection: RawConnection
        self.is_accepted = asyncio.Event()
        self.may_hand_over = asyncio.Event()
        self.is_handed_over = asyncio.Event()
        config = Config(self.app, log_config=None, lifespan="off", interface="asgi3", http="h11", proxy_headers=False)
        self.protocol = WebSocketProtocol(config, ServerState(), {})
        self.protocol.connection_made(PlayedTransport())
        self.protocol.data_received(REQUEST)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.is_accepted.set()
        await self.may_hand_over.wait()
        self.connection = scope["extensions"][EXTENSION](self.receiver)
        self.connection.go_on()
        self.is_handed_over.set()

    async def hand_over_after(self, *frames: bytes) -> None:
        await self.is_accepted.wait()
        self.protocol.data_received(b"".join(frames))
        self.may_hand_over.set()
        await self.is_handed_over.wait()


async def test_early_messages_come_first_and_wait_where_the_receiver_holds() -> None:
    rig = Rig()
    rig.receiver.each = lambda data: rig.connection.hold()
    await rig.hand_over_after(frame(1, b"a"), frame(1, b"b"))
    rig.protocol.data_received(frame(1, b"c"))
    assert rig.receiver.got == ["a"]
    rig.connection.go_on()
    assert rig.receiver.got == ["a", "b"]
    rig.connection.go_on()
    assert rig.receiver.got == ["a", "b", "c"]


async def test_a_receiver_that_goes_on_within_an_early_message_is_told_of_the_end_once() -> None:
    rig = Rig()

    def hold_and_go_on(data: str | bytes) -> None:
        rig.connection.hold()
        rig.connection.go_on()

    rig.receiver.each = hold_and_go_on
    await rig.hand_over_after(frame(1, b"a"), frame(1, b"b"), frame(8, b"\x03\xe8bye"))
    assert rig.receiver.got == ["a", "b"]
    assert rig.receiver.ends == [(1000, "bye")]
