"""An open WebSocket connection on an asyncio transport: frames in and out, backpressure, and how it ends.

It knows neither HTTP nor a server; `socketspec.adapters.uvicorn` adds the opening handshake. What a client may not do
ends here: unfinished messages have a deadline, control frames a rate, buffers a bound, and a client that stops reading
is dropped. Source of the rules: RFC 6455.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, cast

from socketspec.adapters.handover import Receiver
from socketspec.adapters.uvicorn.deflate import Deflate, deflate
from socketspec.adapters.uvicorn.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameReader, close_frame, frame_header
from socketspec.adapters.uvicorn.stall_watch import StallWatch

__all__ = ("CLOSING", "ENDING", "OPEN", "SHAKING", "FrameConnection")

SLICE: Final = 64
"""Frames of one connection handled before the event loop gets its turn."""
SLICE_BYTES: Final = 262_144
"""Bytes of messages after which it gets its turn as well: compressed ones may be large."""
UNSENDABLE: Final = frozenset({1005, 1006, 1015})
"""Close codes that stand for what happened, and are never sent (RFC 6455 section 7.4.1)."""

SHAKING: Final = 0
"""The opening handshake is not answered yet."""
OPEN: Final = 1
CLOSING: Final = 2
"""Our close frame is out, the client's is awaited."""
ENDING: Final = 3
"""Nothing that comes is looked at; the TCP connection is being closed."""

_MESSAGES: Final = frozenset({TEXT, BINARY})


