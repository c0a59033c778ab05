"""How many items a message may have: counted alike in both formats, before objects are made of them."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from socketspec import SocketApp
from socketspec.errors import ConfigurationError, ValidationFailed
from socketspec.protocol import decoding
from socketspec.protocol.decoding import MAX_ITEMS, decode
from socketspec.protocol.formats import Format

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='ab,[]{}":\\\n é', max_size=6),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=5),
    max_leaves=25,
)


def items_of(value: object) -> int:
    """The values in arrays and objects: what is to be found."""
    if isinstance(value, dict):
        return len(value) + sum(map(items_of, value.values()))
    if isinstance(value, list):
        return len(value) + sum(map(items_of, value))
    return 0


def envelope(value: object) -> dict[str, Any]:
    return {"event": "e", "payload": {"v": value}}


def accepts(data: str | bytes, format: Format, limit: int) -> bool:
    """Whether `data` is taken; fails where it is refused for anything else than its items."""
    try:
        return decode(data, format, max_items=limit).event == "e"
    except ValidationFailed as refusal:
        if refusal.details != {"reason": "too_many_items", "limit": limit}:
            raise
        return False


@given(value=VALUES, indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), over=st.integers(-1, 1))
def test_the_limit_holds_exactly_in_both_formats(value: Any, indent: int | None, ascii_only: bool, over: int) -> None:
    message = envelope(value)
    items = items_of(message)
    limit = items - over
    text = json.dumps(message, indent=indent, ensure_ascii=ascii_only)
    assert accepts(text, Format.JSON, limit) is (over <= 0)
    assert accepts(text.encode(), Format.PLAIN, limit) is (over <= 0)
    packed = msgpack.packb(message)
    assert isinstance(packed, bytes)
    assert accepts(packed, Format.MSGPACK, limit) is (over <= 0)


@given(st.text(alphabet='",[]{}:\\x0 \n', max_size=60))
def test_what_is_not_json_is_refused_whatever_is_counted_in_it(text: str) -> None:
    try:
        from_json(text)
    except ValueError:
        with pytest.raises(ValidationFailed):
            decode(text, Format.PLAIN, max_items=1)


MANY: dict[str, Any] = {
    "empty arrays": [[]] * 60_000,
    "empty objects": [{}] * 60_000,
    "nulls": [None] * 60_000,
    "nested arrays": [[[None] * 8]] * 6000,
    "objects": [{"a": 1, "b": 2}] * 4000,
    "an object": {str(number): 0 for number in range(MAX_ITEMS)},
    "empty strings": [""] * 60_000,
}


@pytest.mark.parametrize("name", MANY)
def test_many_tiny_items_are_refused_by_default(name: str) -> None:
    message = envelope(MANY[name])
    packed = msgpack.packb(message)
    assert isinstance(packed, bytes)
    for data, format in ((packed, Format.MSGPACK), (json.dumps(message), Format.JSON)):
        assert not accepts(data, format, MAX_ITEMS)


def test_no_object_is_made_of_a_message_in_json_with_too_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "from_json", pytest.fail)
    assert not accepts(json.dumps(envelope([[]] * 60_000)), Format.JSON, MAX_ITEMS)


def test_equal_keys_are_counted_each_in_messagepack() -> None:
    packer = msgpack.Packer()
    entries = b"".join(packer.pack("k") + packer.pack(1) for _ in range(MAX_ITEMS))
    data = packer.pack_map_header(2) + packer.pack("event") + packer.pack("e") + packer.pack("payload")
    data += packer.pack_map_header(1) + packer.pack("v") + packer.pack_map_header(MAX_ITEMS) + entries
    assert not accepts(data, Format.MSGPACK, MAX_ITEMS)


def test_text_is_no_item_however_it_looks() -> None:
    for text in ("," * 60_000, "[" * 60_000, '"' * 30_000, "\\" * 30_000, '\\",' * 10_000):
        assert accepts(json.dumps(envelope(text)), Format.JSON, MAX_ITEMS)


@pytest.mark.parametrize("code", range(-128, 128))
@pytest.mark.parametrize("size", [0, 1, 4])
def test_extension_types_are_refused_of_whatever_code_and_length(code: int, size: int) -> None:
    header = {0: bytes((0xC7, 0)), 1: b"\xd4", 4: b"\xd6"}[size]
    extension = header + code.to_bytes(1, "big", signed=True) + bytes(size)
    data = b"\x82\xa5event\xa1e\xa7payload\x81\xa1v" + extension
    with pytest.raises(ValidationFailed, match="Not MessagePack"):
        decode(data, Format.MSGPACK)


@pytest.mark.parametrize(
    ("data", "meaning"),
    [
        (b"\xd4\x01\x00", "extension types have no meaning here"),
        (b"\xc7\x00\x05", "extension type 5 has no meaning here"),
        (b"\x81\x01\x02", "the keys of objects must be strings"),
        (b"\x81\x91\x01\x02", "the keys of objects must be strings"),
        (b"\x80\x80", "there is more data behind the message"),
        (b"\xc1", "it has a byte that nothing begins with (0xc1)"),
        (b"\x81\xa5event\xc1", "it has a byte that nothing begins with (0xc1)"),
        (b"", "the data ends early"),
        (b"\x81\xa5eve", "the data ends early"),
        (b"\xc6\xff\xff\xff\xff", "the data ends early"),
        (b"\xdd\x00\x00\x00\x20\x01", "the data ends early"),
        (b"\x91" * 3000 + b"\x01", "it is nested too deeply"),
        (b"\x81\xa5event\xa1\xff", "a string is not UTF-8"),
    ],
)
def test_what_is_no_messagepack_is_said_without_the_words_of_the_parser(data: bytes, meaning: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        decode(data, Format.MSGPACK)
    assert caught.value.message == f"Not MessagePack: {meaning}."


def test_binary_data_is_no_key_of_a_message() -> None:
    with pytest.raises(ValidationFailed, match=r"^The keys of a message must be strings, not binary data\.$"):
        decode(b"\x81\xc4\x05event\xa1e", Format.MSGPACK)


def test_the_limit_is_an_option_of_the_app_and_in_its_schema() -> None:
    assert SocketApp(max_payload_items=7).schema()["max_payload_items"] == 7
    assert SocketApp().schema()["max_payload_items"] == MAX_ITEMS
    with pytest.raises(ConfigurationError, match="max_payload_items"):
        SocketApp(max_payload_items=0)
