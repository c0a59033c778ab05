"""permessage-deflate (RFC 7692): what is agreed on, and messages that any client may send compressed."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.headers import parse_extension

from socketspec.adapters.uvicorn.deflate import WINDOW_BITS, Deflate, Inflater, deflate, negotiate
from socketspec.adapters.uvicorn.frames import BINARY, FAIL, PING, TEXT, Event, FrameReader, TooLargeError
from tests.unit.adapters.uvicorn.test_frames import CONTINUATION, drained, frame

RSV1 = 0x40
TAIL = b"\x00\x00\xff\xff"
HELLO = bytes.fromhex("f248cdc9c90700")  # RFC 7692 section 7.2.3.1
HELLO_AGAIN = bytes.fromhex("f200110000")  # section 7.2.3.2: by reference to the first
HELLO_STORED = bytes.fromhex("000500faff48656c6c6f00")  # section 7.2.3.3
HELLO_ENDED = bytes.fromhex("f348cdc9c9070000")  # section 7.2.3.4: the stream has an end
HELLO_TWICE = bytes.fromhex("f24805000000ffffcac9c90700")  # section 7.2.3.5: two blocks
BITS = st.integers(9, 15)


def agreed(offer: str) -> tuple[str, Deflate]:
    answer = negotiate([offer])
    assert answer is not None
    return answer


def reader(offer: str = "permessage-deflate", *, max_size: int = 1 << 20) -> FrameReader:
    return FrameReader(max_size=max_size, inflate=agreed(offer)[1].inflater())


def inflated(data: bytes, bits: int = WINDOW_BITS) -> bytes:
    """What a client with this window makes of a message."""
    return zlib.decompressobj(-bits).decompress(data + TAIL)


class Client:
    """Compresses as a client does: with or without the context of the messages before."""

    def __init__(self, bits: int = 15, *, resets: bool = False, level: int = -1) -> None:
        self._level, self._bits, self._resets = level, bits, resets
        self._zlib = zlib.compressobj(level, wbits=-bits)

    def compressed(self, data: bytes) -> bytes:
        if self._resets:
            self._zlib = zlib.compressobj(self._level, wbits=-self._bits)
        return (self._zlib.compress(data) + self._zlib.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)


# What is agreed on

SERVER = "permessage-deflate; server_no_context_takeover; server_max_window_bits="


@pytest.mark.parametrize(
    ("offer", "answer", "bits"),
    [
        ("permessage-deflate", f"{SERVER}12", 12),
        ("permessage-deflate; client_max_window_bits", f"{SERVER}12; client_max_window_bits=12", 12),
        ("permessage-deflate; client_max_window_bits=15", f"{SERVER}12; client_max_window_bits=12", 12),
        ("permessage-deflate; client_max_window_bits=9", f"{SERVER}12; client_max_window_bits=9", 12),
        ("permessage-deflate; server_max_window_bits=10", f"{SERVER}10", 10),
        ("permessage-deflate; server_max_window_bits=15", f"{SERVER}12", 12),
        ("x-webkit-deflate-frame, permessage-deflate", f"{SERVER}12", 12),
        ("permessage-deflate; unheard_of, permessage-deflate", f"{SERVER}12", 12),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", f"{SERVER}12", 12),
    ],
)
def test_an_offer_is_answered_with_a_small_window_and_no_context(offer: str, answer: str, bits: int) -> None:
    header, deflate_ = agreed(offer)
    assert (header, deflate_.bits) == (answer, bits)


def test_a_client_that_does_not_keep_its_context_is_told_so() -> None:
    assert "client_no_context_takeover" in agreed("permessage-deflate; client_no_context_takeover")[0]


@pytest.mark.parametrize(
    "offers",
    [
        [],
        ["permessage-bzip2"],
        ["permessage-deflate; server_max_window_bits=8"],  # zlib has no such window
        ["permessage-deflate; server_max_window_bits=16"],
        ["permessage-deflate; server_max_window_bits"],
        ["permessage-deflate; client_no_context_takeover=1"],
        ["permessage-deflate; client_max_window_bits; client_max_window_bits"],
        ["permessage-deflate; ="],
        [",;,"],
    ],
)
def test_what_cannot_be_agreed_on_is_left_out(offers: list[str]) -> None:
    assert negotiate(offers) is None


def test_the_second_header_counts_where_the_first_is_of_no_use() -> None:
    assert negotiate(["permessage-bzip2", "permessage-deflate"]) is not None


@given(st.booleans(), st.booleans(), st.none() | BITS, st.none() | st.just(True) | BITS)
def test_the_answer_is_one_that_the_client_can_accept(
    server_resets: bool, client_resets: bool, server_bits: int | None, client_bits: int | bool | None
) -> None:
    client = ClientPerMessageDeflateFactory(server_resets, client_resets, server_bits, client_bits)
    offer = "; ".join(["permessage-deflate", *(f"{k}={v}" if v else k for k, v in client.get_request_params())])
    header, deflate_ = agreed(offer)
    ((name, parameters),) = parse_extension(header)
    made = client.process_response_params(parameters, [])
    assert name == "permessage-deflate"
    assert made.remote_no_context_takeover
    assert made.remote_max_window_bits == deflate_.bits <= WINDOW_BITS
    if client_bits is not None:
        assert made.local_max_window_bits <= WINDOW_BITS


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=40), max_size=3))
def test_no_header_whatever_is_in_it_makes_an_error(offers: list[str]) -> None:
    negotiate(offers)
    negotiate([f"permessage-deflate; {offer}" for offer in offers])


# What the server sends


@given(st.binary(max_size=2000), BITS)
def test_what_is_compressed_needs_no_message_before_it_and_no_larger_window(data: bytes, bits: int) -> None:
    for _ in range(2):
        assert inflated(deflate(data, bits), bits) == data
        assert not deflate(data, bits).endswith(TAIL)


def test_a_small_window_is_kept_to() -> None:
    data = os.urandom(1000) + b"." * 4000
    assert inflated(deflate(data * 3, 9), 9) == data * 3
    assert len(deflate(data * 3, 15)) < len(deflate(data * 3, 9))  # it would reach back further, if it could


# What a client sends


@pytest.mark.parametrize("payload", [HELLO, HELLO_STORED, HELLO_ENDED, HELLO_TWICE])
def test_the_examples_of_the_standard_are_read(payload: bytes) -> None:
    ends = drained(reader(), frame(TEXT, payload, rsv=RSV1), frame(TEXT, HELLO, rsv=RSV1))
    assert ends == [(TEXT, "Hello")] * 2


def test_a_message_may_refer_to_the_one_before() -> None:
    assert drained(reader(), frame(TEXT, HELLO, rsv=RSV1), frame(TEXT, HELLO_AGAIN, rsv=RSV1)) == [(TEXT, "Hello")] * 2


def test_a_message_may_not_refer_to_one_before_where_that_was_agreed_on() -> None:
    events = drained(
        reader("permessage-deflate; client_no_context_takeover"),
        frame(TEXT, HELLO, rsv=RSV1),
        frame(TEXT, HELLO_AGAIN, rsv=RSV1),
    )
    assert events[0] == (TEXT, "Hello")
    assert (events[1][0], events[1][1][0]) == (FAIL, 1002)


def test_fragments_of_a_compressed_message_are_put_together_and_plain_ones_come_as_they_are() -> None:
    read = reader()
    chunks = [frame(TEXT, HELLO[:3], fin=False, rsv=RSV1), frame(PING), frame(CONTINUATION, HELLO[3:])]
    assert drained(read, *chunks, frame(TEXT, b"plain")) == [(PING, b""), (TEXT, "Hello"), (TEXT, "plain")]
    assert drained(read, frame(BINARY, b"pl", fin=False), frame(CONTINUATION, b"ain")) == [(BINARY, b"plain")]


def test_a_message_of_several_streams_is_read_to_its_end() -> None:
    one = zlib.compress(b"abc", wbits=-12)
    assert drained(reader(), frame(BINARY, one * 3 + b"\0", rsv=RSV1)) == [(BINARY, b"abc" * 3)]
    chunks = [frame(BINARY, one, fin=False, rsv=RSV1), frame(CONTINUATION, one)]  # without the empty block
    assert drained(reader(), *chunks * 2) == [(BINARY, b"abc" * 2)] * 2


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\xff\xff\xff", 1002),
        (HELLO_AGAIN, 1002),  # refers to a message that never was
        (b"\x03\x00" * 20 + b"\0", 1002),  # streams of nothing
        (Client().compressed(b"\xff\xfe"), 1007),
    ],
)
def test_what_is_not_compressed_as_it_must_be_fails(payload: bytes, code: int) -> None:
    ((kind, (given_code, _)),) = drained(reader(), frame(TEXT, payload, rsv=RSV1))
    assert (kind, given_code) == (FAIL, code)


@pytest.mark.parametrize(
    "wrong",
    [
        frame(PING, b"", rsv=RSV1),
        frame(TEXT, HELLO[:3], fin=False, rsv=RSV1) + frame(CONTINUATION, HELLO[3:], rsv=RSV1),
        frame(CONTINUATION, HELLO, rsv=RSV1),
        frame(TEXT, HELLO, rsv=0x60),
    ],
)
def test_only_the_first_frame_of_a_message_is_marked_as_compressed(wrong: bytes) -> None:
    assert [(kind, value[0]) for kind, value in drained(reader(), wrong)] == [(FAIL, 1002)]


# Bounds


@pytest.mark.parametrize("pieces", [1, 2, 10])
def test_a_bomb_fails_with_1009_and_is_never_inflated(pieces: int) -> None:
    bomb = Client(level=9).compressed(bytes(64 << 20))
    size = -(-len(bomb) // pieces)
    read = reader(max_size=100_000)
    chunks = [
        frame(0 if at else BINARY, bomb[at : at + size], fin=at + size >= len(bomb), rsv=0 if at else RSV1)
        for at in range(0, len(bomb), size)
    ]
    tracemalloc.start()
    try:
        events = drained(read, *chunks)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert [(kind, value[0]) for kind, value in events] == [(FAIL, 1009)]


@pytest.mark.parametrize("step", [1, 50, 1000])
@pytest.mark.parametrize("parts", [1, 3])
def test_of_an_inflated_message_that_is_not_to_be_kept_only_the_beginning_is_held(step: int, parts: int) -> None:
    skipped: list[int] = []
    read = reader()
    read.keep(100, skipped.append)
    client = Client()
    noise = b"".join(hashlib.sha256(bytes((n,))).digest() for n in range(100))[:3000]
    data = client.compressed(noise)
    size = -(-len(data) // parts)
    cuts = [data[at : at + size] for at in range(0, len(data), size)]
    sent = b"".join(
        frame(CONTINUATION if number else BINARY, part, fin=number == parts - 1, rsv=0 if number else RSV1)
        for number, part in enumerate(cuts)
    )
    ((kind, value),) = drained(read, *(sent[at : at + step] for at in range(0, len(sent), step)))
    assert (kind, value) == (BINARY, noise[:104])
    assert sum(skipped) == 3000 - 104
    assert drained(read, frame(TEXT, client.compressed(b"next"), rsv=RSV1)) == [(TEXT, "next")]


def test_the_limit_is_for_the_whole_message_and_exact() -> None:
    def sent(max_size: int) -> list[Event]:
        data = Client().compressed(b"a" * 500), Client().compressed(b"b" * 500)
        chunks = [frame(BINARY, data[0] + TAIL, fin=False, rsv=RSV1), frame(CONTINUATION, data[1])]
        return drained(reader(max_size=max_size), *chunks)

    assert sent(1000) == [(BINARY, b"a" * 500 + b"b" * 500)]
    assert [(kind, value[0]) for kind, value in sent(999)] == [(FAIL, 1009)]


@given(
    st.binary(max_size=300) | st.binary(max_size=20).map(lambda part: part * 50), st.integers(0, 1000), st.booleans()
)
def test_no_piece_is_longer_than_its_limit(data: bytes, limit: int, is_compressed: bool) -> None:
    inflater = Inflater(15, resets=False)
    try:
        found = inflater.piece(Client().compressed(data) if is_compressed else data, is_last=True, limit=limit)
    except TooLargeError:
        assert not is_compressed or len(data) > limit
    except ValueError:
        assert not is_compressed
    else:
        assert len(found) <= limit
        assert not is_compressed or found == data


# What holds for anything

PAYLOADS = st.binary(max_size=300) | st.binary(min_size=1, max_size=9).map(lambda part: part * 40)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(PAYLOADS, st.lists(st.integers(0, 400), max_size=3), st.booleans()), min_size=1, max_size=5),
    BITS,
    st.booleans(),
    st.integers(0, 9),
)
def test_any_messages_come_as_they_were_compressed(messages: list[Any], bits: int, resets: bool, level: int) -> None:
    offer = f"permessage-deflate; client_max_window_bits={bits}" + "; client_no_context_takeover" * resets
    read, client = reader(offer), Client(min(bits, WINDOW_BITS), resets=resets, level=level)
    events: list[Event] = []
    for payload, places, is_compressed in messages:
        data = client.compressed(payload) if is_compressed else payload
        ends = sorted({min(place, len(data)) for place in places} | {len(data)})
        for start, end in zip([0, *ends], ends, strict=False):
            opcode, rsv = (BINARY, RSV1 * is_compressed) if start == 0 and end == ends[0] else (CONTINUATION, 0)
            events += drained(read, frame(opcode, data[start:end], fin=end == ends[-1], rsv=rsv))
    assert events == [(BINARY, payload) for payload, _, _ in messages]


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_no_bytes_said_to_be_compressed_make_an_error(pieces: list[bytes]) -> None:
    read = reader(max_size=500)
    for number, piece in enumerate(pieces):
        opcode, rsv = (TEXT, RSV1) if number == 0 else (CONTINUATION, 0)
        for kind, value in drained(read, frame(opcode, piece, fin=number == len(pieces) - 1, rsv=rsv)):
            assert kind == TEXT or value[0] in {1002, 1007, 1009}
        assert read.held <= 500
