"""WebSocket frames: a client's read from bytes, and a server's written. No I/O and no clock here.

Conformance comes first: every rule of RFC 6455 section 5 that a client can break is checked here, and each answer is
the close code that section 7.4.1 asks for. Then speed: most messages are one whole, masked frame in one read.
"""

from __future__ import annotations

import codecs
import struct
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # a websockets without its C part, on PyPy for example
    from websockets.utils import apply_mask

from socketspec.text import close_reason

__all__ = (
    "BINARY",
    "CLOSE",
    "FAIL",
    "PING",
    "PONG",
    "TEXT",
    "Event",
    "FrameReader",
    "Inflate",
    "TooLargeError",
    "close_frame",
    "frame_header",
)

FAIL: Final = -1
"""The client broke the rules: the close code to answer with, and a reason."""
CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

Event = tuple[int, Any]
"""``(TEXT, str)``, ``(BINARY, bytes)``, ``(PING, bytes)``, ``(PONG, bytes)``, ``(CLOSE, (code, reason))`` or
``(FAIL, (code, reason))``."""

MAX_FRAGMENTS: Final = 1024
"""Frames that one message may have, empty ones included, beside one for each `FRAGMENT_SIZE` bytes of it."""
FRAGMENT_SIZE: Final = 32

_FINAL_TEXT: Final = 0x81
_FINAL_BINARY: Final = 0x82
_WHOLE: Final = frozenset({_FINAL_TEXT, _FINAL_BINARY})
_SENDABLE: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
"""Close codes below 3000 that may be in a frame (RFC 6455 section 7.4.1 and IANA's registry)."""


class TooLargeError(Exception):
    """A compressed message is larger than allowed."""


class Inflate(Protocol):
    """Decompresses the messages of one connection, piece by piece."""

    def piece(self, data: bytes, *, is_last: bool, limit: int) -> bytes:
        """What one frame's payload holds: at most `limit` bytes. Raises `TooLargeError`, `ValueError` for nonsense."""
        ...


class _Failed(Exception):
    """The client broke the rules: close code and reason."""


def _count_nothing(size: int) -> None:
    """In the place of a reader's `skipped` where nobody wants to know."""


