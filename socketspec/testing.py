"""Test an app in process: the whole stack but the network, with the real codec.

async with TestClient(socket) as client:
    conn = await client.connect()
    await conn.send("ping", {"n": 1}, id=1)
    reply = await conn.receive()
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Final

import msgpack
from pydantic_core import from_json, to_json, to_jsonable_python

from socketspec.app.app import SocketApp
from socketspec.connection.connection import Connection
from socketspec.errors import SocketSpecError
from socketspec.identity import Identity
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.runtime.engine import Engine

__all__ = ("ConnectionClosed", "HandshakeRefused", "TestClient", "TestConnection")

MAX_UNREAD: Final = 100_000


class HandshakeRefused(SocketSpecError):
    """The server refused the opening handshake with an HTTP `status`."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status: int = status


class ConnectionClosed(SocketSpecError):
    """The connection was closed and everything sent before has been received."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with {code} ({reason})")
        self.code: int = code
        self.reason: str = reason


class _Pipe:
    """A transport whose other end is the test."""

    can_ping: bool = False
    buffered: int = 0

    def __init__(self, format: Format) -> None:
        self._format = format
        self.unread: deque[bytes] = deque()
        self.arrived: asyncio.Event = asyncio.Event()
        self.closed: tuple[int, str] | None = None
        self.on_slow: Callable[[], None] = self.abort

    def write(self, *messages: Message) -> None:
        for message in messages:
            if self.closed is not None:
                return
            if len(self.unread) >= MAX_UNREAD:
                self.on_slow()
                return
            self.unread.append(message.data(self._format))
            self.arrived.set()

    async def drain(self) -> None:
        return

    def ping(self) -> None:
        raise RuntimeError("this transport cannot ping")

    def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = (code, reason)
            self.arrived.set()

    def abort(self) -> None:
        self.close(1006, "aborted")


class TestConnection:
    """A client's end of a connection."""

    __test__: bool = False

    def __init__(self, engine: Engine, connection: Connection, pipe: _Pipe) -> None:
        self._engine = engine
        self._pipe = pipe
        self.connection: Connection = connection
        """The server's end: what handlers get."""

    @property
    def id(self) -> str:
        """The connection's id."""
        return self.connection.id

    @property
    def identity(self) -> Identity:
        """Who the server takes this client for."""
        return self.connection.identity

    async def send(self, event: str, payload: object = None, *, id: str | int | None = None) -> None:
        """Send one event. `payload` is a model, dataclass or mapping."""
        envelope: dict[str, Any] = {"event": event, "payload": {} if payload is None else payload}
        if id is not None:
            envelope["id"] = id
        if self.connection.format is Format.MSGPACK:
            packed: Any = msgpack.packb(to_jsonable_python(envelope))
            await self.send_raw(packed)
        else:
            await self.send_raw(to_json(envelope).decode())

    async def send_raw(self, data: str | bytes) -> None:
        """Send a frame as it is: text for `str`, binary for `bytes`."""
        pending = self._engine.receive(self.connection, data, binary=isinstance(data, bytes))
        if pending is not None:
            await pending

    async def receive(self, timeout: float = 5) -> dict[str, Any]:  # noqa: ASYNC109 - the documented signature
        """The next message, as a dict with `event`, `payload` and, in a reply, `id`.

        Raises `TimeoutError` after `timeout` seconds, and `ConnectionClosed` once everything has been received.
        """
        self._engine.hub.settle()  # what was broadcast before is there, also for a timeout of 0
        async with asyncio.timeout(timeout):
            while not self._pipe.unread:
                if self._pipe.closed is not None:
                    raise ConnectionClosed(*self._pipe.closed)
                self._pipe.arrived.clear()
                await self._pipe.arrived.wait()
        data = self._pipe.unread.popleft()
        decoded: dict[str, Any] = msgpack.unpackb(data) if self.connection.format is Format.MSGPACK else from_json(data)
        return decoded

    async def receive_event(self, event: str, timeout: float = 5) -> dict[str, Any]:  # noqa: ASYNC109 - as `receive`
        """The next message named `event`; others before it are passed over. Raises as `receive` does."""
        async with asyncio.timeout(timeout):
            while True:
                message = await self.receive(timeout)
                if message["event"] == event:
                    return message

    async def close(self, code: int = 1000) -> None:
        """Disconnect. Returns when the server has cleaned up and the `on_disconnect` hooks have run."""
        self._pipe.close(code, "")
        await self._engine.closed(self.connection, code)


class TestClient:
    """Connects to a `SocketApp` without a network. What handlers send is checked against their `Emits`/`Broadcasts`."""

    __test__: bool = False

    def __init__(self, app: SocketApp, *, strict: bool = True) -> None:
        self._app = app
        self._strict = strict
        self._connections: list[TestConnection] = []

    async def __aenter__(self) -> TestClient:
        engine = await self._app.ensure_started()
        engine.contracts.strict = self._strict
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for conn in self._connections:
            await conn.close()
        await self._app.stop(grace=1.0, window=0)

    async def connect(
        self,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        query_params: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        subprotocols: Iterable[str] = (),
        path: str = "/ws",
        path_params: Mapping[str, Any] | None = None,
        client: tuple[str, int] = ("127.0.0.1", 50000),
    ) -> TestConnection:
        """Open a connection. Raises `HandshakeRefused` where a real client would get an HTTP error.

        A client that fails to authenticate is connected, gets its ``__error__`` and then `ConnectionClosed`, as over
        the network.
        """
        engine = await self._app.ensure_started()
        handshake = Handshake(
            path=path,
            headers=Headers(_pairs(headers)),
            query_params=QueryParams(_pairs(query_params)),
            subprotocols=tuple(subprotocols),
            client=client,
            path_params=path_params or {},
        )
        if self._app.registry.wants_scope:
            handshake = replace(handshake, scope=handshake.as_scope())
        admission = await engine.admit(handshake)
        if admission.refusal is not None:
            raise HandshakeRefused(*admission.refusal)
        pipe = _Pipe(admission.format)
        try:
            connection = await engine.open(admission, handshake, pipe)
        finally:
            await admission.abandon()
        conn = TestConnection(engine, connection, pipe)
        self._connections.append(conn)
        return conn


def _pairs(source: Mapping[str, str] | Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    pairs: Any = source.items() if isinstance(source, Mapping) else source
    return [(name, value) for name, value in pairs]
