"""The wire format: what is refused, what is encoded, and that both formats say the same."""

from __future__ import annotations

import dataclasses
import datetime
import math
import uuid
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json

from socketspec.errors import ValidationFailed
from socketspec.protocol.decoding import Envelope, decode
from socketspec.protocol.encoding import Message, encode_payload
from socketspec.protocol.formats import MAX_DEPTH, Format, negotiate
from socketspec.protocol.publications import Position

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
PAYLOADS = st.dictionaries(st.text(), VALUES, max_size=5)
IDS = st.none() | st.text(max_size=128) | st.integers(-(2**63), 2**64 - 1)


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def nested(levels: int) -> Any:
    """A list of lists, `levels` in all."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def accepted(data: str | bytes, format: Format) -> bool:
    try:
        decode(data, format)
    except ValidationFailed:
        return False
    return True


@given(st.text() | st.binary())
def test_json_decoding_refuses_or_accepts_and_never_fails(data: str | bytes) -> None:
    accepted(data, Format.JSON)


@given(st.binary())
def test_msgpack_decoding_refuses_or_accepts_and_never_fails(data: bytes) -> None:
    accepted(data, Format.MSGPACK)


@given(VALUES, st.data())
def test_a_damaged_message_never_fails(value: object, data: st.DataObject) -> None:
    for format, whole in (
        (Format.MSGPACK, pack({"event": "e", "payload": {"v": value}})),
        (Format.JSON, to_json({"event": "e", "payload": {"v": value}})),
    ):
        start = data.draw(st.integers(0, len(whole)))
        accepted(whole[:start] + data.draw(st.binary(max_size=3)) + whole[start + 1 :], format)


@given(st.text(min_size=1), PAYLOADS, IDS)
def test_what_a_client_encodes_is_what_is_decoded(event: str, payload: dict[str, Any], id: str | int | None) -> None:
    expected = Envelope(event, payload, id)
    message = {"event": event, "payload": payload, "id": id}
    assert decode(to_json(message).decode(), Format.PLAIN) == expected
    assert decode(to_json(message), Format.JSON) == expected
    assert decode(pack(message), Format.MSGPACK) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Not JSON"),
        ("nope", "Not JSON"),
        ("{} {}", "Not JSON"),
        ('{"event":"e","payload":{"x":NaN}}', "Not JSON"),
        ('{"event":"e","payload":{"x":' + "9" * 5000 + "}}", "Not JSON"),
        ('{"event":"\\ud800"}', "Not JSON"),
        ("[]", "must be an object"),
        ('"e"', "must be an object"),
        ("null", "must be an object with an `event`, not null"),
        ("{}", "`event` must be a non-empty string, not null"),
        ('{"event":""}', "not an empty string"),
        ('{"event":1}', "not a number"),
        ('{"event":true}', "not a boolean"),
        ('{"event":{}}', "not an object"),
        ('{"event":"e","payload":[]}', "`payload` must be an object, not an array"),
        ('{"event":"e","payload":"x"}', "`payload` must be an object, not a string"),
        ('{"event":"e","id":1.5}', "`id` must be"),
        ('{"event":"e","id":true}', "`id` must be"),
        ('{"event":"e","id":18446744073709551616}', "`id` must be"),
        ('{"event":"e","id":"' + "x" * 129 + '"}', "`id` must be"),
        ('{"event":"e","room":"r","x":1}', "Unknown field 'room', 'x'"),
        ('{"event":"e","event":"f"}', "`event` stands twice"),
        ('{"event":"e","\\u0065vent":"f"}', "`event` stands twice"),
        ('{"event":"e","payload":{},"p\\u0061yload":{"a":1}}', "`payload` stands twice"),
        ('{"event":"e","id":1,"id":1}', "`id` stands twice"),
        ('{"event":"e","payload":{"x":1e400}}', "must be finite"),
        ('{"event":"e","payload":{"x":[-1E+0400]}}', "must be finite"),
        ('{"event":"e","payload":{"x":' + "9" * 309 + ".0}}", "must be finite"),
        ('{"event":"e","payload":{"x":' + "9" * 250 + "e99}}", "must be finite"),
    ],
)
def test_refused_json_is_refused_with_a_reason(text: str, complaint: str) -> None:
    for data in (text, text.encode()):
        with pytest.raises(ValidationFailed) as caught:
            decode(data, Format.PLAIN)
        assert complaint in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack({"event": "e"}) + b"\x00",
        pack([1]),
        pack({1: 2}),
        pack({"event": b"e"}),
        pack({"event": "e", "payload": {1: 2}}),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x81\xa5event\xa1\xff",
        b"\x81\xa5event\xd4\x05\x00",
        b"\x91" * 100_000 + b"\x90",
        b"\x82\xa5event\xa1a\xa5event\xa1b",
        b"\x82\xa5event\xa1a\xd9\x05event\xa1b",
        b"\x82\xa5event\xa1a\xa7payload\x81\xa1x\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
        b"\x82\xa5event\xa1a\xa7payload\x81\xa1x\xca\xff\x80\x00\x00",
    ],
)
def test_refused_msgpack_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationFailed):
        decode(data, Format.MSGPACK)


def test_equal_keys_inside_the_payload_are_no_concern_of_the_envelope() -> None:
    text = '{"event":"e","payload":{"event":1,"payload":2,"id":3,"n":1e-400,"s":"1e400"}}'
    assert decode(text, Format.PLAIN).payload == {"event": 1, "payload": 2, "id": 3, "n": 0.0, "s": "1e400"}
    packed = pack({"event": "e", "payload": {"event": 1, "event2": "event", "b": b"\xcb\x7f\xff"}})
    assert decode(packed, Format.MSGPACK).payload == {"event": 1, "event2": "event", "b": b"\xcb\x7f\xff"}


@given(st.integers(150, 260))
def test_both_formats_allow_the_same_depth(levels: int) -> None:
    message = {"event": "e", "payload": {"v": nested(levels)}}
    text = '{"event":"e","payload":{"v":' + "[" * levels + "]" * levels + "}}"
    assert accepted(text, Format.JSON) is accepted(pack(message), Format.MSGPACK) is (levels <= MAX_DEPTH - 1)


def test_the_first_subprotocol_offered_that_we_speak_is_selected() -> None:
    assert negotiate(("x", "socketspec.v1.msgpack", "socketspec.v1.json")) == ("socketspec.v1.msgpack", Format.MSGPACK)
    assert negotiate(("socketspec.bearer.abc",)) == (None, Format.PLAIN)


# Encoding


class Aliased(BaseModel):
    user_id: int = Field(alias="userId")


@dataclasses.dataclass
class Point:
    x: float
    at: datetime.datetime
    key: uuid.UUID
    raw: bytes


def test_models_dataclasses_and_rich_values_become_json() -> None:
    at = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    point = Point(math.nan, at, uuid.UUID(int=5), b"hi")
    assert encode_payload(None) == b"{}"
    assert encode_payload(Aliased(userId=3)) == b'{"userId":3}'
    assert from_json(encode_payload(point)) == {
        "x": None,
        "at": "2024-05-06T07:08:09Z",
        "key": str(uuid.UUID(int=5)),
        "raw": "hi",
    }
    assert encode_payload({"a": math.inf, "b": -math.inf}) == b'{"a":null,"b":null}'


@pytest.mark.parametrize(
    "value", [[1], "x", 5, {"x": object()}, {"x": "\ud800"}, {"x": b"\xff"}, {"x": nested(300)}, {"x": 10**5000}]
)
def test_what_cannot_be_sent_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        encode_payload(value)


@pytest.mark.parametrize("levels", range(195, 260, 3))
def test_every_payload_that_is_accepted_can_be_read_back_in_both_formats(levels: int) -> None:
    if levels > 199:
        with pytest.raises(TypeError, match="Cannot send this payload"):
            encode_payload({"v": nested(levels)})
        return
    payload = encode_payload({"v": nested(levels)})
    message = Message("e", payload)
    plain = from_json(message.data(Format.PLAIN))
    assert plain == msgpack.unpackb(message.data(Format.MSGPACK))
    assert decode(message.data(Format.PLAIN), Format.PLAIN).event == "e"


def test_many_brackets_that_are_not_deep_are_sent() -> None:
    rows = {"rows": [{"n": index} for index in range(1000)], "text": "[{" * 500}
    assert from_json(encode_payload(rows)) == rows


@given(PAYLOADS, IDS, st.none() | st.builds(Position, st.integers(0, 2**63 - 1), st.text(), st.text()))
def test_recipients_of_both_formats_get_equal_data(
    payload: dict[str, Any], id: str | int | None, position: Position | None
) -> None:
    room = None if position is None else "room"
    message = Message("event", encode_payload(payload), id=id, room=room, position=position)
    as_json = from_json(message.data(Format.JSON))
    assert as_json == msgpack.unpackb(message.data(Format.MSGPACK))
    assert as_json["payload"] == payload
    plain = from_json(message.data(Format.PLAIN))
    assert plain == {key: as_json[key] for key in ("event", "payload", "id") if key in as_json}
    assert message.text(Format.JSON).encode() == message.data(Format.JSON)


def test_integers_beyond_64_bits_reach_msgpack_recipients_as_text() -> None:
    message = Message("e", encode_payload({"small": 2**64 - 1, "big": 2**70, "low": -(2**70)}))
    assert msgpack.unpackb(message.data(Format.MSGPACK))["payload"] == {
        "small": 2**64 - 1,
        "big": str(2**70),
        "low": str(-(2**70)),
    }


def test_a_message_is_encoded_once_per_format(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    packb = msgpack.packb

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return packb(*args, **options)

    monkeypatch.setattr(msgpack, "packb", counted)
    message = Message("e", b'{"a":1}', room="r")
    for format in Format:
        first = message.data(format)
        for _ in range(5):
            assert message.data(format) is first
    assert len(calls) == 1
    assert message.data(Format.PLAIN) is message.data(Format.JSON)  # they differ only where there is a position
    assert message.text(Format.PLAIN) is message.text(Format.PLAIN)
