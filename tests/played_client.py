"""A client of the WebSocket protocol in memory: real bytes into the real protocol class, no socket, virtual time.

The transport does what asyncio's do: it tells the protocol when more waits than it should, goes on reading where it
was paused, closes behind what was written, and says when it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

from uvicorn.config import Config
from uvicorn.server import ServerState

from socketspec.adapters.handover import EXTENSION, RawConnection
from socketspec.adapters.uvicorn import WebSocketProtocol
from tests.virtual_time import now
from tests.watching import turns

__all__ = (
    "A_WHILE",
    "DEFLATE",
    "KEY",
    "SLICE",
    "Answer",
    "Frame",
    "PlayedClient",
    "PlayedReceiver",
    "Wire",
    "assert_failed",
    "close_frame",
    "frame",
    "opened",
    "text",
    "upgrade",
)

App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
"""The key of the example in RFC 6455 section 1.3."""
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate"
MASK = b"\x0f\xf0\x55\xaa"
SLICE = 64
"""Frames of one connection that are handled before others get their turn."""
A_WHILE = 0.001
"""Seconds; nothing that has a deadline is as quick."""


class Frame(NamedTuple):
    """One frame as the server sent it; `first` is its first byte, with its flags and opcode."""

    first: int
    payload: bytes


class Answer(NamedTuple):
    """How an upgrade request was answered."""

    status: int
    phrase: str
    headers: list[tuple[str, str]]
    """Names in lower case."""
    rest: bytes
    """What came after the head: a body, or frames."""

    def all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for given, value in self.headers if given == name]


def upgrade(*headers: bytes, line: bytes = b"GET /ws HTTP/1.1", without: bytes = b"-") -> bytes:
    """An upgrade request, less the usual header that begins with `without`."""
    usual = (
        b"Host: example.test",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: " + KEY,
        b"Sec-WebSocket-Version: 13",
    )
    return b"\r\n".join((line, *(each for each in usual if not each.startswith(without)), *headers, b"", b""))


def frame(opcode: int, payload: bytes = b"", *, final: bool = True, flags: int = 0) -> bytes:
    """A client's frame, masked."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 65_536:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    masked = bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))
    return bytes((opcode | flags | (0x80 if final else 0),)) + length + MASK + masked


def text(payload: str) -> bytes:
    """A client's text message in one frame."""
    return frame(1, payload.encode())


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """A client's close frame."""
    return frame(8, code.to_bytes(2, "big") + reason)


