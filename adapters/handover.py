"""How a server hands an accepted WebSocket connection over, past ASGI's queues: the extension `EXTENSION` of the scope.

A server that knows it puts a `HandOver` into ``scope["extensions"][EXTENSION]``. After it has sent
``websocket.accept``, an application may call it once with a `Sink`, and may return from its ASGI call at once: from
then on every message goes to the sink, and what is written to the `Line` goes out as it is. No task and no queue stay
behind for the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

__all__ = ("EXTENSION", "HandOver", "Line", "Sink")

EXTENSION: Final = "socketspec.handover"


class Sink(Protocol):
    """Who took a connection over. Each call comes from the event loop and must not block or raise."""

    def received(self, data: str | bytes) -> None:
        """Take a whole message: text as `str`, binary as `bytes`. Call `Line.hold` here to get no more for now."""
        ...

    def too_large(self) -> None:
        """A message is larger than `Line.max_size`. Close the line here to choose the code: it is 1009 otherwise."""
        ...

    def heard(self) -> None:
        """The client sent a ping or pong frame, which the server has dealt with."""
        ...

    def full(self) -> None:
        """Bytes wait because the client does not take them: better write nothing until `writable`."""
        ...

    def writable(self) -> None:
        """What waited has been taken."""
        ...

    def stalled(self) -> None:
        """The client has taken nothing for `Line.stall_timeout` seconds. The line is aborted after this call."""
        ...

    def shutting_down(self) -> None:
        """The server wants to stop, and waits for this connection to be closed."""
        ...

    def lost(self, code: int, reason: str) -> None:
        """The connection is over, once: the code and reason of the client's close frame, or 1006."""
        ...


class Line(Protocol):
    """A connection, for the sink that took it over. Every method is called in the event loop and never blocks."""

    stall_timeout: float
    """Seconds after which a client that takes nothing of what waits for it is given up."""

    @property
    def max_size(self) -> int:
        """Bytes that one message may have; a longer one closes the connection with 1009. May be set."""
        ...

    @max_size.setter
    def max_size(self, size: int) -> None: ...

    @property
    def deflate_bits(self) -> int:
        """Window bits of the compression that was agreed on; 0 for none. Lines of equal bits encode alike."""
        ...

    def encode(self, data: bytes, *, binary: bool) -> bytes:
        """A finished frame with a whole message, compressed where that was agreed on."""
        ...

    @property
    def buffered(self) -> int:
        """How many bytes wait."""
        ...

    @property
    def write(self) -> Callable[[bytes], None]:
        """Sends finished frames. Not to be called after `close`, `abort` or `Sink.lost`."""
        ...

    def ping(self) -> None:
        """Send a ping frame; `Sink.heard` tells of the answer."""
        ...

    def hold(self) -> None:
        """Deliver no more messages until `go_on`. The client is slowed down by TCP."""
        ...

    def go_on(self) -> None:
        """End a `hold`."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what was written, wait for the client's, and close.

        A client has `stall_timeout` seconds to take what waits, and some seconds more to answer.
        """
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


HandOver = Callable[[Sink], Line]
"""Hands the connection over. It is held (`Line.hold`) until the sink lets it go on: then come the messages that arrived
before, and `Sink.lost` where the connection has ended before."""
