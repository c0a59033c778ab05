"""What carries a test connection's frames, and the line straight into the engine of an app."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from socketspec.app.app import SocketApp
from socketspec.connection.connection import Connection
from socketspec.lifecycle.visiting import Visitor, visiting
from socketspec.protocol.encoding import Message
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.runtime.engine import Engine
from socketspec.testing.errors import HandshakeRefused
from socketspec.testing.inbox import MAX_UNREAD, Inbox
from socketspec.testing.recipe import Recipe

__all__ = ("PONG", "DirectLine", "Line", "Pong")

PONG: Final[Mapping[str, object]] = {"event": "__pong__", "payload": {}}

Pong = Callable[[], None] | None
"""Called where the client is pinged; None: it does not answer pings."""


class Line(Protocol):
    """One accepted connection, from the client's side."""

    @property
    def connection(self) -> Connection:
        """The server's end."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether the server has taken all that was sent, or takes no more."""
        ...

    async def send(self, data: str | bytes) -> None:
        """Send one frame."""
        ...

    async def close(self, code: int) -> None:
        """End the connection, and wait until the server has cleaned up after it. 1006: without a close frame."""
        ...


class _Pipe:
    """A transport whose other end is the test."""

    can_ping: bool = False
    buffered: int = 0

    def __init__(self, inbox: Inbox, pong: Pong) -> None:
        self._inbox = inbox
        self._pong = pong
        self._is_closed = False
        self.on_slow: Callable[[], None] = self.abort

    def write(self, *messages: Message) -> None:
        for message in messages:
            if self._is_closed:
                return
            if len(self._inbox) >= MAX_UNREAD:
                self.on_slow()
                return
            self._inbox.put(message.data(self._inbox.format))
            if message.event == "__ping__" and self._pong is not None:
                asyncio.get_running_loop().call_soon(self._pong)

    async def drain(self) -> None:
        return

    def ping(self) -> None:
        raise RuntimeError("this transport cannot ping")

    def close(self, code: int, reason: str) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._inbox.end(code, reason)

    def abort(self) -> None:
        self.close(1006, "aborted")


class DirectLine:
    """A connection to a `SocketApp` itself."""

    is_idle: bool = True

    def __init__(self, engine: Engine, connection: Connection, pipe: _Pipe) -> None:
        self._engine = engine
        self._pipe = pipe
        self.connection: Connection = connection

    @classmethod
    async def open(cls, app: SocketApp, recipe: Recipe, inbox: Inbox, pong: Pong) -> DirectLine:
        """Open a connection; the `on_connect` hooks have run. Raises `HandshakeRefused`."""
        engine = await app.ensure_started()
        handshake = Handshake(
            path="/ws" if recipe.path is None else recipe.path,
            headers=Headers(recipe.headers),
            query_params=QueryParams(recipe.query),
            subprotocols=recipe.subprotocols,
            client=recipe.client,
            path_params=recipe.path_params,
        )
        if app.registry.wants_scope:
            handshake = replace(handshake, scope=handshake.as_scope())
        token = visiting.set(Visitor(recipe.identity))
        try:
            admission = await engine.admit(handshake)
            if admission.refusal is not None:
                raise HandshakeRefused(*admission.refusal)
            inbox.format = admission.format
            pipe = _Pipe(inbox, pong)
            try:
                connection = await engine.open(admission, handshake, pipe)
            finally:
                await admission.abandon()
        finally:
            visiting.reset(token)
        return cls(engine, connection, pipe)

    async def send(self, data: str | bytes) -> None:
        """Have the engine take a frame; waits where the engine would not read on."""
        pending: Any = self._engine.receive(self.connection, data, binary=isinstance(data, bytes))
        if pending is not None:
            await pending

    async def close(self, code: int) -> None:
        """End the connection, and wait for the clean-up."""
        self._pipe.close(code, "connection lost" if code == 1006 else "")
        await self._engine.closed(self.connection, code)
