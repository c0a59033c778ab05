"""Encodes what clients are sent: a message, once per format, however many connections it goes to."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, Protocol

import msgpack
from pydantic_core import PydanticSerializationError, SchemaValidator, core_schema, from_json, to_json

from socketspec.protocol.formats import MAX_DEPTH, Format
from socketspec.protocol.publications import Position

__all__ = ("Encoded", "Message", "Span", "Write", "check_encoded", "encode_payload", "is_payload")

_LONG_NUMBER: Final = re.compile(rb"(?<!\d)\d{4300}")
"""Digits that may be a number longer than parsers read. It can begin only where digits begin: else a text of 4,299
digits again and again, which a client may have sent, would be read from each of them.
"""


class Encoded(bytes):
    """A payload that has been encoded already, by the type that was declared for it."""

    __slots__ = ()


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
        if isinstance(value, Encoded):
            return value
        raise _no_object(value)
    if encoded.count(b"{") + encoded.count(b"[") >= MAX_DEPTH or len(encoded) > 4300:
        check_encoded(encoded, value)
    return encoded


def check_encoded(encoded: bytes, value: object) -> bytes:
    """Return `encoded`, made of `value`, if it can be a payload. Raises `TypeError` if not."""
    if not encoded.startswith(b"{"):
        raise _no_object(value)
    # The encoder writes deeper nesting and longer integers than parsers read. Only a payload that could have them is
    # parsed to find out.
    if encoded.count(b"{") + encoded.count(b"[") >= MAX_DEPTH or (
        len(encoded) > 4300 and _LONG_NUMBER.search(encoded) is not None
    ):
        _check_readable(encoded)
    return encoded


def _no_object(value: object) -> TypeError:
    return TypeError(
        f"A payload must be an object (a model, dataclass or dict), not {type(value).__name__}; "
        'wrap it, for example {"items": [...]}.'
    )


def _check_readable(encoded: bytes) -> None:
    try:
        from_json(b"[" + encoded + b"]")  # as deep as it will be inside its message
    except ValueError as error:
        raise TypeError(f"Cannot send this payload, which no client could read: {error}") from None


_ANY_OBJECT: Final = SchemaValidator(core_schema.typed_dict_schema({}, extra_behavior="ignore"))
"""Reads a JSON object and makes no Python object of what is in it: a small part of what parsing costs."""


_N: Final = ord("N")
_I: Final = ord("I")


def is_payload(encoded: bytes) -> bool:
    """Whether `encoded` is JSON text of an object that a message can carry as it is, as `encode_payload` makes it."""
    try:
        _ANY_OBJECT.validate_json(encoded)
        # To look for a number costs a tenth of looking for bytes, which Python first tries to take for a number.
        if (_N in encoded and b"NaN" in encoded) or (_I in encoded and b"Infinity" in encoded):
            from_json(encoded, allow_inf_nan=False)  # they may stand within a text
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1024)
def _event_prefix(event: str) -> bytes:
    return b'{"event":' + to_json(event) + b',"payload":'


def _plain_integer(value: object) -> str:
    # msgpack calls this for integers of more than 64 bits only: all other values came out of a JSON parser.
    return str(value)


class Message:
    """One outbound message, encoded at most once per format and shared by all its recipients."""

    # No lists or dicts inside: thousands of messages may be on their way at once, and each object that the garbage
    # collector tracks brings its next run nearer (measured: 40 % of a busy node's time with three lists in each).
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
        """What a transport has made of the message: kept here for the next recipient of the same format."""
        self.joined: Any = None
        """The same, made of this message and the ones that were written with it."""
        self.span: Span | None = None
        """Measures its fan-out on this node, if that is traced."""
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


class Span(Protocol):
    """Something whose duration is traced."""

    def end(self) -> None:
        """It ends now."""
        ...


OVERHEAD: Final = 512
"""Bytes that a waiting message counts on top of its body: what else it takes in memory, measured."""


class Write(Protocol):
    """Takes a connection's messages, in order."""

    def __call__(self, *messages: Message) -> None: ...
