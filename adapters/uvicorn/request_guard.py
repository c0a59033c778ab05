"""The guard against slow, endless and malformed requests, upgrades to WebSocket among them.

    uvicorn.Config(app, http=GuardedH11Protocol, ws=WebSocketProtocol)

The head of every request, pipelined ones included, is checked as bytes before h11 parses it, so that a proxy in front
and the application behind cannot read it differently. Bodies are left to uvicorn and the application, but have to come
at a least rate. Sources of the rules: RFC 9112 sections 2.2, 3.2, 5 and 6.1, RFC 6455 section 4.2.1.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any, Final, NamedTuple, NoReturn, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from socketspec.adapters.uvicorn.body_watch import BodyWatch
from socketspec.adapters.uvicorn.client_gone import ASGIApp, quiet_about_clients_that_left
from socketspec.adapters.uvicorn.gate import RETRY_AFTER, gate_of
from socketspec.adapters.uvicorn.half_close import half_close

__all__ = ("GuardedH11Protocol", "Refusal")

MAX_HEAD: Final = 16_384
"""Bytes that the head of a request may have: request line, headers, and the empty line after them."""
MAX_HEADERS: Final = 100
"""Header lines that a request may have."""

_FORBIDDEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])|\n(?=[\t ])")
"""Control characters, bare line ends, and lines that continue the one before."""
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) [!-~]+ HTTP/([0-9]\.[0-9])")
_FIELD: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_HOST: Final = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=:\[\]%]*")
_C1: Final = re.compile("[\x80-\x9f]")
"""Control characters beyond ASCII. Python takes some for line ends, at which it would cut a header in two."""
_STRUCTURE: Final = frozenset(
    {b"connection", b"content-length", b"host", b"origin", b"te", b"transfer-encoding", b"upgrade"}
)
_LATIN_1: Final = re.compile(rb"[\x80-\x9f]")
_RETRY: Final = f"retry-after: {RETRY_AFTER}\r\n"


class Refusal(NamedTuple):
    """Why a request is not answered as it asks."""

    status: int
    text: str
    headers: str = ""
    """Further header lines of the reply, each with its line end."""


class _Head:
    """The head of a request, split. Raises `_RefusedError` where it breaks the rules."""

    def __init__(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        if len(lines) > MAX_HEADERS + 1:
            raise _too_large()
        request = _REQUEST_LINE.fullmatch(lines[0])
        if request is None:
            raise _RefusedError(400, "The request line is malformed.")
        self.method, self.version = request.groups()
        self.fields: dict[bytes, list[bytes]] = {}
        for line in lines[1:]:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise _RefusedError(400, "A header line is malformed.")
            name, value = field[1].lower(), field[2].strip(b"\t ")
            if not value.isascii():
                _check_beyond_ascii(name, value)
            self.fields.setdefault(name, []).append(value)

    def tokens(self, name: bytes) -> set[bytes]:
        """What a header lists, in lower case."""
        return {token.strip(b"\t ").lower() for value in self.fields.get(name, ()) for token in value.split(b",")}

    def check(self) -> None:
        """Check what holds for every request."""
        hosts = self.fields.get(b"host", [])
        if self.version not in (b"1.0", b"1.1"):
            raise _RefusedError(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
        if len(hosts) > 1 or (not hosts and self.version == b"1.1"):
            raise _RefusedError(400, "A request must have one Host header.")
        if hosts and _HOST.fullmatch(hosts[0]) is None:
            raise _RefusedError(400, "The Host header is malformed.")
        if b"transfer-encoding" in self.fields and (b"content-length" in self.fields or self.version == b"1.0"):
            raise _RefusedError(400, "The length of the request's body is ambiguous.")
        if b"websocket" in self.tokens(b"upgrade"):
            self._check_upgrade()

    def _check_upgrade(self) -> None:
        if self.method != b"GET":
            raise _RefusedError(405, "A WebSocket is opened with GET.", "allow: GET\r\n")
        if self.version != b"1.1":
            raise _RefusedError(400, "A WebSocket is opened with HTTP/1.1.")
        if b"upgrade" not in self.tokens(b"connection"):
            raise _RefusedError(400, 'A WebSocket is opened with "Connection: Upgrade"; a proxy may have removed it.')
        # Some devices send Content-Length: 0, which does no harm.
        if b"transfer-encoding" in self.fields or self.tokens(b"content-length") - {b"0"}:
            raise _RefusedError(400, "A request to open a WebSocket has no body.")
        if len(self.fields.get(b"sec-websocket-key", ())) != 1:
            raise _RefusedError(400, "A WebSocket is opened with one Sec-WebSocket-Key header.")
        if self.fields.get(b"sec-websocket-version") != [b"13"]:
            raise _RefusedError(
                426,
                "The version of the WebSocket protocol is 13.",
                "upgrade: websocket\r\nsec-websocket-version: 13\r\n",
            )


def _check_beyond_ascii(name: bytes, value: bytes) -> None:
    """UTF-8 and Latin-1 are let through, but not in headers that say how to read the request or the connection."""
    if name in _STRUCTURE or name.startswith(b"sec-websocket-"):
        raise _RefusedError(400, f"The header {name.decode()} must be ASCII.")
    try:
        is_bad = _C1.search(value.decode()) is not None
    except UnicodeDecodeError:
        is_bad = _LATIN_1.search(value) is not None
    if is_bad:
        raise _RefusedError(400, "A header has a control character.")


class _RefusedError(h11.RemoteProtocolError):
    """A request that is refused. To uvicorn it looks like an error that h11 found."""

    def __init__(self, status: int, text: str, headers: str = "") -> None:
        super().__init__(text, status)
        self.refusal: Refusal = Refusal(status, text, headers)


def _too_large() -> _RefusedError:
    return _RefusedError(431, f"A request may have {MAX_HEADERS} headers and {MAX_HEAD} bytes before its body.")


class _GuardedConnection(h11.Connection):
    """h11, except that it parses only heads that have been checked."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self.refusal: Refusal = Refusal(400, "Invalid HTTP request received.")
        """What to answer after an error."""
        self.waiting: int = 0
        """Bytes that have come of a head that is not complete."""
        self.unsent: list[bytes] = []
        """The head of an answer whose body has not begun."""

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """As h11's, but the head of an answer goes out with the beginning of its body, as ASGI has it: in one piece."""
        data = super().send_with_data_passthrough(event)
        if data is None:
            return None
        if isinstance(event, h11.Response):
            self.unsent = data
            return []
        unsent, self.unsent = self.unsent, []
        return unsent + data

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's."""
        try:
            if self.their_state is h11.IDLE and not self._has_head():
                return h11.NEED_DATA
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self._refuse(error)

    def _refuse(self, error: h11.RemoteProtocolError) -> NoReturn:
        if isinstance(error, _RefusedError):
            self.refusal = error.refusal
        else:
            self.refusal = Refusal(error.error_status_hint, self.refusal.text)
        raise error

    def _has_head(self) -> bool:
        """Whether the next request's head is complete. Raises `_RefusedError` where it breaks the rules."""
        data, _ = self.trailing_data
        seen, self.waiting = self.waiting, len(data)
        end = data.find(b"\r\n\r\n", max(seen - 3, 0), MAX_HEAD)
        if _FORBIDDEN.search(data, max(seen - 2, 0), end if end >= 0 else MAX_HEAD):
            raise _RefusedError(400, "The request has control characters, bare line ends or folded headers.")
        if end >= 0:
            _Head(data[:end]).check()
            self.waiting = 0
            return True
        if len(data) >= MAX_HEAD or data.count(b"\r\n") > MAX_HEADERS + 1:
            raise _too_large()
        return False


