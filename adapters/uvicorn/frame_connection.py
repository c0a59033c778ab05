"""An open WebSocket connection on an asyncio transport: writes, holds and closes. Its frames are read by `frame_pump`.

It knows neither HTTP nor a server: `protocol` beside this file adds the opening handshake. A client that stops reading,
or does not answer a close frame, is dropped here. Source of the rules: RFC 6455.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from socketspec.adapters.handover import Receiver
from socketspec.adapters.uvicorn.deflate import Deflate, deflate
from socketspec.adapters.uvicorn.frame_pump import FramePump
from socketspec.adapters.uvicorn.frames import BINARY, PING, PONG, TEXT, FrameReader, close_frame, frame_header
from socketspec.adapters.uvicorn.half_close import half_close
from socketspec.adapters.uvicorn.stall_watch import StallWatch

__all__ = ("CLOSING", "ENDING", "OPEN", "SHAKING", "FrameConnection")

UNSENDABLE: Final = frozenset({1005, 1006, 1015})
"""Close codes that stand for what happened, and are never sent (RFC 6455 section 7.4.1)."""

SHAKING: Final = 0
"""The opening handshake is not answered yet."""
OPEN: Final = 1
CLOSING: Final = 2
"""Our close frame is out, the client's is awaited."""
ENDING: Final = 3
"""What still comes is ignored; the TCP connection is being closed."""