class FrameConnection(asyncio.Protocol):
    """One connection. To its receiver it is the `RawConnection`."""

    __slots__ = (
        "_close_timer",
        "_control_frames",
        "_control_since",
        "_deadline",
        "_deflate",
        "_is_full",
        "_is_held",
        "_is_pumping",
        "_is_reading",
        "_is_yielding",
        "_loop",
        "_pong",
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

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._state = SHAKING
        self._receiver: Receiver | None = None
        self._deflate: Deflate | None = None
        self._reader: FrameReader = cast("FrameReader", None)  # the handshake makes it; nothing is read before
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # set before anything else is called
        self._write: Callable[[bytes], None] = _write_nothing
        self.stall_timeout: float = self.max_stall
        self._is_held = self._is_yielding = self._is_full = self._is_pumping = False
        self._is_reading = True
        self._pong: bytes | None = None
        self._control_frames = 0
        self._control_since = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._stall: StallWatch | None = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._write = self._transport.write
        _send_at_once(self._transport)
        # Whatever the kernel does not take at once means: full. What waits then is the receiver's, who has a policy.
        self._transport.set_write_buffer_limits(high=1, low=0)

    def data_received(self, data: bytes) -> None:
        if self._state != ENDING:
            self._reader.feed(data)
            if not self._is_held and not self._is_yielding:
                self._pump()

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
        self._cancel_deadline()
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._stop_watching()
        self._tell_lost(1006, "")

    # What comes from the client

    def _pump(self) -> None:
        """Handle the frames that are complete, up to a slice of them."""
        self._is_pumping = True
        try:
            if self._take_slice():
                self._yield()
        finally:
            self._is_pumping = False

    def _take_slice(self) -> bool:
        """Whether there may be more to take, later."""
        take = self._reader.next
        size = 0
        for _ in range(SLICE):
            event = take()
            if event is None:
                self._start_deadline()
                return False
            kind, value = event
            if kind in _MESSAGES:
                if self._deadline is not None:
                    self._cancel_deadline()
                if self._state == OPEN and self._receiver is not None:
                    self._receiver.received(value)
                    if self._is_held or self._is_yielding or self._transport.is_closing():
                        return False
                    size += len(value)
                    if size > SLICE_BYTES:
                        break
            else:
                self._take_other(kind, value)
                if self._state == ENDING:
                    return False
        return True

    def _start_deadline(self) -> None:
        if self._deadline is None and self._reader.is_partial:
            self._deadline = self._loop.call_later(self.assembly_timeout, self._too_late)

    def _take_other(self, kind: int, value: Any) -> None:
        if self._deadline is not None and not self._reader.in_message:
            self._cancel_deadline()  # it was this frame's own
        if kind in (PING, PONG):
            self._control(kind, value)
        elif kind == CLOSE:
            self._closed_by_client(*value)
        else:
            self._fail(*value)

    def _yield(self) -> None:
        """Go on with what is there in the event loop's next turn, and read nothing more before."""
        self._is_yielding = True
        self._update_reading()
        self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._is_yielding = False
        if self._state != ENDING and not self._is_held:
            self._pump()
            self._update_reading()

    def _update_reading(self) -> None:
        wanted = not self._is_held and not self._is_yielding
        if wanted is not self._is_reading:
            self._is_reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                if self._is_held:
                    self._cancel_deadline()  # it is us who are slow
                self._transport.pause_reading()

    def _control(self, kind: int, payload: bytes) -> None:
        now = self._loop.time()
        if now - self._control_since >= 1.0:
            self._control_since, self._control_frames = now, 0
        self._control_frames += 1
        if self._control_frames > self.max_control_frames:
            self._fail(1008, "too many ping and pong frames")
            return
        if self._state != OPEN:
            return
        if kind == PING:
            if self._is_full:
                self._pong = payload  # the newest is the one to answer (RFC 6455 section 5.5.3)
            else:
                self._send_pong(payload)
        if self._receiver is not None:
            self._receiver.heard()

    def _send_pong(self, payload: bytes) -> None:
        self._write(frame_header(PONG, len(payload)) + payload)

    def _closed_by_client(self, code: int, reason: str) -> None:
        if self._state == OPEN:
            self._write(close_frame(code, ""))
        self._state = ENDING
        self._tell_lost(code, reason)
        self._transport.close()
        self._abort_later(self.close_timeout)

    def _too_late(self) -> None:
        self._deadline = None
        self._fail(1008, "a message took too long to arrive")

    def _fail(self, code: int, reason: str) -> None:
        """The client broke the rules (RFC 6455 section 7.1.7): say so, and end the connection."""
        self._end(close_frame(code, reason) if self._state == OPEN else b"")
        self._tell_lost(code, reason)

    def _end(self, last: bytes) -> None:
        """Send `last`, and close so that the client gets to read it: what still comes is read and forgotten."""
        self._state = ENDING
        self._cancel_deadline()
        if last:
            self._write(last)
        self._is_held = self._is_yielding = False
        self._update_reading()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            _half_close(self._transport)
        else:
            self._transport.close()
        self._abort_later(self.close_timeout)

    def _abort_later(self, seconds: float) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._close_timer = self._loop.call_later(seconds, self._transport.abort)

    def _tell_lost(self, code: int, reason: str) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(code, reason)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

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
        """Send a ping frame; `Receiver.heard` tells of the answer."""
        if self._state == OPEN:
            self._write(frame_header(PING, 0))

    def hold(self) -> None:
        """Deliver no more messages until `go_on`. The client is slowed down by TCP."""
        if self._state < CLOSING:
            self._is_held = True
            self._update_reading()

    def go_on(self) -> None:
        """End a `hold`."""
        if self._is_held:
            self._is_held = False
            if (
                self._is_pumping
            ):  # called by the receiver while it takes a message: the next one follows when it returns
                self._update_reading()
            elif not self._is_yielding:
                self._continue()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame behind what was written, wait for the client's, and close.

        A client has `stall_timeout` seconds to take what waits, and from then on `close_timeout` to answer.
        """
        if self._state == SHAKING:
            self.abort()
        elif self._state == OPEN:
            self._state = CLOSING
            self._write(close_frame(1000 if code in UNSENDABLE else code, reason))
            self._abort_later(self.stall_timeout if self._is_full else self.close_timeout)
            if self._is_held:  # the client's close frame may be there already
                self._is_held = False
                if not self._is_yielding:
                    self._yield()

    def mute(self) -> None:
        """What is written from now on goes nowhere."""
        self._write = _write_nothing

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


def _half_close(transport: asyncio.Transport) -> None:
    try:
        transport.write_eof()
    except OSError:  # the client has reset the connection, and the event loop does not know yet
        transport.abort()


def _send_at_once(transport: asyncio.Transport) -> None:
    """Turn Nagle's algorithm off: asyncio does so only where the listening socket named its protocol, and most do not.

    With it, a message could wait for the acknowledgement of the one before, 40 ms and more.
    """
    found: socket.socket | None = transport.get_extra_info("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _write_nothing(data: bytes) -> None:
    """In the place of a transport's `write` where there is none."""