class GuardedH11Protocol(H11Protocol):
    """uvicorn's HTTP protocol, with a check of each head's bytes and a deadline for it, and a least rate for bodies."""

    handshake_timeout: float = 10.0
    """Seconds that a request's head may take, from the connection or from its first byte to its last."""
    close_timeout: float = 2.0
    """Seconds that a client has to read why it was refused."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.app: ASGIApp = quiet_about_clients_that_left(self.app)
        self._guarded: _GuardedConnection = _GuardedConnection(config.h11_max_incomplete_event_size or MAX_HEAD)
        self.conn: h11.Connection = self._guarded
        self._timer: asyncio.TimerHandle | None = None
        self._body: BodyWatch | None = None
        self._is_refused = False
        self._is_upgraded = False
        self._gate = gate_of(server_state)

    # What the gate asks for

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete

    def drop(self) -> None:
        """Close at once."""
        self.transport.abort()

    # What asyncio and uvicorn call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        if self._gate is not None:
            self._gate.came(self)
        self._timer = self.loop.call_later(self.handshake_timeout, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_body()
        self._leave_gate()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            if self._body is not None:
                self._body.came(len(data))
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self._is_refused or self._is_upgraded:
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._watch_body()
        else:
            self._stop_body()
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._guarded.waiting and self._timer is None:
            self._timer = self.loop.call_later(self.handshake_timeout, self._too_late)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if self._gate is not None and self._gate.refuses():
            self._refuse(Refusal(503, "This node has all the connections it may have.", _RETRY))
            return
        self._is_upgraded = True
        self._stop_timer()
        self._leave_gate()
        super().handle_websocket_upgrade(event)
        early, _ = self.conn.trailing_data
        if early:  # the client did not wait for the answer
            cast("asyncio.Protocol", self.transport.get_protocol()).data_received(early)

    def on_response_complete(self) -> None:
        if self._body is not None:
            self._body.is_answered()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._guarded.refusal)

    def shutdown(self) -> None:
        if self._is_refused:
            self.transport.close()
        else:
            super().shutdown()

    def _watch_body(self) -> None:
        if self._body is None:
            self._body = BodyWatch(self.loop, lambda: self.flow.read_paused, self._body_too_late)

    def _stop_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.stop()

    # How a request is refused

    def _body_too_late(self) -> None:
        self._body = None
        if self.is_idle:  # it has been answered
            self.transport.close()
        else:
            self._refuse(Refusal(408, "The body of the request took too long to arrive."))

    def _too_late(self) -> None:
        self._timer = None
        if self._guarded.waiting:
            self._refuse(Refusal(408, "The request took too long to arrive."))
        else:
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, and close in such a way that the client gets to read it: what still comes is read and forgotten."""
        self._is_refused = True
        self._stop_timer()
        self._stop_body()
        self._unset_keepalive_if_required()
        has_begun = self._end_cycle()
        if not has_begun:
            self.transport.write(_reply(refusal))
        if has_begun:
            self.transport.close()
        elif half_close(self.transport):
            self.flow.resume_reading()
        self._timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def _end_cycle(self) -> bool:
        """Tell the application that its request is over. Returns whether some of its answer is out."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return cycle.response_started and not self._guarded.unsent

    def _leave_gate(self) -> None:
        if self._gate is not None:
            self._gate.left(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _reply(refusal: Refusal) -> bytes:
    body = f"{refusal.text}\n"
    return (
        f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
        f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        f"{refusal.headers}\r\n{body}"
    ).encode()
