"""How a server hands over a WebSocket connection that it has accepted, so that its messages need not pass through ASGI.

A server that can do this puts a `HandOver` into ``scope["extensions"][EXTENSION]``. After it has sent
``websocket.accept``, an application may call it once, with a `Receiver`, and may return from its ASGI call at once:
from then on every message goes to the receiver, and what is written to the `RawConnection` is sent as it is. Neither a
task nor a queue is left behind for the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

__all__ = ("EXTENSION", "HandOver", "RawConnection", "Receiver")

EXTENSION: Final = "socketspec.handover"


class Receiver(Protocol):
    """Who took a connection over. Each call comes from the event loop and must not block or raise."""

    def received(self, data: str | bytes) -> None:
        """Take a whole message: text as `str`, binary as `bytes`. To get no more for now, call `hold` here."""
        ...

    def too_large(self) -> None:
        """A message is larger than `RawConnection.max_size`. Close here to choose the code; it is 1009 otherwise."""
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
        """The client has taken nothing for `stall_timeout` seconds. After this call the connection is aborted."""
        ...

    def shutting_down(self) -> None:
        """The server wants to stop, and waits for this connection to be closed."""
        ...

    def lost(self, code: int, reason: str) -> None:
        """The connection is over. Called once, with the code and reason of the client's close frame, or 1006."""
        ...


class RawConnection(Protocol):
    """A connection, as its receiver uses it. Every method is called in the event loop and never blocks."""

    stall_timeout: float
    """Seconds that a client may take nothing of what waits for it; after them it is given up."""

    @property
    def max_size(self) -> int:
        """Bytes that one message may have; a longer one closes the connection with 1009. May be set."""
        ...

    @max_size.setter
    def max_size(self, size: int) -> None: ...

    def keep(self, size: int, skipped: Callable[[int], None]) -> None:
        """Of a message with more than `size` bytes, only its beginning needs to be delivered: more than `size` bytes.

        So a message that is refused anyhow costs no memory. `skipped` is told how many bytes are left out.
        """
        ...

    @property
    def deflate_bits(self) -> int:
        """Window bits of the compression that was agreed on; 0 for none. Connections of equal bits encode alike."""
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
        """Sends finished frames. Not to be called after `close`, `abort` or `Receiver.lost`."""
        ...

    def ping(self) -> None:
        """Send a ping frame. `Receiver.heard` is called when the answer comes."""
        ...

    def hold(self) -> None:
        """Deliver no more messages until `go_on`. TCP slows the client down."""
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


HandOver = Callable[[Receiver], RawConnection]
"""Hands the connection over, held: nothing comes until the receiver calls `RawConnection.go_on`. Then come the messages
that arrived before, and `Receiver.lost` if the connection has ended before."""
