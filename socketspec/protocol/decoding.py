"""Decodes what clients send: the bytes of one message become an envelope.

One JSON text frame (or one MessagePack binary frame, by subprotocol) holds one envelope
``{"event": str, "payload": object, "id": str | int}``; `payload` and `id` may be absent.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NamedTuple, NoReturn, cast

import msgpack
from pydantic_core import from_json

from socketspec.errors import ValidationFailed
from socketspec.protocol.formats import MAX_DEPTH, Format

__all__ = ("MAX_ITEMS", "Envelope", "NoPayload", "decode")


MAX_ID_LENGTH: Final = 128
MAX_ITEMS: Final = 10_000
"""Values in arrays and objects that a message may have, all together, unless an app says otherwise."""

# What a number too large for a float looks like. A match is a suspicion only; no match is certain. In JSON it is looked
# for with every digit made a 0: four times as fast as a regular expression, which would cost more than the parsing.
_DIGITS_AS_0: Final = bytes.maketrans(b"123456789E", b"000000000e")
_MANY_DIGITS: Final = b"0" * 200
_CLAIMS: Final = (b"\xdc", b"\xdd", b"\xde", b"\xdf")
"""What the headers of arrays and maps with more than 15 items begin with."""
_NOT_FINITE_MSGPACK: Final = re.compile(rb"\xca[\x7f\xff][\x80-\xff]|\xcb[\x7f\xff][\xf0-\xff]")
_CONTAINERS: Final = frozenset({dict, list})
_PARSER_SAYS: Final = {
    "max_ext_len": "extension types have no meaning here",
    "map key": "the keys of objects must be strings",
    "incomplete input": "the data ends early",
    "exceeds max_": "the data ends early",
}
"""What the MessagePack parser says of the data, and what that means to those who sent it."""


class NoPayload(dict[str, Any]):
    """Stands in an envelope for a payload that the message does not have, or has as null."""

    __slots__ = ()


class Envelope(NamedTuple):
    """One inbound message, parsed."""

    event: str
    payload: dict[str, Any]
    id: str | int | None


_ENVELOPE_KEYS: Final = frozenset({"event", "payload", "id"})


def decode(data: str | bytes, format: Format, *, max_items: int = MAX_ITEMS) -> Envelope:
    """Parse one message of a connection that speaks `format`; bytes where that is MessagePack.

    Raises `ValidationFailed` with a sentence that says what is wrong.
    """
    is_packed = format is Format.MSGPACK
    value = _parse_msgpack(cast("bytes", data), max_items) if is_packed else _parse_json(data, max_items)
    if type(value) is not dict:
        raise ValidationFailed(f"A message must be an object with an `event`, not {_kind(value)}.")
    if not value.keys() <= _ENVELOPE_KEYS:
        if any(type(key) is bytes for key in value):
            raise ValidationFailed("The keys of a message must be strings, not binary data.")
        unknown = ", ".join(repr(key)[:40] for key in sorted(map(str, value.keys() - _ENVELOPE_KEYS))[:5])
        raise ValidationFailed(f"Unknown field {unknown}: a message has `event`, `payload` and `id` only.")
    event = value.get("event")
    if type(event) is not str or not event:
        raise ValidationFailed(f"`event` must be a non-empty string, not {_kind(event)}.")
    payload = value.get("payload")
    if payload is None:
        payload = NoPayload()
    elif type(payload) is not dict:
        raise ValidationFailed(f"`payload` must be an object, not {_kind(payload)}.")
    return Envelope(event, payload, _check_id(value.get("id")))


def _check_id(value: object) -> str | int | None:
    if value is None or (type(value) is str and len(value) <= MAX_ID_LENGTH):
        return value
    if type(value) is int and -(2**63) <= value < 2**64:
        return value
    raise ValidationFailed(f"`id` must be an integer of 64 bits or a string of at most {MAX_ID_LENGTH} characters.")


def _too_many_items(limit: int) -> ValidationFailed:
    return ValidationFailed(
        f"A message may have {limit} items: values in arrays and objects, counted together.",
        details={"reason": "too_many_items", "limit": limit},
    )


def _parse_json(data: str | bytes, max_items: int) -> Any:
    # An item takes at least two characters, so most messages need not be looked at.
    if len(data) > 2 * max_items and _has_more_items(data, max_items):
        raise _too_many_items(max_items)
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


def _has_more_items(data: str | bytes, limit: int) -> bool:
    """Whether JSON has more than `limit` items: found without making an object of any, and exact where it is JSON."""
    text = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if text.count(b",") + text.count(b"[") + text.count(b"{") <= limit:
        return False
    text = text.replace(rb"\\", b"").replace(rb"\"", b"")  # now every quotation mark begins or ends a string
    if text.count(b'"') > 4 * limit + 4:  # of every two strings, one is an item
        return True
    outside = b"0".join(text.split(b'"')[::2]).translate(None, b" \t\r\n")
    empty = outside.count(b"[]") + outside.count(b"{}")
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{") - empty > limit


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


class _Items:
    """Counts the items of a MessagePack message while it is parsed. Raises `ValidationFailed` beyond the limit."""

    __slots__ = ("_left", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def array(self, items: list[Any]) -> list[Any]:
        self._take(len(items))
        return items

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._take(len(pairs))
        return dict(pairs)

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _too_many_items(self._limit)


def _refuse_claims(data: bytes) -> None:
    """Raise where `data` ends before all that it claims to have has come.

    The parser makes a list with a place for every claimed item before it looks for the first: a header of three bytes
    costs 80 KB, and there can be a thousand of them, each within the one before.
    """
    if any(header in data for header in _CLAIMS):
        unpacker = msgpack.Unpacker(max_buffer_size=len(data))
        unpacker.feed(data)
        try:
            unpacker.skip()  # makes nothing
        except msgpack.OutOfData:
            raise ValueError("incomplete input") from None


def _no_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} has no meaning here")


def _parse_msgpack(data: bytes, max_items: int) -> Any:
    counted: dict[str, Any] = {}
    if len(data) > max_items:  # an item takes at least a byte
        items = _Items(max_items)
        counted = {"list_hook": items.array, "object_pairs_hook": items.map}
    try:
        _refuse_claims(data)
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_ext_len=0,
            ext_hook=_no_extension,  # those of no length are let through otherwise
            max_array_len=max_items,
            max_map_len=max_items,
            **counted,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        detail = str(error)[:120]
        if "exceeds max_array_len" in detail or "exceeds max_map_len" in detail:
            raise _too_many_items(max_items) from None
        raise ValidationFailed(f"Not MessagePack: {_what_is_wrong(error, detail)}.") from None
    # Every level costs at least a byte, so a short message cannot be deep.
    if len(data) > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise ValidationFailed(f"Nested too deeply: at most {MAX_DEPTH} levels.")
    if any(data.count(key) > 1 for key in (b"event", b"payload", b"id")):
        _check_unique(_outermost_keys(data))
    if _NOT_FINITE_MSGPACK.search(data):
        _refuse_infinite(value)
    return value


def _what_is_wrong(error: Exception, detail: str) -> str:
    """What the sender has to know of an error of the parser, which speaks of its own options."""
    if isinstance(error, msgpack.ExtraData):
        return "there is more data behind the message"
    if isinstance(error, msgpack.FormatError):
        return "it has a byte that nothing begins with (0xc1)"
    if isinstance(error, msgpack.StackError | RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "a string is not UTF-8"
    for sign, meaning in _PARSER_SAYS.items():
        if sign in detail:
            return meaning
    return detail.rstrip(".") or "it cannot be read"


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
        is_last = True
        following: list[Any] = []
        for item in level:
            values: Any = item.values() if type(item) is dict else item if type(item) is list else ()
            containers = [each for each in values if type(each) in _CONTAINERS]
            if containers:
                is_last = False
                following.extend(filter(None, containers))  # an empty one is a level, but has no further one
        if is_last:
            return False
        level = following
    return True


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
