"""Frames between nodes: what goes in comes out, and nothing that comes in can raise."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socketspec.cluster.commands.envelope import MAX_FRAME_BYTES, decode, decode_body, encode_body
from socketspec.errors import BackendError
from socketspec.protocol.encoding import Message, encode_payload
from socketspec.protocol.formats import Format
from socketspec.protocol.names import is_reserved
from socketspec.protocol.publications import Position, Publication
from tests.node_frames import frame, payload

names = st.text(max_size=20)
hexes = st.text("0123456789abcdef", max_size=16)
events = st.text("abcxyz.-_ü", min_size=1, max_size=20).filter(lambda name: not is_reserved(name))
payloads = st.dictionaries(names, st.recursive(st.none() | st.integers() | names, st.lists, max_leaves=5), max_size=5)
publications = st.builds(
    Publication,
    event=events,
    payload=payloads.map(encode_payload),
    exclude=st.lists(names, max_size=3).map(tuple),
    position=st.none() | st.builds(Position, st.integers(0, 2**53), hexes, hexes),
)


@given(publication=publications)
@example(publication=Publication(event="e", payload=b'{"\\n:\\n":1}', position=Position(1, "a", "b")))
def test_what_is_encoded_is_decoded(publication: Publication) -> None:
    assert decode(frame(publication)) == publication


@given(publication=publications)
def test_a_body_leaves_the_position_to_the_reader(publication: Publication) -> None:
    assert decode_body(encode_body(publication), publication.position) == publication


def test_the_frames_are_these_bytes() -> None:
    body = b"\x92\xa1e\xc4\x02{}"
    assert frame(Publication(event="e", payload=b"{}")) == b"\x01" + body
    assert frame(Publication(event="e", payload=b"{}", exclude=("a",))) == b"\x01\x93\xa1e\xc4\x02{}\x91\xa1a"
    assert frame(Publication(event="e", payload=b"{}", position=Position(7, "ep", "t"))) == b"\x027:ep:t\n" + body


@given(data=st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda rest: b"\x027:ep:t\n" + rest)))
@example(data=b"\x01" + b"\x91" * 100_000)
@example(data=b"\x01\xdd\xff\xff\xff\xff")
@example(data=b"\x01\xc1")
@example(data=b"\x01\xd6\xff\xff\xff\xff\xff")
def test_any_bytes_are_a_publication_or_nothing(data: bytes) -> None:
    publication = decode(data)
    assert publication is None or decode(frame(publication)) == publication


@given(publication=publications, data=st.data())
def test_a_frame_that_was_cut_is_nothing(publication: Publication, data: st.DataObject) -> None:
    whole = frame(publication)
    assert decode(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@given(publication=publications, data=st.data())
def test_a_frame_with_one_byte_changed_never_raises(publication: Publication, data: st.DataObject) -> None:
    changed = bytearray(frame(publication))
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    decoded = decode(bytes(changed))
    assert decoded is None or isinstance(decoded, Publication)


@pytest.mark.parametrize(
    "parts",
    [
        5,
        [],
        ["e"],
        [b"e", b"{}"],
        ["e", "{}"],
        ["e", b"{}", "abc"],
        ["e", b"{}", [b"a"]],
        ["e", b"{}", None],
        {"event": "e"},
    ],
)
def test_another_shape_of_body_is_nothing(parts: object) -> None:
    packed: Any = msgpack.packb(parts)
    assert decode(b"\x01" + packed) is None


@pytest.mark.parametrize(
    "header", [b"", b"1:e", b"-1:e:t", b"1_0:e:t", b" 1:e:t", b"x:e:t", b"9" * 17 + b":e:t", b"1:\xff:t"]
)
def test_a_broken_position_is_nothing(header: bytes) -> None:
    assert decode(b"\x02" + header + b"\n" + encode_body(Publication(event="e", payload=b"{}"))) is None


@pytest.mark.parametrize("version", [0, 3, 4, 127, 255])
def test_another_version_is_nothing(version: int) -> None:
    assert decode(bytes([version]) + encode_body(Publication(event="e", payload=b"{}"))) is None


@pytest.mark.parametrize(
    "more",
    [[{"ttl": 1}], [None], [{1: [b"x"]}, 5, "y"], [msgpack.ExtType(5, b"x")], [msgpack.Timestamp(1)], [1.5, True]],
)
def test_fields_that_a_later_version_adds_are_not_read(more: list[object]) -> None:
    packed: Any = msgpack.packb(["e", b"{}", ["id"], "trace", *more])
    assert decode(b"\x01" + packed) == Publication("e", b"{}", ("id",), trace="trace")
    kept = Publication("e", b"{}", ("id",), Position(7, "ep", "t"), "trace")
    assert decode(b"\x027:ep:t:more:and more\n" + packed) == kept


@pytest.mark.parametrize("trace", [7, None, ["x"], "x" * 129])
def test_no_message_is_lost_for_a_trace_that_cannot_be_read(trace: object) -> None:
    packed: Any = msgpack.packb(["e", b"{}", [], trace])
    assert decode(b"\x01" + packed) == Publication("e", b"{}")


NO_PAYLOADS = [
    b"",
    b"text",
    b"[]",
    b"null",
    b"{",
    b"{}}",
    b"{}{}",
    b"{a}",
    b'{"a":1,}',
    b'{"a":NaN}',
    b'{"a":[-Infinity]}',
    b'{"a":"\xff"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"a":"\\ud800"}',
    b'{"a":"\0"}',
    b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"a":' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("payload", NO_PAYLOADS)
def test_a_payload_that_is_no_json_object_is_nothing(payload: bytes) -> None:
    packed: Any = msgpack.packb(["e", payload])
    assert decode(b"\x01" + packed) is None


@pytest.mark.parametrize(
    "payload", [b"{}", b' {"a": 1} ', b'{"text":"NaN and Infinity"}', '{"ü":"\U0001f600"}'.encode()]
)
def test_any_json_object_is_a_payload(payload: bytes) -> None:
    packed: Any = msgpack.packb(["e", payload])
    assert decode(b"\x01" + packed) == Publication("e", payload)


@pytest.mark.parametrize("event", ["", "__ack__", "__new__", "a\0b", "a\nb", " a", "x" * 201, "\u202e"])
def test_an_event_that_no_app_can_send_is_nothing(event: str) -> None:
    packed: Any = msgpack.packb([event, b"{}"])
    assert decode(b"\x01" + packed) is None


@given(payload=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: b'{"a":' + text.encode() + b"}"))
def test_what_is_decoded_can_be_sent_to_every_client(payload: bytes) -> None:
    packed: Any = msgpack.packb(["e", payload])
    publication = decode(b"\x01" + packed)
    if publication is not None:
        message = Message(publication.event, publication.payload)
        assert json.loads(message.text(Format.JSON), parse_constant=pytest.fail)["event"] == "e"
        assert msgpack.unpackb(message.data(Format.MSGPACK))["event"] == "e"


def test_what_is_too_large_is_refused_with_the_event_and_the_limit() -> None:
    with pytest.raises(BackendError, match=r"'big' has \d+ bytes"):
        encode_body(Publication(event="big", payload=bytes(MAX_FRAME_BYTES)))
    largest = Publication(event="big", payload=payload(MAX_FRAME_BYTES - 1000), position=Position(1, "e" * 16, "t" * 8))
    assert decode(frame(largest)) == largest
    assert decode(frame(largest) + bytes(2000)) is None
