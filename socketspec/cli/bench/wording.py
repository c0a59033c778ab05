"""What is said to the server and how what it says is recognised: envelopes, and the mark that each message carries.

A mark is plain ASCII in a string of the payload, so it stands in JSON and in MessagePack alike and is found without
parsing: ``~RUN.STREAM.NUMBER.TIME~``, with time.monotonic_ns() of the sender, which all processes of a machine share.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgpack

from socketspec.cli.bench.frames import BINARY, TEXT, client_frame
from socketspec.cli.bench.load import Load, MisuseError

__all__ = ("PREFLIGHT", "Mark", "Wording")

PREFLIGHT: Final = 99_999_999
"""The stream of the message that is tried before the run."""
_MSGPACK: Final = "socketspec.v1.msgpack"
_STREAM = slice(0, 8)
_NUMBER = slice(9, 19)
_TIME = slice(20, 40)
_LENGTH: Final = 41


class Mark(NamedTuple):
    """What a message says of itself."""

    stream: int
    number: int
    sent: int
    """time.monotonic_ns() of the sender."""


class Wording:
    """Makes the messages of one run, and reads marks."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._is_packed = load.subprotocol == _MSGPACK
        self._opcode = BINARY if self._is_packed else TEXT
        self._join = _template("--join-payload", load.join_payload)
        self._publish = _template("--publish-payload", load.publish_payload)
        if "{text}" not in load.publish_payload:
            raise MisuseError(
                '--publish-payload needs {text} in one of its strings, such as {"room": "{room}", "text": "{text}"}.'
            )
        self._mark = f"~{load.run}.".encode()
        # An event's name opens its message, so this tells a broadcast from an answer that repeats the text.
        self._events = [self._encode_event(name) for name in load.receive_events]
        self._cached = lru_cache(maxsize=10_000)(self._parts)
        self._parts(0)

    def text(self, stream: int, number: int, now: int) -> str:
        """The text of a message."""
        mark = f"~{self._load.run}.{stream:08d}.{number:010d}.{now:020d}~"
        return mark.ljust(self._load.size, "x")

    def join(self, room: int, id: int) -> bytes:
        """The frame that joins a room."""
        payload = _filled(self._join, self._load.room(room), "")
        return self._frame({"event": self._load.join_event, "payload": payload, "id": id})

    def publish(self, room: int, text: str) -> bytes:
        """The frame that publishes to a room."""
        before, after = self._cached(room)
        return client_frame(before + text.encode() + after, self._opcode)

    def payload(self, room: int, text: str) -> dict[str, Any]:
        """The payload of what the backend publishes."""
        filled: dict[str, Any] = _filled(self._publish, self._load.room(room), text)
        return filled

    def event(self, name: str) -> bytes:
        """The frame of an event without payload."""
        return self._frame({"event": name, "payload": {}})

    def read(self, message: bytes) -> Mark | None:
        """The mark of a message that counts as delivered; None for any other."""
        at = message.find(self._mark)
        if at < 0 or not any(message.find(event, 0, at) >= 0 for event in self._events):
            return None
        at += len(self._mark)
        fields = message[at : at + _LENGTH]
        try:
            return Mark(int(fields[_STREAM]), int(fields[_NUMBER]), int(fields[_TIME]))
        except ValueError:
            return None

    def envelope(self, message: bytes) -> dict[str, Any]:
        """A message, parsed; empty for what is no envelope."""
        try:
            value: Any = msgpack.unpackb(message) if self._is_packed else json.loads(message)
        except (ValueError, msgpack.UnpackException, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _parts(self, room: int) -> tuple[bytes, bytes]:
        # A text of the same length stands in for the real one: MessagePack says lengths before strings.
        stand_in = "\x7f" * self._load.size
        encoded = self._encode({"event": self._load.publish_event, "payload": self.payload(room, stand_in)})
        before, found, after = encoded.partition(b"\x7f" * self._load.size)
        if not found or b"\x7f" in after:
            raise MisuseError("--publish-payload: {text} may stand in one string only, once.")
        return before, after

    def _frame(self, envelope: dict[str, Any]) -> bytes:
        return client_frame(self._encode(envelope), self._opcode)

    def _encode(self, value: object) -> bytes:
        if self._is_packed:
            packed: Any = msgpack.packb(value)
            return bytes(packed)
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def _encode_event(self, name: str) -> bytes:
        if self._is_packed:
            return self._encode("event") + self._encode(name)
        return self._encode("event") + b":" + self._encode(name)


def _template(option: str, text: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise MisuseError(f"{option} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise MisuseError(f"{option} must be a JSON object.")
    return value


def _filled(value: Any, room: str, text: str) -> Any:
    """The value with ``{room}`` and ``{text}`` replaced in every string of it."""
    if isinstance(value, str):
        return value.replace("{room}", room).replace("{text}", text)
    if isinstance(value, dict):
        return {key: _filled(each, room, text) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, room, text) for each in value]
    return value
