"""WebSocket frames: a client's read from bytes, and a server's written. No I/O and no clock here.

Conformance comes first: every rule of RFC 6455 section 5 that a client can break is checked here, and each answer is
the close code that section 7.4.1 asks for. Then speed: most messages are one whole, masked frame in one read.
"""

from __future__ import annotations

import codecs
import struct
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


class FrameReader:
    """Turns the bytes of one client into events. After a `FAIL` or `CLOSE` there are none."""

    __slots__ = (
        "_at",
        "_buffer",
        "_data",
        "_decoder",
        "_fragments",
        "_is_compressed",
        "_is_over",
        "_need",
        "_opcode",
        "_parts",
        "_size",
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
        self._size = 0
        self._fragments = 0
        self._decoder: codecs.IncrementalDecoder | None = None
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
        return len(self._data) - self._at + self._size

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
        self._data, self._at, self._opcode, self._size = b"", 0, 0, 0
        self._parts.clear()

    def _next(self) -> Event | None:
        """The general case, slower."""
        if len(self._data) < self._need:
            return None
        try:
            while (frame := self._frame()) is not None:
                event = self._take(*frame)
                if event is not None:
                    return event
        except _Failed as failed:
            return self._fail(*failed.args)
        return None

    def _frame(self) -> tuple[int, bool, bool, bytes] | None:
        """The next whole frame: opcode, whether it is final, whether it is compressed, payload."""
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
        end = start + 4 + length
        if len(data) < end:
            self._need = end
            return None
        self._need = 0
        self._at = end
        payload = apply_mask(data[start + 4 : end], data[start : start + 4])
        return opcode, is_final, is_compressed, payload

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

    def _take(self, opcode: int, is_final: bool, is_compressed: bool, payload: bytes) -> Event | None:
        if opcode == CLOSE:
            return self._close(payload)
        if opcode > CLOSE:
            return opcode, payload
        if opcode != CONTINUATION:
            self._opcode = opcode
            self._is_compressed = is_compressed
            self._size = self._fragments = 0
            if opcode == TEXT:
                self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._fragments += 1
        if self._fragments > MAX_FRAGMENTS + self._size // FRAGMENT_SIZE:
            raise _Failed(1008, "a message has too many frames")
        if self._is_compressed and self.inflate is not None:
            payload = self._inflated(self.inflate, payload, is_final)
        return self._add(payload, is_final)

    def _inflated(self, inflate: Inflate, payload: bytes, is_final: bool) -> bytes:
        try:
            return inflate.piece(payload, is_last=is_final, limit=self.max_size - self._size)
        except TooLargeError:
            raise _Failed(1009, "the message is too large") from None
        except ValueError:
            raise _Failed(1002, "the message is not compressed as it must be") from None

    def _add(self, payload: bytes, is_final: bool) -> Event | None:
        """One more piece of a message; the message, where that is complete."""
        self._size += len(payload)
        if self._decoder is not None:
            try:
                part: Any = self._decoder.decode(payload, is_final)
            except UnicodeDecodeError:
                raise _Failed(1007, "text is not UTF-8") from None
        else:
            part = payload
        if part:
            self._parts.append(part)
        if not is_final:
            return None
        opcode, parts = self._opcode, self._parts
        self._opcode = self._size = 0
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