class FrameConnection(asyncio.Protocol):
    """One connection: the `RawConnection` of its receiver, and the listener of its pump."""

    __slots__ = (
        "_close_timer",
        "_deflate",
        "_is_full",
        "_loop",
        "_pong",
        "_pump",
        "_reader",
        "_receiver",
        "_stall",
        "_state",
        "_transport",
        "_write",
        "stall_timeout",
    )

    assembly_timeout: float = 30.0
    """Seconds a message may take from its first byte to its last."""
    close_timeout: float = 5.0
    """Seconds a client has to answer a close frame, once it has taken what was sent before it."""
    max_control_frames: int = 100
    """Ping and pong frames that a client may send in one second."""
    max_stall: float = 10.0
    """Seconds a client may take nothing of what waits for it; a `SocketApp` has its own limit (`Backpressure`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, max_size: int) -> None:
        self._loop = loop
        self._state = SHAKING
        self._receiver: Receiver | None = None
        self._deflate: Deflate | None = None
        self._reader = FrameReader(max_size=max_size)
        # `connection_made` sets these two, and is called before anything else.
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._pump: FramePump = cast("FramePump", None)
        self._write: Callable[[bytes], None] = _write_nothing
        self.stall_timeout: float = self.max_stall
        self._is_full = False
        self._pong: bytes | None = None
        """What to answer the newest ping with, once the client takes bytes again."""
        self._close_timer: asyncio.TimerHandle | None = None
        self._stall: StallWatch | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pump = FramePump(self._loop, self._transport, self._reader, self)
        self._write = self._transport.write
        _send_at_once(self._transport)
        # Full means: the kernel did not take everything at once. What else is to be sent waits with the receiver.
        self._transport.set_write_buffer_limits(high=1, low=0)

    def data_received(self, data: bytes) -> None:
        if self._state != ENDING:
            self._reader.feed(data)
            if self._pump.is_reading:
                self._pump.run()

    def pause_writing(self) -> None:
        self._is_full = True
        if self._state == OPEN and self._receiver is not None:
            self._receiver.full()
        if self._stall is None:
            self._stall = StallWatch(self.stall_timeout, self._transport.get_write_buffer_size, self._stalled)

    def resume_writing(self) -> None:
        self._is_full = False
        self._stop_watching()
        if self._state == CLOSING:
            self._abort_later(self.close_timeout)
        pong, self._pong = self._pong, None
        if pong is not None and self._state == OPEN:
            self._send_pong(pong)
        if self._receiver is not None and not self._is_full:
            self._receiver.writable()

    def eof_received(self) -> None:
        """asyncio closes the transport after this, and then calls `connection_lost`."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = ENDING
        self._pump.stop()
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._stop_watching()
        self._tell_lost(1006, "")

    # What the pump calls (see `FrameListener`)

    def control_received(self, kind: int, payload: bytes) -> None:
        if self._state != OPEN:
            return
        if kind == PING:
            if self._is_full:
                self._pong = payload  # of several pings, only the newest needs an answer (RFC 6455 section 5.5.3)
            else:
                self._send_pong(payload)
        if self._receiver is not None:
            self._receiver.heard()

    def close_received(self, code: int, reason: str) -> None:
        if self._state == OPEN:
            self._write(close_frame(code, ""))
        self._state = ENDING
        self._pump.stop()
        self._tell_lost(code, reason)
        self._transport.close()
        self._abort_later(self.close_timeout)

    def rules_broken(self, code: int, reason: str) -> None:
        """Tell the client which rule it broke, and end the connection (RFC 6455 section 7.1.7)."""
        if code == 1009 and self._receiver is not None:
            self._receiver.too_large()
        self._end(close_frame(code, reason) if self._state == OPEN else b"")
        self._tell_lost(code, reason)

    # How it opens and ends

    def _open_for(self, receiver: Receiver) -> None:
        """From now on messages go to `receiver`, and so does all else that happens."""
        self._state = OPEN
        self._receiver = self._pump.receiver = receiver

    def _end(self, last: bytes) -> None:
        """Send `last`, and close in such a way that the client gets to read it."""
        self._state = ENDING
        if last:
            self._write(last)
        self._pump.discard()
        half_close(self._transport)
        self._abort_later(self.close_timeout)

    def _send_pong(self, payload: bytes) -> None:
        self._write(frame_header(PONG, len(payload)) + payload)

    def _abort_later(self, seconds: float) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._close_timer = self._loop.call_later(seconds, self._transport.abort)

    def _tell_lost(self, code: int, reason: str) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(code, reason)

    def _stop_watching(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _stalled(self) -> None:
        if self._receiver is not None:
            self._receiver.stalled()
        self._transport.abort()

    # What the receiver calls (see `RawConnection`)

    @property
    def write(self) -> Callable[[bytes], None]:
        """Sends finished frames. Not to be called after `close`, `abort` or `Receiver.lost`."""
        return self._write

    @property
    def max_size(self) -> int:
        """Bytes that one message may have; a longer one closes the connection with 1009."""
        return self._reader.max_size

    @max_size.setter
    def max_size(self, size: int) -> None:
        self._reader.max_size = size

    def keep(self, size: int, skipped: Callable[[int], None]) -> None:
        """Of a message with more than `size` bytes, deliver only the beginning: more than `size` bytes."""
        self._reader.keep(size, skipped)

    @property
    def deflate_bits(self) -> int:
        """Window bits of the compression that was agreed on; 0 for none."""
        return 0 if self._deflate is None else self._deflate.bits

    @property
    def buffered(self) -> int:
        """How many bytes wait."""
        return self._transport.get_write_buffer_size()

    def encode(self, data: bytes, *, binary: bool) -> bytes:
        """A finished frame with a whole message, compressed where that was agreed on."""
        opcode = BINARY if binary else TEXT
        if self._deflate is not None:
            data = deflate(data, self._deflate.bits)
            opcode |= 0x40  # RSV1: this message is compressed (RFC 7692 section 6)
        return frame_header(opcode, len(data)) + data

    def ping(self) -> None:
        """Send a ping frame. `Receiver.heard` is called when the answer comes."""
        if self._state == OPEN:
            self._write(frame_header(PING, 0))

    def hold(self) -> None:
        """Deliver no more messages until `go_on`. TCP slows the client down."""
        if self._state < CLOSING:
            self._pump.hold()

    def go_on(self) -> None:
        """End a `hold`."""
        self._pump.go_on()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what was written, wait for the client's, and close.

        A client has `stall_timeout` seconds to take what waits, and from then on `close_timeout` to answer.
        """
        if self._state == SHAKING:
            self.abort()
        elif self._state == OPEN:
            self._state = CLOSING
            self._pump.receiver = None
            self._write(close_frame(1000 if code in UNSENDABLE else code, reason))
            self._abort_later(self.stall_timeout if self._is_full else self.close_timeout)
            self._pump.go_on_soon()  # the client's close frame may be there already

    def mute(self) -> None:
        """What is written from now on goes nowhere."""
        self._write = _write_nothing

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


def _send_at_once(transport: asyncio.Transport) -> None:
    """Turn Nagle's algorithm off, with which a message could wait 40 ms and more for the acknowledgement of the last.

    asyncio turns it off only where the listening socket names its protocol, and most do not.
    """
    found: socket.socket | None = transport.get_extra_info("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _write_nothing(data: bytes) -> None:
    """In the place of a transport's `write` where there is none."""