class FrameReader:
    """Turns the bytes of one client into events. After a `FAIL` or `CLOSE` there are none."""

    __slots__ = (
        "_at",
        "_buffer",
        "_data",
        "_decoder",
        "_ends",
        "_fragments",
        "_is_compressed",
        "_is_over",
        "_keep_size",
        "_kept",
        "_left",
        "_mask",
        "_need",
        "_opcode",
        "_parts",
        "_size",
        "_skipped",
        "inflate",
        "max_size",
    )

    def __init__(self, *, max_size: int, inflate: Inflate | None = None) -> None:
        self.max_size: int = max_size
        """Bytes of one message, after decompression."""
        self.inflate: Inflate | None = inflate
        """Decompresses messages. None: they may not be compressed."""
        self._data: bytes | bytearray = b""
        """What is not parsed yet begins at `_at`."""
        self._at = 0
        self._need = 0
        """Length at which `_data` holds a whole frame, where that is known and it does not yet."""
        self._opcode = 0
        """The kind of the message in fragments; 0: there is none."""
        self._is_compressed = False
        self._parts: list[Any] = []
        self._size = self._kept = 0
        """Bytes of the message in fragments: all of them, and those that are held."""
        self._fragments = 0
        self._decoder: codecs.IncrementalDecoder | None = None
        self._left = 0
        """Bytes to come of a frame that is read in pieces, because not all of it is kept; 0: there is none."""
        self._mask = b""
        self._ends = False
        """Whether the frame that is read in pieces is the last of its message."""
        self._keep_size = sys.maxsize
        self._skipped: Callable[[int], None] = _count_nothing
        self._is_over = False

    @property
    def is_partial(self) -> bool:
        """Whether a part of a frame or of a message is held."""
        return self._opcode != 0 or self._at < len(self._data)

    @property
    def in_message(self) -> bool:
        """Whether a message in fragments has begun."""
        return self._opcode != 0

    @property
    def held(self) -> int:
        """Bytes held: unparsed, and of a message in fragments."""
        return len(self._data) - self._at + self._kept

    def keep(self, size: int, skipped: Callable[[int], None]) -> None:
        """Hold no more of a message than it takes to see that it has more than `size` bytes.

        Of such a message only the beginning may be in the event, and that is longer than `size`, too. All of it is
        checked. `skipped` is told how many bytes are left out.
        """
        self._keep_size, self._skipped = size, skipped

    def feed(self, data: bytes) -> None:
        """Remember what was received. `next` parses it."""
        if self._is_over:
            return
        if self._at >= len(self._data):
            self._data = data
            self._at = self._need = 0
        elif isinstance(self._data, bytearray):
            if self._at > 65_536:
                del self._data[: self._at]
                self._need -= self._at
                self._at = 0
            self._data += data
        else:
            joined = bytearray(self._data[self._at :])
            joined += data
            self._need -= self._at
            self._data, self._at = joined, 0

    def next(self) -> Event | None:
        """The next event; None where more bytes are needed."""
        data, at = self._data, self._at
        available = len(data) - at
        if not available:
            self._data, self._at = b"", 0  # an idle connection should not hold what it was sent last
            return None
        if available >= 6 and not self._opcode:
            first = data[at]
            length = data[at + 1] - 0x80
            # The common case: one whole text frame of less than 126 bytes, or of less than 64 KiB.
            if first in _WHOLE:
                start = at + 6
                if length == 126 and available >= 8:
                    length = data[at + 2] << 8 | data[at + 3]
                    start = at + 8
                    if length < 126:
                        length = -1  # not in its shortest form
                end = start + length
                if 0 <= length <= self.max_size and length != 127 and end <= len(data):
                    payload = apply_mask(data[start:end], data[start - 4 : start])
                    self._at = end
                    if first == _FINAL_BINARY:
                        return BINARY, payload
                    try:
                        return TEXT, payload.decode()
                    except UnicodeDecodeError:
                        return self._fail(1007, "text is not UTF-8")
        return self._next()

    def _fail(self, code: int, reason: str) -> Event:
        self._over()
        return FAIL, (code, reason)

    def forget(self) -> None:
        """Hold nothing any more, and read nothing: the connection has ended, and may be in memory for a while yet."""
        self._over()

    def _over(self) -> None:
        self._is_over = True
        self._data, self._at, self._opcode, self._left = b"", 0, 0, 0
        self._size = self._kept = 0
        self._parts.clear()
        self._decoder = self.inflate = None
        self._skipped = _count_nothing

    def _next(self) -> Event | None:
        """The general case, slower."""
        if len(self._data) < self._need:
            return None
        try:
            while (at := self._at) < len(self._data):
                event = self._piece() if self._left else self._frame()
                if event is not None:
                    return event
                if self._at == at:
                    break
        except _Failed as failed:
            return self._fail(*failed.args)
        self._let_go()
        return None

    def _let_go(self) -> None:
        """Hold nothing of what is parsed already while the rest is awaited."""
        if self._at >= len(self._data):
            self._data, self._at, self._need = b"", 0, 0
        elif self._at > 65_536:
            self._data = self._data[self._at :]
            self._need -= self._at
            self._at = 0

    def _frame(self) -> Event | None:
        """Take the next frame, if it is there as a whole; one that is not to be kept may come in pieces."""
        data, at = self._data, self._at
        if len(data) - at < 2:
            return None
        first, second = data[at], data[at + 1]
        opcode, is_final = first & 0x0F, first >= 0x80
        is_compressed = self._check_bits(first, second, opcode)
        length, start = second & 0x7F, at + 2
        if length > 125:
            size = 2 if length == 126 else 8
            if len(data) < start + size:
                return None
            length = self._long_length(bytes(data[start : start + size]))
            start += size
        if opcode < CLOSE and length > self.max_size - self._size:
            raise _Failed(1009, "the message is too large")
        start += 4
        end = start + length
        in_pieces = opcode < CLOSE and length > self._keep_size - self._size and len(data) < end
        self._need = start if in_pieces else end
        if len(data) < self._need:
            return None
        self._at, self._need = self._need, 0
        mask = bytes(data[start - 4 : start])
        if in_pieces:
            self._begin(opcode, is_compressed=is_compressed)
            self._mask, self._left, self._ends = mask, length, is_final
            return None
        payload = apply_mask(data[start:end], mask)
        if opcode == CLOSE:
            return self._close(payload)
        if opcode > CLOSE:
            return opcode, payload
        self._begin(opcode, is_compressed=is_compressed)
        return self._add(payload, is_last=is_final)

    def _piece(self) -> Event | None:
        """Take what is there of a frame that is read in pieces."""
        piece = self._data[self._at : self._at + self._left]
        size = len(piece)
        self._at += size
        self._left -= size
        payload = apply_mask(piece, self._mask)
        turned = size % 4
        self._mask = self._mask[turned:] + self._mask[:turned]
        return self._add(payload, is_last=self._ends and not self._left)

    def _check_bits(self, first: int, second: int, opcode: int) -> bool:
        """Whether the frame begins a compressed message. Raises where its first two bytes are wrong."""
        is_compressed = first & 0x40 != 0
        if first & 0x30 or (is_compressed and (self.inflate is None or opcode not in (TEXT, BINARY))):
            raise _Failed(1002, "a reserved bit is set")
        if second < 0x80:
            raise _Failed(1002, "the frame is not masked")
        if opcode >= CLOSE:
            if opcode > PONG:
                raise _Failed(1002, "reserved opcode")
            if first < 0x80 or second & 0x7F > 125:
                raise _Failed(1002, "a control frame is fragmented or too long")
        elif opcode > BINARY:
            raise _Failed(1002, "reserved opcode")
        elif opcode == CONTINUATION and not self._opcode:
            raise _Failed(1002, "there is no message to continue")
        elif opcode != CONTINUATION and self._opcode:
            raise _Failed(1002, "the message before is not finished")
        return is_compressed

    def _long_length(self, field: bytes) -> int:
        length = int.from_bytes(field, "big")
        if length < (126 if len(field) == 2 else 65_536) or length >= 1 << 63:
            raise _Failed(1002, "the length is not written as it must be")
        return length

    def _begin(self, opcode: int, *, is_compressed: bool) -> None:
        """A frame of a message begins, and often the message with it."""
        if opcode != CONTINUATION:
            self._opcode = opcode
            self._is_compressed = is_compressed
            self._size = self._kept = self._fragments = 0
            if opcode == TEXT:
                self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS + self._size // FRAGMENT_SIZE:
            raise _Failed(1008, "a message has too many frames")

    def _inflated(self, inflate: Inflate, payload: bytes, is_last: bool) -> bytes:
        try:
            return inflate.piece(payload, is_last=is_last, limit=self.max_size - self._size)
        except TooLargeError:
            raise _Failed(1009, "the message is too large") from None
        except ValueError:
            raise _Failed(1002, "the message is not compressed as it must be") from None

    def _add(self, payload: bytes, *, is_last: bool) -> Event | None:
        """One more piece of a message; the message, where that is complete."""
        if self._is_compressed and self.inflate is not None:
            payload = self._inflated(self.inflate, payload, is_last)
        self._size += len(payload)
        if self._decoder is not None:
            try:
                part: Any = self._decoder.decode(payload, is_last)
            except UnicodeDecodeError:
                raise _Failed(1007, "text is not UTF-8") from None
        else:
            part = payload
        # More by four than the size: up to three bytes are with the decoder, and the message has to be seen as larger.
        room = min(self._keep_size + 4 - self._kept, len(payload))
        if part and room > 0:
            self._parts.append(part[:room])
        self._kept += room
        if room < len(payload):
            self._skipped(len(payload) - room)
        return self._whole() if is_last else None

    def _whole(self) -> Event:
        """The message that is complete now."""
        opcode, parts = self._opcode, self._parts
        self._opcode = self._size = self._kept = 0
        self._parts, self._decoder = [], None
        return opcode, "".join(parts) if opcode == TEXT else b"".join(parts)

    def _close(self, payload: bytes) -> Event:
        if not payload:
            self._over()
            return CLOSE, (1005, "")
        code = int.from_bytes(payload[:2], "big")
        if len(payload) == 1 or not (code in _SENDABLE or 3000 <= code < 5000):
            raise _Failed(1002, "the close frame has no valid code")
        try:
            reason = payload[2:].decode()
        except UnicodeDecodeError:
            raise _Failed(1007, "the reason is not UTF-8") from None
        self._over()
        return CLOSE, (code, reason)


def frame_header(opcode: int, length: int) -> bytes:
    """The header of an unmasked, final server frame (RFC 6455 section 5.2)."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, length)
    return struct.pack("!BBQ", 0x80 | opcode, 127, length)


def close_frame(code: int, reason: str) -> bytes:
    """A server's close frame with as much of `reason` as fits into it; one without a code for 1005."""
    payload = b"" if code == 1005 else struct.pack("!H", code) + close_reason(reason).encode()
    return frame_header(CLOSE, len(payload)) + payload
