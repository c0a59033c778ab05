"""The seam to whatever carries a connection's frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from socketspec.protocol.encoding import Message

__all__ = ("Transport",)


class Transport(Protocol):
    """What carries one accepted connection's frames. Every method is called in the event loop and never blocks."""

    @property
    def buffered(self) -> int:
        """Bytes that wait because the client does not take them."""
        ...

    @property
    def on_slow(self) -> Callable[[], None]:
        """Called once when the client does not keep up. Set when the connection is opened."""
        ...

    @on_slow.setter
    def on_slow(self, call: Callable[[], None]) -> None: ...

    def write(self, *messages: Message) -> None:
        """Send `messages` in order, or queue them behind what waits. Does nothing once closing."""
        ...

    async def drain(self) -> None:
        """Wait until little is buffered, or the connection is gone."""
        ...

    @property
    def can_ping(self) -> bool:
        """Whether this transport can send ping control frames."""
        ...

    def ping(self) -> None:
        """Send a ping control frame (RFC 6455 section 5.5.2). Only where `can_ping`."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Send what is buffered, then close. What cannot be sent within the send timeout is dropped."""
        ...

    def abort(self) -> None:
        """Close without waiting for anything."""
        ...
