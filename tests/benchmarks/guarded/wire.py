"""The real server on connections that are no sockets: bytes go in by a call, and what is written is kept in a list.

So nothing depends on when the kernel hands on which bytes, and the same work takes the same number of instructions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast
from unittest.mock import patch

import uvicorn
from uvicorn.server import ServerState

from socketspec.cli.main import main
from tests.benchmarks.guarded.app import ORIGIN
from tests.benchmarks.sockets import KEY

__all__ = ("Serving", "Wire", "upgrade")

ADDRESSES: Final = {"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8000)}


class Wire:
    """What an `asyncio.Transport` is to a protocol, as far as uvicorn and we ask. `write` is free to be any callable:
    a broadcast calls it a thousand times, and a method of ours would be a good part of what is counted.
    """

    def __init__(self, protocol: asyncio.Protocol, write: Callable[[bytes], object]) -> None:
        self.write: Callable[[bytes], object] = write
        self.protocol: asyncio.Protocol = protocol
        self._is_closing = False
        protocol.connection_made(cast("asyncio.Transport", self))

    def receive(self, data: bytes) -> None:
        """The client sends `data`."""
        self.protocol.data_received(data)

    # What protocols call

    def get_extra_info(self, name: str) -> object:
        return ADDRESSES.get(name)

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.Protocol:
        return self.protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """There is nobody to read it."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered."""

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Nothing is sent that was not asked for."""

    def resume_reading(self) -> None:
        """As `pause_reading`."""


class Serving:
    """`app`, served as ``socketspec serve`` does it, but for the listening."""

    def __init__(self, app: str) -> None:
        self._config = _config(app)
        self._config.load()
        self._state = ServerState()

    def connect(self, request: bytes, write: Callable[[bytes], object]) -> Wire:
        """A new connection, which has sent `request`."""
        make_protocol: Any = self._config.http_protocol_class
        wire = Wire(make_protocol(config=self._config, server_state=self._state, app_state={}), write)
        wire.receive(request)
        return wire


def _config(app: str) -> uvicorn.Config:
    """What ``socketspec serve`` hands to uvicorn. Asked from the outside, as where it is made is nobody's business."""
    found: list[uvicorn.Config] = []

    def run(server: uvicorn.Server, sockets: object = None) -> None:
        found.append(server.config)

    with patch.object(uvicorn.Server, "run", run):
        main(["serve", app, "--port", "0", "--no-access-log", "--log-level", "error"])
    return found[0]


def upgrade(path: str) -> bytes:
    """The request with which a browser opens a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: app.example.com\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
        "Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        f"Chrome/130.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: {ORIGIN}\r\nSec-WebSocket-Version: 13\r\n"
        "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\n"
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    ).encode()