class Wire(asyncio.Transport):
    """The server's end of a connection. What it writes is taken at once while `takes`; else it waits."""

    def __init__(self, *, is_tls: bool, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self.taken = bytearray()
        """What the client has got so far."""
        self.takes = True
        self.has_ended = False
        """Whether the client was told that nothing more comes (a half-close)."""
        self.is_aborted = False
        self.is_gone = False
        self._is_tls = is_tls
        self._protocol: asyncio.Protocol
        self._waiting = bytearray()
        self._unread: list[bytes] = []
        self._is_reading = True
        self._is_closing = False
        self._is_full = False
        self._ends = False
        self._high, self._low = 65_536, 16_384
        self._loop = asyncio.get_running_loop()

    def connect(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    # What the client does

    def arrive(self, data: bytes) -> None:
        """Bytes of the client come in, or wait in the kernel while nobody reads."""
        if self._is_closing or self.is_gone:
            return
        if self._is_reading and not self._unread:
            self._protocol.data_received(data)
        else:
            self._unread.append(data)

    def take(self, size: int | None = None) -> None:
        """Let the client take so many bytes of what waits for it; all of them, and those to come, if not given."""
        if size is None:
            self.takes = True
        part = len(self._waiting) if size is None else size
        self.taken += self._waiting[:part]
        del self._waiting[:part]
        if self._is_full and len(self._waiting) <= self._low:
            self._is_full = False
            self._protocol.resume_writing()
        self._finish()

    def hang_up(self) -> None:
        """The client ends its side."""
        if not self._protocol.eof_received():
            self.close()

    def break_off(self, error: Exception | None) -> None:
        """The connection is lost."""
        self._lose(error)

    # What the protocol calls

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        assert low is not None
        self._high, self._low = high, low

    def get_write_buffer_size(self) -> int:
        return len(self._waiting)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self._ends, "asyncio raises for a write after write_eof"
        if self.is_gone:
            return
        if self.takes:
            self.taken += data
            return
        self._waiting += data
        if len(self._waiting) > self._high and not self._is_full:
            self._is_full = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return not self._is_tls

    def write_eof(self) -> None:
        assert not self._is_tls, "TLS cannot be half closed"
        assert not self._is_closing, "uvloop raises for it"
        self._ends = True
        self._finish()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True
        self._finish()

    def abort(self) -> None:
        self.is_aborted = True
        self._lose(None)

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        while self._unread and self._is_reading and not self._is_closing:
            self._protocol.data_received(self._unread.pop(0))

    def _finish(self) -> None:
        if not self._waiting:
            self.has_ended = self.has_ended or self._ends
            if self._is_closing:
                self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        self._is_closing = True
        if not self.is_gone:
            self.is_gone = True
            self._waiting.clear()
            self._loop.call_soon(self._protocol.connection_lost, error)


class PlayedClient:
    """One connection to `app`, from before its first byte."""

    def __init__(
        self,
        app: App,
        *,
        protocol: type[WebSocketProtocol] = WebSocketProtocol,
        is_tls: bool = False,
        state: dict[str, Any] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        extra: dict[str, Any] | None = None,
        **config: Any,
    ) -> None:
        given = {"log_config": None, "lifespan": "off", "interface": "asgi3", "http": "h11", "proxy_headers": False}
        self.server = ServerState()
        self.server.default_headers = list(headers)
        usual: dict[str, Any] = {"sockname": ("10.0.0.1", 8443), "peername": ("192.0.2.7", 50_000)}
        if is_tls:
            usual["sslcontext"] = object()
        self.wire = Wire(is_tls=is_tls, extra={**usual, **(extra or {})})
        self.protocol = protocol(Config(app, **{**given, **config}), self.server, state or {})
        self.wire.connect(self.protocol)

    def sends(self, *parts: bytes) -> None:
        """All of `parts` come in one read."""
        self.wire.arrive(b"".join(parts))

    @property
    def got(self) -> bytes:
        """Everything the server sent that the client has taken."""
        return bytes(self.wire.taken)

    @property
    def answer(self) -> Answer:
        """The answer to its upgrade request. Fails if there is none, or more than one."""
        head, end, rest = self.got.partition(b"\r\n\r\n")
        assert end, f"no answer, but {self.got!r}"
        assert not rest.startswith(b"HTTP/"), "a second answer"
        line, *lines = head.decode("latin-1").split("\r\n")
        version, status, phrase = line.split(" ", 2)
        assert version == "HTTP/1.1"
        fields = [one.split(": ", 1) for one in lines]
        return Answer(int(status), phrase, [(name.lower(), value) for name, value in fields], rest)

    @property
    def frames(self) -> list[Frame]:
        """The whole frames it got after the answer."""
        return self._split()[0]

    def _split(self) -> tuple[list[Frame], bytes]:
        """The whole frames after the answer, and what came of the next one."""
        found: list[Frame] = []
        rest = self.answer.rest
        while rest:
            first, size, start = rest[0], rest[1], 2
            if size > 125:
                start += 2 if size == 126 else 8
                size = int.from_bytes(rest[2:start], "big")
            if len(rest) < start + size:
                break
            found.append(Frame(first, rest[start : start + size]))
            rest = rest[start + size :]
        return found, rest

    @property
    def closed(self) -> tuple[int, str]:
        """Code and reason of the one close frame, which nothing follows; 1005 where it has no code."""
        frames, rest = self._split()
        assert not rest, f"part of a frame follows: {rest!r}"
        *_, last = frames
        assert [one.first for one in frames].count(0x88) == 1
        assert last.first == 0x88, f"no close frame, but {last}"
        if not last.payload:
            return 1005, ""
        return int.from_bytes(last.payload[:2], "big"), last.payload[2:].decode()


class PlayedReceiver:
    """Takes a connection over, and keeps what it is told. A test gives the functions that are called with it."""

    def __init__(self) -> None:
        self.line: RawConnection
        self.messages: list[str | bytes] = []
        self.told: list[str] = []
        """What else it was told, by name."""
        self.ends: list[tuple[int, str]] = []
        self.ended = asyncio.Event()
        self.on_message: Callable[[str | bytes], None] = lambda _: None
        self.on_full: Callable[[], None] = lambda: None
        self.on_writable: Callable[[], None] = lambda: None
        self.on_too_large: Callable[[], None] = lambda: None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """The application: accepts, hands the connection over to this sink, and returns."""
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})
        self.line = scope["extensions"][EXTENSION](self)
        self.line.go_on()

    async def ended_at(self) -> float:
        """Wait until the connection has ended; when that was."""
        await self.ended.wait()
        return now()

    def received(self, data: str | bytes) -> None:
        self.messages.append(data)
        self.on_message(data)

    def too_large(self) -> None:
        self.told.append("too large")
        self.on_too_large()

    def heard(self) -> None:
        self.told.append("heard")

    def full(self) -> None:
        self.told.append("full")
        self.on_full()

    def writable(self) -> None:
        self.told.append("writable")
        self.on_writable()

    def stalled(self) -> None:
        self.told.append("stalled")

    def shutting_down(self) -> None:
        self.told.append("shutting_down")

    def lost(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))
        self.ended.set()


async def opened(**options: Any) -> tuple[PlayedClient, PlayedReceiver]:
    """An open connection that a sink has taken over. The client offers compression."""
    sink = PlayedReceiver()
    client = PlayedClient(sink, **options)
    client.sends(upgrade(DEFLATE))
    await turns(lambda: client.got and hasattr(sink, "line"))
    return client, sink


def assert_failed(client: PlayedClient, sink: PlayedReceiver, code: int, reason: str) -> None:
    """The client was told what it did wrong, and can read it before the connection goes."""
    assert client.closed == (code, reason)
    assert sink.ends == [(code, reason)]
    assert client.wire.has_ended
    assert not client.wire.is_gone
