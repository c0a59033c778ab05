"""A transport that a test fills and empties by hand, a connection that is opened over it as an adapter would, and an
account of what waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

from socketspec import Connection, SocketApp
from socketspec.connection.waiting import Waiting
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from tests.engines import running

__all__ = ("Carrier", "account", "opened")


def account(limit: int = 1 << 28) -> Waiting:
    """What counts the outboxes of a test."""
    return Waiting(limit, lambda: 0.0)


class Carrier:
    """Keeps what is written to it. `buffered` is what the test says; `drain` waits until the test calls `empty`."""

    def __init__(self, *, can_ping: bool = False) -> None:
        self.can_ping = can_ping
        self.buffered = 0
        self.written: list[Message] = []
        self.pings = 0
        self.draining = asyncio.Event()
        """Set while somebody waits in `drain`."""
        self.closed: tuple[int, str] | None = None
        self.on_slow: Callable[[], None] = self.abort
        self._emptied = asyncio.Event()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was written, decoded."""
        return [from_json(message.data(Format.PLAIN)) for message in self.written]

    @property
    def events(self) -> list[str]:
        """The names of what was written."""
        return [message.event for message in self.written]

    def write(self, *messages: Message) -> None:
        self.written += messages

    async def drain(self) -> None:
        self.draining.set()
        await self._emptied.wait()

    def empty(self) -> None:
        """The peer has taken everything."""
        self.buffered = 0
        self._emptied.set()

    def ping(self) -> None:
        self.pings += 1

    def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed = code, reason

    def abort(self) -> None:
        self.close(1006, "aborted")


async def opened(app: SocketApp, carrier: Carrier, handshake: Handshake | None = None) -> Connection:
    """A connection of `app` over `carrier`, made as an adapter makes one."""
    handshake = handshake or Handshake()
    engine = await running(app)
    return await engine.open(await engine.admit(handshake), handshake, carrier)
