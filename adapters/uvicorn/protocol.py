"""The fast and hardened WebSocket protocol for uvicorn: from an upgrade request to an open connection.

    uvicorn main:app --ws socketspec.adapters.uvicorn:WebSocketProtocol

It serves every WebSocket route of the application. A `SocketApp` takes its connections over
(`socketspec.adapters.handover`); the others go through ASGI as with any server. Against what hostile clients do once
the connection is open, `frame_connection` and `frame_pump` beside this file have limits; against slow, endless and
malformed upgrade requests there is `request_guard`, which ``socketspec serve`` sets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, cast

from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState
from websockets.http11 import Request, Response

from socketspec.adapters.handover import EXTENSION, RawConnection, Receiver
from socketspec.adapters.uvicorn.asgi_bridge import ASGIBridge
from socketspec.adapters.uvicorn.deflate import negotiate
from socketspec.adapters.uvicorn.frame_connection import CLOSING, OPEN, SHAKING, FrameConnection
from socketspec.adapters.uvicorn.per_address import WHEN_CLOSED
from socketspec.adapters.uvicorn.upgrade import Pairs, ends_head, read, refusal, scope_of

__all__ = ("DeflateWebSocketProtocol", "WebSocketProtocol")

EARLY: Final = 65_536
"""Bytes that a client may send before its handshake is answered."""


class WebSocketProtocol(FrameConnection):
    """One connection, from its upgrade request on."""

    __slots__ = ("_app_state", "_bridge", "_config", "_extension", "_gap", "_response", "_server_state", "_when_closed")

    compresses: bool = False
    """Whether permessage-deflate is agreed to where a client offers it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(_loop or asyncio.get_running_loop(), max_size=config.ws_max_size)
        if not config.loaded:
            config.load()
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._bridge: ASGIBridge | None = None
        self._response: Response | None = None
        self._extension = ""
        self._gap: _Gap | None = None
        self._when_closed: Callable[[], None] | None = None

    # What uvicorn and asyncio call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server_state.connections.add(cast("Any", self))

    def data_received(self, data: bytes) -> None:
        if self._state != SHAKING:
            super().data_received(data)
        elif self._bridge is None:
            self._shake_hands(data)
        else:
            self._reader.feed(data)
            if self._reader.held > EARLY:
                self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(cast("Any", self))
        told, self._when_closed = self._when_closed, None
        if told is not None:
            told()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """uvicorn stops, and waits until this connection is gone."""
        if self._receiver is not None and self._state < CLOSING:
            self._receiver.shutting_down()
        elif self._state != CLOSING:
            self._transport.close()

    # The opening handshake

    def _shake_hands(self, data: bytes) -> None:
        request, response = read(data)
        if request is None:
            self._end(response.serialize())
            return
        if self.compresses:
            agreed = negotiate(request.headers.get_all("Sec-WebSocket-Extensions"))
            if agreed is not None:
                self._extension, self._deflate = agreed
                self._reader.inflate = self._deflate.inflater()
        self._response = response
        self._run(request)

    def _run(self, request: Request) -> None:
        scope = scope_of(
            request,
            asgi_version=self._config.asgi_version,
            scheme="wss" if is_ssl(self._transport) else "ws",
            server=get_local_addr(self._transport),
            client=get_remote_addr(self._transport),
            root_path=self._config.root_path,
            state=self._app_state.copy(),
        )
        scope["extensions"][EXTENSION] = self.hand_over
        scope["extensions"][WHEN_CLOSED] = self.when_closed
        self._bridge = self._receiver = bridge = ASGIBridge(
            self,
            scope,
            ping_interval=self._config.ws_ping_interval,
            ping_timeout=self._config.ws_ping_timeout,
            logs=self._config.access_log,
        )
        task = self._loop.create_task(self._serve(bridge))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def when_closed(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the connection is gone, at once if it is."""
        if self._transport.is_closing() and self not in cast("Any", self._server_state.connections):
            tell()
        else:
            self._when_closed = tell

    async def _serve(self, bridge: ASGIBridge) -> None:
        try:
            await bridge.run(self._config.loaded_app)
        finally:
            self._bridge = None

    def accept(self, subprotocol: str | None, headers: Pairs) -> None:
        """Answer with 101: the connection is open."""
        if ends_head((*headers, (b"", (subprotocol or "").encode()))):
            raise ValueError("A header or subprotocol of the application has a line end in it.")
        response, self._response = self._response, None
        if response is None or self._receiver is None or self._state != SHAKING:
            return
        for name, value in (*self._server_state.default_headers, *headers):
            response.headers[name.decode("latin-1")] = value.decode("latin-1")
        if subprotocol:
            response.headers["Sec-WebSocket-Protocol"] = subprotocol
        if self._deflate is not None:
            response.headers["Sec-WebSocket-Extensions"] = self._extension
        self._open_for(self._receiver)
        self._write(response.serialize())
        if self._reader.held:  # the client did not wait for the answer
            self._pump.run_soon()

    def reject(self, status: int, headers: Pairs, body: bytes) -> None:
        """Answer with another status, and close."""
        if self._state == SHAKING:
            self._end(refusal(status, (*self._server_state.default_headers, *headers), body))

    def hand_over(self, receiver: Receiver) -> RawConnection:
        """Give the connection to `receiver`: the `HandOver` of the scope."""
        bridge, self._bridge = self._bridge, None
        if bridge is None:
            raise RuntimeError("This connection has been handed over before.")
        messages, end = bridge.hand_over()
        is_open = self._state == OPEN
        self._gap = _Gap(receiver, messages, None if is_open else end)
        if is_open:
            self._open_for(receiver)
            self.hold()
            if self._is_full:
                self._loop.call_soon(self._announce_full, receiver)  # not now: it gets the connection when this returns
        else:
            if self._state == SHAKING:  # middleware has kept the accept to itself: it will never be answered
                self.abort()
            self.mute()
        return self

    def _announce_full(self, receiver: Receiver) -> None:
        if self._is_full and self._receiver is receiver:
            receiver.full()

    def go_on(self) -> None:
        """End a `hold`. Messages that came before the hand-over are delivered first."""
        gap = self._gap
        while gap is not None and gap.messages:
            if not self._pump.deliver_while_held(gap.messages.popleft(), gap.receiver):
                return
        gap, self._gap = self._gap, None  # it is gone already if `received` called this
        super().go_on()
        if gap is not None and gap.end is not None:
            gap.receiver.lost(*gap.end)


class _Gap(NamedTuple):
    """What came between the accept and the hand-over, for the receiver that took the connection over."""

    receiver: Receiver
    messages: deque[str | bytes]
    end: tuple[int, str] | None
    """How the connection ended, if it did."""


class DeflateWebSocketProtocol(WebSocketProtocol):
    """As `WebSocketProtocol`, with permessage-deflate (RFC 7692) for clients that offer it.

    It saves traffic and costs time and memory: about 40 KiB a connection that sends compressed messages. A broadcast is
    compressed once for all its recipients.
    """

    __slots__ = ()

    compresses = True
