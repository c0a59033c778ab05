"""A WebSocket connection as an ASGI application sees it: the scope, `receive` and `send`.

Source of the message formats: the ASGI specification, "HTTP & WebSocket ASGI Message Format", 2.5.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol
from urllib.parse import quote

from uvicorn.protocols.utils import ClientDisconnected

from socketspec.adapters.handover import RawConnection
from socketspec.adapters.uvicorn.upgrade import Pairs

__all__ = ("ASGIBridge", "PendingConnection")

logger: logging.Logger = logging.getLogger("uvicorn.error")

Event = MutableMapping[str, Any]

MAX_WAITING: Final = 32
"""Messages that may wait for the application; at so many, the connection is held."""
MAX_WAITING_BYTES: Final = 65_536
"""Bytes of messages that may wait, likewise."""
MESSAGES_A_TURN: Final = 64
"""Messages that an application may take before the event loop gets its turn."""
BYTES_A_TURN: Final = 65_536
"""Bytes of messages that it may take before that."""


class PendingConnection(RawConnection, Protocol):
    """A connection whose opening handshake has not been answered yet."""

    def accept(self, subprotocol: str | None, headers: Pairs) -> None:
        """Answer with 101: the connection is open."""
        ...

    def reject(self, status: int, headers: Pairs, body: bytes) -> None:
        """Answer with another status, and close."""
        ...


class ASGIBridge:
    """Runs an application for one connection, and is its `Receiver` until it is handed over."""

    def __init__(
        self,
        connection: PendingConnection,
        scope: MutableMapping[str, Any],
        *,
        ping_interval: float | None,
        ping_timeout: float | None,
        logs: bool,
    ) -> None:
        self._connection = connection
        self._scope = scope
        self._logs = logs
        """Whether to log how the handshake was answered."""
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._ping_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque(({"type": "websocket.connect"},))
        self._bytes = 0
        self._is_held = False
        self._taken = self._taken_bytes = 0
        self._arrival: asyncio.Future[None] | None = None
        """Done when there is an event; made when the application waits for one."""
        self._writable: asyncio.Future[None] | None = None
        """Done when the client takes bytes again; None while it does."""
        self._response: tuple[int, list[tuple[bytes, bytes]], bytes] | None = None
        self._state = "connecting"  # connecting, open, closed or handed over

    async def run(self, app: Callable[..., Awaitable[Any]]) -> None:
        """Call the application. What it leaves undone, an answer or a close, is done when this returns."""
        try:
            result: Any = await app(self._scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException as error:
            if self._state == "closed" and isinstance(error.__context__, ClientDisconnected):
                logger.info("The application went on sending to a client that was gone: %r", error)
            else:
                logger.error("Exception in ASGI application\n", exc_info=error)
            self._failed()
            if not isinstance(error, Exception):
                raise
        else:
            if self._state == "connecting":
                logger.error("ASGI callable returned without completing handshake.")
                self._failed()
            elif result is not None:
                logger.error("ASGI callable should return None, but returned '%s'.", result)
        if self._state == "open":
            self._shut(1000, "")

    def _failed(self) -> None:
        if self._state == "connecting":
            self._reject(500, ((b"content-type", b"text/plain; charset=utf-8"),), b"Internal Server Error")
        elif self._state == "open":
            self._shut(1011, "")

    def hand_over(self) -> tuple[deque[str | bytes], tuple[int, str]]:
        """From now on another receiver gets what comes. Returns what came too early for it: messages, and how the
        connection ended if it did (else 1006).
        """
        self._state = "handed over"
        self._stop_pinging()
        messages: deque[str | bytes] = deque()
        end = 1006, ""
        for event in self._events:
            if event["type"] == "websocket.receive":
                messages.append(_data(event))
            elif event["type"] == "websocket.disconnect":
                end = event["code"], event["reason"]
        return messages, end

    # What the application calls

    async def receive(self) -> Event:
        if self._taken >= MESSAGES_A_TURN or self._taken_bytes >= BYTES_A_TURN:  # a quick application never waits
            self._taken = self._taken_bytes = 0
            await asyncio.sleep(0)
        self._taken += 1
        while not self._events:
            self._arrival = self._arrival or self._loop.create_future()
            await asyncio.shield(self._arrival)  # whoever waits may be cancelled, and wait again
        event = self._events.popleft()
        if event["type"] == "websocket.receive":
            self._bytes -= _size(event)
            self._taken_bytes += _size(event)
            if self._is_held and len(self._events) <= MAX_WAITING // 2 and self._bytes <= MAX_WAITING_BYTES // 2:
                self._is_held = False
                self._connection.go_on()
        return event

    async def send(self, event: Event) -> None:
        while self._writable is not None:  # several tasks may have waited, and the first of them may fill it again
            await asyncio.shield(self._writable)
        kind = event["type"]
        if self._state == "open":
            self._send_open(kind, event)
        elif self._state == "connecting":
            self._answer(kind, event)
        elif self._state == "closed":
            raise ClientDisconnected
        else:
            raise RuntimeError(f"The connection was handed over: ASGI cannot send '{kind}' any more.")

    def _send_open(self, kind: str, event: Event) -> None:
        if kind == "websocket.send":
            data = event.get("bytes")
            if data is None:
                self._connection.write(self._connection.encode(event["text"].encode(), binary=False))
            else:
                self._connection.write(self._connection.encode(data, binary=True))
        elif kind == "websocket.close":
            self._shut(event.get("code") or 1000, event.get("reason") or "")
        else:
            raise RuntimeError(f"Expected ASGI message 'websocket.send' or 'websocket.close', but got '{kind}'.")

    def _answer(self, kind: str, event: Event) -> None:
        if kind == "websocket.accept":
            self._connection.accept(event.get("subprotocol"), event.get("headers") or ())
            self._state = "open"
            self._announce("[accepted]")
            self._ping_later()
        elif kind == "websocket.close" and self._response is None:
            self._reject(403, (), b"")
        elif kind == "websocket.http.response.start" and self._response is None:
            self._response = event["status"], list(event.get("headers") or ()), b""
        elif kind == "websocket.http.response.body" and self._response is not None:
            status, headers, body = self._response
            self._response = status, headers, body + event.get("body", b"")
            if not event.get("more_body", False):
                self._reject(*self._response)
        else:
            raise RuntimeError(
                "Expected ASGI message 'websocket.accept', 'websocket.close' or 'websocket.http.response.start', "
                f"but got '{kind}'."
            )

    def _announce(self, answer: str) -> None:
        # Without the query, where tokens are.
        if self._logs:
            client = ":".join(map(str, self._scope["client"] or ()))
            logger.info('%s - "WebSocket %s" %s', client, quote(self._scope["path"]), answer)

    def _reject(self, status: int, headers: Pairs, body: bytes) -> None:
        self._announce(str(status))
        self._connection.reject(status, headers, body)
        self._ended(1006, "")

    def _shut(self, code: int, reason: str) -> None:
        self._connection.close(code, reason)
        self._ended(code, reason)

    def _ended(self, code: int, reason: str) -> None:
        if self._state != "closed":
            self._state = "closed"
            self._stop_pinging()
            self._events.append({"type": "websocket.disconnect", "code": code, "reason": reason})
            self._wake()
            if self._is_held:  # else the client's close frame is never read
                self._is_held = False
                self._connection.go_on()

    # What the connection calls (see `Receiver`)

    def received(self, data: str | bytes) -> None:
        event: Event = {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}
        self._events.append(event)
        self._bytes += len(data)
        if not self._is_held and (len(self._events) >= MAX_WAITING or self._bytes >= MAX_WAITING_BYTES):
            self._is_held = True
            self._connection.hold()
        self._wake()

    def heard(self) -> None:
        if self._ping_timer is not None:
            self._stop_pinging()
            self._ping_later()

    def full(self) -> None:
        self._writable = self._writable or self._loop.create_future()

    def writable(self) -> None:
        waiting, self._writable = self._writable, None
        if waiting is not None:
            waiting.set_result(None)

    def stalled(self) -> None:
        self.lost(1006, "")

    def shutting_down(self) -> None:
        if self._state == "open":
            self._shut(1012, "")
        elif self._state == "connecting":
            self._reject(503, (), b"")

    def lost(self, code: int, reason: str) -> None:
        self._ended(code, reason)
        self.writable()

    def _wake(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            arrival.set_result(None)

    # Keeping the connection alive

    def _ping_later(self) -> None:
        if self._ping_interval:
            self._ping_timer = self._loop.call_later(self._ping_interval, self._ping)

    def _ping(self) -> None:
        self._connection.ping()
        if self._ping_timeout:
            self._ping_timer = self._loop.call_later(self._ping_timeout, self._unanswered)
        else:
            self._ping_later()

    def _unanswered(self) -> None:
        self._ping_timer = None
        if self._is_held:  # the pong may have come, but nothing is read until the application takes messages
            self._ping_later()
        elif self._state == "open":
            self._shut(1011, "keepalive ping timeout")

    def _stop_pinging(self) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None


def _data(event: Event) -> str | bytes:
    text: str | None = event.get("text")
    data: str | bytes = event["bytes"] if text is None else text
    return data


def _size(event: Event) -> int:
    return len(_data(event))
