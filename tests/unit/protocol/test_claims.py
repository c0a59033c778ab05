"""Headers of MessagePack claim how much follows: what a message costs is bounded by what it has, not by its claims."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketspec import Connection, Identity, SocketApp
from socketspec.errors import ValidationFailed
from socketspec.protocol.decoding import MAX_ITEMS, decode
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.testing import ConnectionClosed, TestClient

CLAIMED = MAX_ITEMS.to_bytes(4, "big")
LONG_TEXT = b"\xda\x40\x00" + b"x" * 0x4000
"""Makes a message so long that its items are counted."""

HEADERS = {
    "array16": b"\xdc" + CLAIMED[2:],
    "array32": b"\xdd" + CLAIMED,
    "map16": b"\xde" + CLAIMED[2:] + b"\xa0",
    "map32": b"\xdf" + CLAIMED + b"\xa0",
    "the longest short array": b"\x9f",
    "the longest short map": b"\x8f\xa0",
    "str32": b"\x91\xdb" + CLAIMED,
    "bin32": b"\x91\xc6" + CLAIMED,
    "ext32": b"\x91\xc9" + CLAIMED + b"\x01",
    "array of maps": b"\xdc" + CLAIMED[2:] + b"\xde" + CLAIMED[2:] + b"\xa0",
}
BEGINNINGS = {"alone": b"", "in a payload": b"\x82\xa5event\xa1e\xa7payload\x81\xa1v"}


def peak_of(data: bytes) -> int:
    """Bytes of memory that parsing takes at its worst."""
    tracemalloc.start()
    try:
        decode(data, Format.MSGPACK)
    except ValidationFailed:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("end", [b"", LONG_TEXT], ids=["short", "long"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("header", HEADERS)
def test_what_is_claimed_and_does_not_come_takes_no_memory(header: str, beginning: str, end: bytes) -> None:
    data = BEGINNINGS[beginning] + HEADERS[header] * 1000 + end
    with pytest.raises(ValidationFailed, match="Not MessagePack"):
        decode(data, Format.MSGPACK)
    assert peak_of(data) < 500_000, "each header that is believed costs 80,000 bytes"


@given(st.lists(st.sampled_from([*HEADERS.values(), b"\x01", b"\xa1x", b"\x90", LONG_TEXT]), max_size=400))
@settings(max_examples=50)
def test_the_memory_is_bounded_by_the_length_whatever_is_claimed(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert peak_of(data) < 300_000 + 20 * len(data)


def test_what_is_claimed_and_comes_is_taken() -> None:
    for items in (
        [],
        [1] * 15,
        [1] * 16,
        [[1] * 20] * 20,
        [None] * (MAX_ITEMS - 3),
        {str(key): key for key in range(99)},
    ):
        message = {"event": "e", "payload": {"v": items}}
        packed = msgpack.packb(message)
        assert isinstance(packed, bytes)
        assert decode(packed, Format.MSGPACK).payload == message["payload"]


class ByToken:
    """The token is the user's name; it may come as the first message."""

    first_message = True

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        return None if handshake.token is None else Identity(user_id=handshake.token)


async def test_before_authentication_claims_take_no_memory_either() -> None:
    app = SocketApp(auth=ByToken())

    @app.on("event")
    async def event(conn: Connection) -> None: ...

    async with TestClient(app) as client:
        conn = await client.connect(subprotocols=["socketspec.v1.msgpack"])
        tracemalloc.start()
        try:
            await conn.send_raw(HEADERS["array16"] * 1000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2_000_000
        assert (await conn.receive())["payload"]["code"] == "AUTH_ERROR"
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert closed.value.code == 4001
