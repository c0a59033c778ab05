"""The wire format: envelopes in, finished frames out. No I/O here.

In: one JSON text frame (or one MessagePack binary frame, by subprotocol) holds one envelope
``{"event": str, "payload": object, "id": str | int}``; `payload` and `id` may be absent.

Out: a `Message` is encoded at most once per format, however many connections it goes to, and its bytes are shared.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgpack
from pydantic_core import PydanticSerializationError, from_json, to_json

from socketspec.backend import Position
from socketspec.errors import ValidationFailed
from socketspec.tracing import Span

__all__ = (
    "MAX_DEPTH",
    "SUBPROTOCOLS",
    "Envelope",
    "Format",
    "Message",
    "decode",
    "encode_payload",
    "frame_header",
    "negotiate",
)

MAX_DEPTH: Final = 200
"""Levels of nesting a message may have, in either format (what pydantic-core's JSON parser allows)."""

MAX_ID_LENGTH: Final = 128
_MAX_MSGPACK_ITEMS: Final = 65_536

# What a number too large for a float looks like. A match is a suspicion only; no match is certain. In JSON it is looked
# for with every digit made a 0: four times as fast as a regular expression, which would cost more than the parsing.
_DIGITS_AS_0: Final = bytes.maketrans(b"123456789E", b"000000000e")
_MANY_DIGITS: Final = b"0" * 200
_LONG_NUMBER: Final = re.compile(rb"\d{4300}")
_NOT_FINITE_MSGPACK: Final = re.compile(rb"\xca[\x7f\xff][\x80-\xff]|\xcb[\x7f\xff][\xf0-\xff]")


class Format(IntEnum):
    """How a connection's messages are written. The value is an index into a `Message`'s encodings."""

    PLAIN = 0
    """JSON text frames, for clients that offered no subprotocol of ours."""
    JSON = 1
    """JSON text frames with `room`, `offset` and `epoch` on messages of rooms with history."""
    MSGPACK = 2
    """The same as MessagePack in binary frames."""


SUBPROTOCOLS: Final[Mapping[str, Format]] = {
    "socketspec.v1.json": Format.JSON,
    "socketspec.v1.msgpack": Format.MSGPACK,
}
"""The subprotocols a client may offer."""


def negotiate(offered: tuple[str, ...]) -> tuple[str | None, Format]:
    """The subprotocol to select (the client's first choice that we speak) and the format it means."""
    for name in offered:
        if name in SUBPROTOCOLS:
            return name, SUBPROTOCOLS[name]
    return None, Format.PLAIN


class Envelope(NamedTuple):
    """One inbound message, parsed."""

    event: str
    payload: dict[str, Any]
    id: str | int | None


_ENVELOPE_KEYS: Final = frozenset({"event", "payload", "id"})


def decode(data: str | bytes, format: Format) -> Envelope:
    """Parse one message of a connection that speaks `format`.

    Raises `ValidationFailed` with a sentence that says what is wrong.
    """
    value = _parse_msgpack(data) if format is Format.MSGPACK else _parse_json(data)
    if type(value) is not dict:
        raise ValidationFailed(f"A message must be an object with an `event`, not {_kind(value)}.")
    if not value.keys() <= _ENVELOPE_KEYS:
        unknown = ", ".join(repr(key)[:40] for key in sorted(map(str, value.keys() - _ENVELOPE_KEYS))[:5])
        raise ValidationFailed(f"Unknown field {unknown}: a message has `event`, `payload` and `id` only.")
    event = value.get("event")
    if type(event) is not str or not event:
        raise ValidationFailed(f"`event` must be a non-empty string, not {_kind(event)}.")
    payload = value.get("payload")
    if payload is None:
        payload = {}
    elif type(payload) is not dict:
        raise ValidationFailed(f"`payload` must be an object, not {_kind(payload)}.")
    return Envelope(event, payload, _check_id(value.get("id")))


def _check_id(value: object) -> str | int | None:
    if value is None or (type(value) is str and len(value) <= MAX_ID_LENGTH):
        return value
    if type(value) is int and -(2**63) <= value < 2**64:
        return value
    raise ValidationFailed(f"`id` must be an integer of 64 bits or a string of at most {MAX_ID_LENGTH} characters.")


def _parse_json(data: str | bytes) -> Any:
    try:
        value = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ValidationFailed(f"Not JSON: {error}.") from None
    if _may_repeat_a_key(data):
        _refuse_repeated_keys(data)
    # The parser refuses NaN and Infinity, but makes an infinity of 1e400.
    if _may_be_infinite(data):
        _refuse_infinite(value)
    return value


def _may_be_infinite(data: str | bytes) -> bool:
    digits = (data.encode() if isinstance(data, str) else data).translate(_DIGITS_AS_0)
    return b"0e000" in digits or b"0e+000" in digits or (len(digits) > 200 and _MANY_DIGITS in digits)


def _refuse_infinite(value: object) -> None:
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
        elif type(item) is float and not math.isfinite(item):
            raise ValidationFailed("Numbers must be finite, and at most about 1.8e308.")


def _may_repeat_a_key(data: str | bytes) -> bool:
    """A cheap scan that is never wrong when it says no: a repeated key stands twice, unless it is escaped."""
    if isinstance(data, str):
        return data.count('"event"') > 1 or data.count('"payload"') > 1 or data.count('"id"') > 1 or "\\u" in data
    return data.count(b'"event"') > 1 or data.count(b'"payload"') > 1 or data.count(b'"id"') > 1 or b"\\u" in data


def _refuse_repeated_keys(data: str | bytes) -> None:
    # Parsers differ in which of two equal keys they take, so an envelope with two could mean one thing to a proxy
    # that filters it and another to us. Inside the payload the last one counts, as in every JSON parser of Python.
    outermost: list[tuple[str, Any]] = []

    def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal outermost
        outermost = pairs  # objects are finished from the inside out: the last call is the outermost one's
        return {}

    try:
        json.loads(data, object_pairs_hook=remember)
    except RecursionError:
        raise ValidationFailed(f"Nested too deeply: at most {MAX_DEPTH} levels.") from None
    _check_unique([key for key, _ in outermost])


def _check_unique(keys: list[Any]) -> None:
    for key in _ENVELOPE_KEYS:
        if keys.count(key) > 1:
            raise ValidationFailed(f"`{key}` stands twice in the message.")


def _parse_msgpack(data: str | bytes) -> Any:
    if isinstance(data, str):  # the connection refuses text frames before this; kept for direct callers
        raise ValidationFailed("Expected a MessagePack binary frame.")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_ext_len=0,
            max_array_len=_MAX_MSGPACK_ITEMS,
            max_map_len=_MAX_MSGPACK_ITEMS,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        detail = str(error)[:120] or "the data ends early or is nested too deeply"
        raise ValidationFailed(f"Not MessagePack: {detail}.") from None
    # Every level costs at least a byte, so a short message cannot be deep.
    if len(data) > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise ValidationFailed(f"Nested too deeply: at most {MAX_DEPTH} levels.")
    if any(data.count(key) > 1 for key in (b"event", b"payload", b"id")):
        _check_unique(_outermost_keys(data))
    if _NOT_FINITE_MSGPACK.search(data):
        _refuse_infinite(value)
    return value


def _outermost_keys(data: bytes) -> list[Any]:
    """The keys of the outermost map, repeated ones too. `data` has been parsed before."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=True, max_buffer_size=len(data))
    unpacker.feed(data)
    try:
        count = unpacker.read_map_header()
    except (ValueError, msgpack.UnpackException):
        return []
    keys: list[Any] = []
    for _ in range(count):
        keys.append(unpacker.unpack())
        unpacker.skip()
    return keys


def _deeper_than(value: object, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit + 1):
        following: list[Any] = []
        for item in level:
            if type(item) is dict:
                following.extend(item.values())
            elif type(item) is list:
                following.extend(item)
        if not following:
            return False
        level = following
    return any(type(item) in (dict, list) for item in level)


def _kind(value: object) -> str:
    """What JSON calls a value's type; the value itself may be secret or huge."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    if isinstance(value, dict):
        return "an object"
    return "binary data" if isinstance(value, bytes) else "an array"


def encode_payload(value: object) -> bytes:
    """Encode an outbound payload as JSON text.

    `value` is a Pydantic model, a dataclass, or a mapping of what Pydantic can serialise; None means ``{}``.
    Aliases are used and NaN and infinities become null, as Pydantic does. Raises `TypeError` when the value is not
    serialisable or does not become an object.
    """
    if value is None:
        return b"{}"
    try:
        encoded = to_json(value, inf_nan_mode="null")
    except (PydanticSerializationError, UnicodeError, RecursionError, ValueError) as error:
        raise TypeError(f"Cannot send this payload: {error}") from error
    if not encoded.startswith(b"{"):
        raise TypeError(
            f"A payload must be an object (a model, dataclass or dict), not {type(value).__name__}; "
            'wrap it, for example {"items": [...]}.'
        )
    # The encoder writes deeper nesting and longer integers than parsers read; mostly there is nothing to look into.
    if encoded.count(b"{") + encoded.count(b"[") >= MAX_DEPTH or (
        len(encoded) > 4300 and _LONG_NUMBER.search(encoded) is not None
    ):
        _check_readable(encoded)
    return encoded


def _check_readable(encoded: bytes) -> None:
    try:
        from_json(b"[" + encoded + b"]")  # as deep as it will be inside its message
    except ValueError as error:
        raise TypeError(f"Cannot send this payload, which no client could read: {error}") from None


@lru_cache(maxsize=1024)
def _event_prefix(event: str) -> bytes:
    return b'{"event":' + to_json(event) + b',"payload":'


def frame_header(opcode: int, length: int) -> bytes:
    """The header of an unmasked, final server frame (RFC 6455 section 5.2)."""
    if length < 126:
        return bytes((0x80 | opcode, length))
    if length < 65_536:
        return struct.pack("!BBH", 0x80 | opcode, 126, length)
    return struct.pack("!BBQ", 0x80 | opcode, 127, length)


def _plain_integer(value: object) -> str:
    # msgpack asks for help with integers beyond 64 bits only: everything else came out of a JSON parser.
    return str(value)


class Message:
    """One outbound message, encoded at most once per format and shared by all its recipients."""

    # No container inside: thousands may be on their way at once, and each object that the garbage collector tracks
    # brings its next run nearer (measured: 40 % of a busy node's time with three lists in each message).
    __slots__ = (
        "_json",
        "_json_text",
        "_packed",
        "_plain",
        "_plain_text",
        "event",
        "exclude",
        "id",
        "joined",
        "payload",
        "position",
        "room",
        "shared",
        "span",
    )

    def __init__(
        self,
        event: str,
        payload: bytes = b"{}",
        *,
        id: str | int | None = None,
        room: str | None = None,
        position: Position | None = None,
        exclude: tuple[str, ...] = (),
    ) -> None:
        self.event: str = event
        self.payload: bytes = payload
        self.id: str | int | None = id
        self.room: str | None = room
        """The room it was published to; None for a message to one connection."""
        self.position: Position | None = position
        self.exclude: tuple[str, ...] = exclude
        """Ids of connections that do not get it."""
        self.shared: Any = None
        """For a transport to keep what it has made of the message, for the next recipient of the same format."""
        self.joined: Any = None
        """The same, of this message and the ones that were written with it."""
        self.span: Span | None = None
        """What traces its fan-out on this node."""
        self._plain: bytes | None = None
        self._json: bytes | None = None
        self._packed: bytes | None = None
        self._plain_text: str | None = None
        self._json_text: str | None = None

    def __repr__(self) -> str:
        return f"Message({self.event!r}, {len(self.payload)} bytes)"

    def data(self, format: Format) -> bytes:
        """The message body in `format`, without frame header."""
        if format is Format.MSGPACK:
            if self._packed is None:
                self._packed = self._to_msgpack()
            return self._packed
        if format is Format.JSON and self.position is not None:
            if self._json is None:
                self._json = self._to_json(with_position=True)
            return self._json
        if self._plain is None:  # without a position the two are the same
            self._plain = self._to_json()
        return self._plain

    def text(self, format: Format) -> str:
        """The JSON body as a string, for servers that take text."""
        if format is Format.JSON and self.position is not None:
            if self._json_text is None:
                self._json_text = self.data(format).decode()
            return self._json_text
        if self._plain_text is None:
            self._plain_text = self.data(Format.PLAIN).decode()
        return self._plain_text

    def _to_json(self, *, with_position: bool = False) -> bytes:
        parts = [_event_prefix(self.event), self.payload]
        if self.id is not None:
            parts.append(b',"id":' + to_json(self.id))
        if self.position is not None and with_position:
            parts.append(b',"room":' + to_json(self.room) + b',"offset":%d' % self.position.offset)
            parts.append(b',"epoch":' + to_json(self.position.epoch) + b',"tag":' + to_json(self.position.tag))
        parts.append(b"}")
        return b"".join(parts)

    def _to_msgpack(self) -> bytes:
        envelope: dict[str, Any] = {"event": self.event, "payload": from_json(self.payload)}
        if self.id is not None:
            envelope["id"] = self.id
        if self.position is not None:
            offset, epoch, tag = self.position
            envelope |= {"room": self.room, "offset": offset, "epoch": epoch, "tag": tag}
        packed: Any = msgpack.packb(envelope, default=_plain_integer)
        return bytes(packed)
