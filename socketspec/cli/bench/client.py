"""One connection: opened, put into its rooms, and then only counted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, Final, cast
from urllib.parse import quote

from socketspec.cli.bench import frames
from socketspec.cli.bench.counting import Counts, Seen, Sequences, count_in
from socketspec.cli.bench.load import Load, Target
from socketspec.cli.bench.wording import PREFLIGHT, Wording

__all__ = ("Client", "Dialer", "RefusedError")

_BIND_ADDRESS_NO_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT of ip(7): the port is chosen when connecting, for the whole four-tuple."""
MAX_BUFFER: Final = 1 << 20
"""Bytes that a publisher's connection may hold back until it is left out."""


class RefusedError(Exception):
    """A connection was not opened or not let into its rooms. `kind` is short and for counting, the text for people."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


class Client(asyncio.Protocol):
    """A connection's protocol. What arrives is counted in `counts`."""

    def __init__(self, load: Load, wording: Wording, counts: Counts, streams: Sequences) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        """Set by the 101 of the handshake."""
        self.sequences = streams
        self.is_joined: bool = False
        self.is_open: bool = False
        self.preflight: asyncio.Future[None] = loop.create_future()
        """Set when a message of the preflight arrives."""
        self.is_held_back: bool = False
        """Whether the transport holds so much that nothing more should be sent."""
        self.errors: dict[str, str] = {}
        """What the app has answered with ``__error__``: message by code."""
        self._load = load
        self._wording = wording
        self._counts = counts
        self._frames = frames.Frames()
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._key = ""
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._code = 0
        self._is_leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_BUFFER)

    def ask(self, target: Target, headers: Sequence[tuple[str, str]], query: str = "") -> None:
        """Send the handshake."""
        self._key = frames.new_key()
        path = target.path + (("&" if "?" in target.path else "?") + query if query else "")
        self._write(frames.request(target.authority, path, self._key, headers))

    async def join(self, rooms: Sequence[int]) -> None:
        """Join rooms. Raises `RefusedError`."""
        if self._load.join_event:
            loop = asyncio.get_running_loop()
            self._answers = {number: loop.create_future() for number in range(1, len(rooms) + 1)}
            waiting = list(self._answers.values())
            for number, room in enumerate(rooms, 1):
                self._write(self._wording.join(room, number))
            await asyncio.gather(*waiting)
        self.is_joined = self.is_open

    def publish(self, room: int, text: str) -> None:
        """Publish to a room."""
        self._write(self._wording.publish(room, text))

    def leave(self) -> None:
        """Close, in order."""
        self._is_leaving = True
        self._write(frames.close_frame())

    def abort(self) -> None:
        """Close at once."""
        self._is_leaving = True
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_writing(self) -> None:
        self.is_held_back = True

    def resume_writing(self) -> None:
        self.is_held_back = False

    def data_received(self, data: bytes) -> None:
        counts, read = self._counts, self._wording.read
        counts.received_bytes += len(data)
        try:
            if not self.is_open:
                data = self._shake(data)
            now = time.monotonic_ns()
            for opcode, payload in self._frames.feed(data):
                mark = read(payload) if opcode < frames.CLOSE else None
                if mark is None:
                    self._hear(opcode, payload)
                    continue
                seen = self.sequences.see(mark.stream, mark.number)
                if seen <= Seen.LATE:
                    counts.delivered += 1
                    counts.late += seen
                    counts.latency.add(now - mark.sent)
                elif seen is Seen.DUPLICATE:
                    counts.duplicates += 1
                elif mark.stream == PREFLIGHT:
                    self._set(self.preflight)
                else:
                    counts.misdelivered += 1
        except frames.FrameError as error:
            self._fail(RefusedError("not a WebSocket", str(error)))
            count_in(counts.errors, f"protocol error: {error}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        was_open, self.is_open = self.is_open, False
        if was_open and not self._is_leaving and self.is_joined:
            count_in(self._counts.closed, str(self._code or 1006))
        text = f"closed with {self._code}" if self._code else _reason(exc)
        self._fail(RefusedError(text if was_open else f"closed in the handshake ({text})"))

    def _shake(self, data: bytes) -> bytes:
        """Read the answer to the handshake; what came after it."""
        self._head += data
        head = frames.read_head(self._head)
        if head is None:
            return b""
        self._head = b""
        if head.status != 101:
            where = head.headers.get("location", "")
            detail = f"it points to {where}" if where else head.rest[:200].decode("utf-8", "replace").strip()
            self._fail(RefusedError(f"HTTP {head.status}", detail))
            self.abort()
            return b""
        if head.headers.get("sec-websocket-accept") != frames.accept_of(self._key):
            raise frames.FrameError("Sec-WebSocket-Accept does not answer our key")
        if head.headers.get("sec-websocket-protocol", "") != self._load.subprotocol:
            self._fail(RefusedError("subprotocol refused", f"the server does not speak {self._load.subprotocol!r}"))
            self.abort()
            return b""
        self.is_open = True
        self._set(self.opened)
        return head.rest

    def _hear(self, opcode: int, payload: bytes) -> None:
        """What is not one of our messages."""
        if opcode == frames.PING:
            self._write(frames.client_frame(payload, frames.PONG))
        elif opcode == frames.CLOSE:
            self._code = int.from_bytes(payload[:2]) if len(payload) >= 2 else 1005
            self._write(frames.client_frame(payload[:2], frames.CLOSE))
            if self._transport is not None:
                self._transport.close()
        elif opcode != frames.PONG:
            self._hear_event(self._wording.envelope(payload))

    def _hear_event(self, envelope: dict[str, Any]) -> None:
        event, answers = envelope.get("event"), self._answers
        answer = answers.pop(envelope["id"], None) if isinstance(envelope.get("id"), int) else None
        if event == "__ping__":
            self._write(self._wording.event("__pong__"))
        elif event == "__error__":
            payload = envelope.get("payload") or {}
            code = str(payload.get("code", "?"))
            count_in(self._counts.errors, code)
            self.errors[code] = str(payload.get("message", ""))
            if answer is not None and not answer.done():
                answer.set_exception(RefusedError(f"join refused: {code}", str(payload.get("message", ""))))
        elif answer is not None:
            self._set(answer)

    def _set(self, future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def _fail(self, error: RefusedError) -> None:
        for future in (self.opened, *self._answers.values()):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits gets it; where nobody does, nothing is to be said


class Dialer:
    """Opens connections. The address is looked up once. Raises `RefusedError` where there is none."""

    def __init__(self, load: Load, wording: Wording, counts: Counts) -> None:
        self.target: Target = Target.parse(load.url)
        self._load = load
        self._wording = wording
        self._counts = counts
        try:
            found = socket.getaddrinfo(self.target.host, self.target.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RefusedError("unknown host", f"{self.target.host!r}: {reason}") from None
        self._addresses = found
        self._context = _context(load) if self.target.is_tls else None

    async def open(self, index: int, streams: Sequences) -> Client:
        """Open connection `index`, without joining. Raises `RefusedError`."""
        client: Client | None = None
        try:
            async with asyncio.timeout(self._load.connect_timeout):
                client = await self._connect(index, streams)
                client.ask(self.target, self._headers(index), self._query(index))
                await client.opened
        except TimeoutError:
            error = RefusedError("timed out", f"no answer within {self._load.connect_timeout:g} s")
        except ssl.SSLError as problem:
            error = RefusedError("TLS failed", str(problem.reason or problem))
        except OSError as problem:
            error = _os_error(problem)
        except RefusedError as problem:
            error = problem
        else:
            return client
        if client is not None:
            client.abort()
        raise error

    async def join(self, client: Client, rooms: Sequence[int]) -> None:
        """Put it into its rooms. Raises `RefusedError`, and closes it then."""
        try:
            async with asyncio.timeout(self._load.connect_timeout):
                await client.join(rooms)
        except TimeoutError:
            error = RefusedError("join not answered", f"within {self._load.connect_timeout:g} s")
        except RefusedError as problem:
            error = problem
        else:
            return
        client.abort()
        raise error

    async def _connect(self, index: int, streams: Sequences) -> Client:
        loop = asyncio.get_running_loop()
        plain = await self._dial(index)
        _, client = await loop.create_connection(
            lambda: Client(self._load, self._wording, self._counts, streams),
            sock=plain,
            ssl=self._context,
            server_hostname=self.target.host if self._context else None,
        )
        return client

    async def _dial(self, index: int) -> socket.socket:
        """A TCP connection to the first of the addresses that takes one."""
        loop = asyncio.get_running_loop()
        refused: OSError | None = None
        for family, kind, proto, _, address in self._addresses:
            plain = socket.socket(family, kind, proto)
            try:
                plain.setblocking(False)
                self._bind(plain, index)
                await loop.sock_connect(plain, address)
            except OSError as error:
                plain.close()
                refused = error
            except BaseException:
                plain.close()
                raise
            else:
                return plain
        raise refused or OSError("no address")

    def _bind(self, plain: socket.socket, index: int) -> None:
        if not (sources := self._load.source_addresses):
            return
        with contextlib.suppress(OSError):  # not every system has it
            plain.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        plain.bind((sources[index % len(sources)], 0))

    def _token(self, index: int, place: str) -> str:
        tokens = self._load.tokens
        return tokens[index % len(tokens)] if tokens and self._load.token_in == place else ""

    def _query(self, index: int) -> str:
        token = self._token(index, "query")
        return f"token={quote(token)}" if token else ""

    def _headers(self, index: int) -> list[tuple[str, str]]:
        headers = list(self._load.headers)
        if token := self._token(index, "header"):
            headers.append(("Authorization", f"Bearer {token}"))
        offered = [self._load.subprotocol] if self._load.subprotocol else []
        if token := self._token(index, "subprotocol"):
            offered.append(f"socketspec.bearer.{token}")
        if offered:
            headers.append(("Sec-WebSocket-Protocol", ", ".join(offered)))
        return headers


def _context(load: Load) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=load.ca_file)
    except OSError as error:
        raise RefusedError("TLS failed", f"--ca {load.ca_file}: {error.strerror or error}") from None
    if load.is_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(error: Exception | None) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return "without a close frame"


def _os_error(error: OSError) -> RefusedError:
    if error.errno == errno.EADDRNOTAVAIL:
        return RefusedError(
            "no free port",
            "this machine's addresses have no port left for that server; give more --source-address, "
            "or widen net.ipv4.ip_local_port_range",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RefusedError("too many open files", "raise the limit with `ulimit -n`")
    return RefusedError(os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__)
