"""Frames between nodes: what goes in comes out, and nothing that comes in can raise."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socketspec.cluster.commands.envelope import MAX_FRAME_BYTES, decode, decode_body, encode_body
from socketspec.errors import BackendError
from socketspec.protocol.publications import Position, Publication
from tests.node_frames import frame

names = st.text(max_size=20)
hexes = st.text("0123456789abcdef", max_size=16)
publications = st.builds(
    Publication,
    event=names,
    payload=st.binary(max_size=100),
    exclude=st.lists(names, max_size=3).map(tuple),
    position=st.none() | st.builds(Position, st.integers(0, 2**53), hexes, hexes),
)


@given(publication=publications)
@example(publication=Publication(event="e", payload=b"\n:\n", position=Position(1, "a", "b")))
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
        ["e", b"", [], 1],
        [b"e", b""],
        ["e", "text"],
        ["e", b"", "abc"],
        ["e", b"", [b"a"]],
        ["e", b"", None],
        {"event": "e"},
    ],
)
def test_another_shape_of_body_is_nothing(parts: object) -> None:
    packed: Any = msgpack.packb(parts)
    assert decode(b"\x01" + packed) is None


@pytest.mark.parametrize(
    "header", [b"", b"1:e", b"1:e:t:x", b"-1:e:t", b"1_0:e:t", b" 1:e:t", b"x:e:t", b"9" * 17 + b":e:t", b"1:\xff:t"]
)
def test_a_broken_position_is_nothing(header: bytes) -> None:
    assert decode(b"\x02" + header + b"\n" + encode_body(Publication(event="e", payload=b""))) is None


@pytest.mark.parametrize("version", [0, 3, 4, 127, 255])
def test_another_version_is_nothing(version: int) -> None:
    assert decode(bytes([version]) + encode_body(Publication(event="e", payload=b""))) is None


def test_what_is_too_large_is_refused_with_the_event_and_the_limit() -> None:
    with pytest.raises(BackendError, match=r"'big' has \d+ bytes"):
        encode_body(Publication(event="big", payload=bytes(MAX_FRAME_BYTES)))
    largest = Publication(event="big", payload=bytes(MAX_FRAME_BYTES - 1000), position=Position(1, "e" * 16, "t" * 8))
    assert decode(frame(largest)) == largest
    assert decode(frame(largest) + bytes(2000)) is None
