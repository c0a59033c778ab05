"""Frames of a client: each rule of RFC 6455 section 5, then what holds for any bytes. Last, what a server writes."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.protocol import CLIENT, OPEN, Protocol

from socketspec.adapters.uvicorn.frames import (
    BINARY,
    CLOSE,
    FAIL,
    FRAGMENT_SIZE,
    MAX_FRAGMENTS,
    PING,
    PONG,
    TEXT,
    Event,
    FrameReader,
    close_frame,
    frame_header,
)

CONTINUATION = 0
MASK = bytes.fromhex("37fa213d")  # of the examples in RFC 6455 section 5.7
TEXTS = st.text("\0aß€𝄞\U0010ffff", max_size=80)  # one to four bytes a character
CONTROL = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes = MASK) -> bytes:
    """A client's frame, masked without the library that unmasks it."""
    first = opcode | rsv | (0x80 if fin else 0)
    if len(data) < 126:
        head = struct.pack("!BB", first, 0x80 | len(data))
    elif len(data) < 65_536:
        head = struct.pack("!BBH", first, 0x80 | 126, len(data))
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, len(data))
    pad = (mask * (len(data) // 4 + 1))[: len(data)]
    return head + mask + (int.from_bytes(data) ^ int.from_bytes(pad)).to_bytes(len(data))


def drained(reader: FrameReader, *chunks: bytes) -> list[Event]:
    """Every event, each chunk being read to its end before the next comes."""
    events: list[Event] = []
    for chunk in chunks:
        reader.feed(chunk)
        while (event := reader.next()) is not None:
            events.append(event)
    return events


def read(*chunks: bytes, max_size: int = 1 << 20) -> list[Event]:
    return drained(FrameReader(max_size=max_size), *chunks)


def failure(*chunks: bytes, max_size: int = 1 << 20) -> int:
    """The close code with which these bytes fail, and nothing else comes of them."""
    ((kind, value),) = read(*chunks, max_size=max_size)
    assert kind == FAIL
    code, reason = value
    assert reason
    assert len(reason.encode()) <= 123
    return int(code)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` in pieces, some of them empty."""
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


# What may come


def test_the_examples_of_the_standard_are_read() -> None:
    assert read(bytes.fromhex("818537fa213d7f9f4d5158")) == [(TEXT, "Hello")]
    assert read(bytes.fromhex("8a8537fa213d7f9f4d5158")) == [(PONG, b"Hello")]


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 128, 65_535, 65_536, 70_000])
def test_a_message_of_any_length_comes_whole(length: int) -> None:
    assert read(frame(TEXT, b"x" * length)) == [(TEXT, "x" * length)]
    assert read(frame(BINARY, b"\xff" * length)) == [(BINARY, b"\xff" * length)]


def test_binary_data_is_bytes_however_it_was_read() -> None:
    data = frame(BINARY, b"abc")
    for chunks in ([data], [data[:3], data[3:]], [data + data[:1], data[1:]]):
        assert {type(value) for _, value in read(*chunks)} == {bytes}
    assert type(read(frame(PING, b"abc"))[0][1]) is bytes


def test_fragments_are_put_together_and_control_frames_between_them_come_at_once() -> None:
    reader = FrameReader(max_size=100)
    assert drained(reader, frame(TEXT, b"Hel", fin=False)) == []
    assert drained(reader, frame(PING, b"?")) == [(PING, b"?")]
    assert drained(reader, frame(CONTINUATION, b"", fin=False)) == []
    assert reader.is_partial
    assert drained(reader, frame(CONTINUATION, b"lo")) == [(TEXT, "Hello")]
    assert not reader.is_partial


def test_a_character_may_be_cut_by_fragments() -> None:
    first, second = "häß".encode()[:2], "häß".encode()[2:]
    assert read(frame(TEXT, first, fin=False), frame(CONTINUATION, second)) == [(TEXT, "häß")]


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999])
def test_a_close_frame_gives_code_and_reason_and_ends_everything(code: int) -> None:
    closing = frame(CLOSE, struct.pack("!H", code) + "schön".encode())
    assert read(closing + frame(TEXT, b"more"), frame(TEXT, b"more")) == [(CLOSE, (code, "schön"))]


def test_a_close_frame_without_a_code_is_1005_and_may_stand_inside_a_message() -> None:
    assert read(frame(CLOSE)) == [(CLOSE, (1005, ""))]
    assert read(frame(TEXT, b"a", fin=False) + frame(CLOSE)) == [(CLOSE, (1005, ""))]


# What may not (RFC 6455 sections 5.1 to 5.6, 7.4)

WRONG: dict[str, bytes] = {
    "no mask": b"\x81\x05Hello",
    "no mask, longer": b"\x82\x7d" + b"x" * 125,
    "first reserved bit": frame(TEXT, b"a", rsv=0x40),
    "second reserved bit": frame(TEXT, b"a", rsv=0x20),
    "third reserved bit": frame(BINARY, b"a", rsv=0x10),
    "reserved bit in a ping": frame(PING, rsv=0x40),
    **{f"opcode {opcode}": frame(opcode, b"a") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a long ping": frame(PING, b"x" * 126),
    "a long close": frame(CLOSE, b"\x03\xe8" + b"x" * 124),
    "a ping in fragments": frame(PING, b"a", fin=False),
    "a close in fragments": frame(CLOSE, b"\x03\xe8", fin=False),
    "nothing to continue": frame(CONTINUATION, b"a"),
    "nothing to continue, not final": frame(CONTINUATION, b"a", fin=False),
    "text inside a message": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
    "binary inside a message": frame(TEXT, b"a", fin=False) + frame(BINARY, b"b", fin=False),
    "half a close code": frame(CLOSE, b"\x03"),
    "16 bits for a short length": b"\x82\xfe\x00\x7d" + MASK + b"x" * 125,
    "64 bits for a short length": b"\x82\xff" + struct.pack("!Q", 65_535) + MASK + b"x" * 65_535,
    "the top bit of a length": b"\x82\xff" + struct.pack("!Q", 1 << 63) + MASK,
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG.keys())
def test_what_the_protocol_forbids_fails_with_1002_in_one_read_and_byte_by_byte(data: bytes) -> None:
    assert failure(data) == 1002
    assert failure(*(bytes([byte]) for byte in data)) == 1002


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535])
def test_a_close_code_that_must_not_be_sent_fails_with_1002(code: int) -> None:
    assert failure(frame(CLOSE, struct.pack("!H", code))) == 1002


@pytest.mark.parametrize("head", [b"\x81\x05", b"\xc1\x85", b"\x83\x80", b"\x89\xfe", b"\x80\x80"])
def test_two_wrong_bytes_are_enough_to_fail(head: bytes) -> None:
    assert failure(head) == 1002


BAD_TEXT = [b"\xff", b"a\xc0\xafb", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xce\xba\xe1", b"\xf8\x88\x80\x80\x80"]


@pytest.mark.parametrize("text", BAD_TEXT)
def test_text_that_is_not_utf8_fails_with_1007(text: bytes) -> None:
    assert failure(frame(TEXT, text)) == 1007
    assert failure(frame(TEXT, b"", fin=False) + frame(CONTINUATION, text)) == 1007
    assert failure(frame(CLOSE, b"\x03\xe8" + text)) == 1007


def test_bad_text_fails_with_the_fragment_that_has_it() -> None:
    assert failure(frame(TEXT, b"good", fin=False), frame(CONTINUATION, b"\xff", fin=False)) == 1007


def test_a_character_that_the_last_fragment_leaves_unfinished_fails_with_1007() -> None:
    assert failure(frame(TEXT, b"\xc3", fin=False), frame(CONTINUATION, b"")) == 1007


def test_after_a_failure_nothing_is_read_or_held() -> None:
    reader = FrameReader(max_size=100)
    assert len(drained(reader, frame(TEXT, b"a", fin=False), frame(TEXT, b"b") + frame(PING))) == 1
    assert drained(reader, frame(PING), frame(TEXT, b"c")) == []
    assert (reader.held, reader.is_partial) == (0, False)


# Bounds


def test_a_message_may_have_max_size_bytes_and_not_one_more() -> None:
    assert read(frame(TEXT, b"x" * 300), max_size=300) == [(TEXT, "x" * 300)]
    assert failure(frame(TEXT, b"x" * 301), max_size=300) == 1009
    halves = frame(BINARY, b"x" * 150, fin=False), frame(CONTINUATION, b"x" * 150)
    assert read(*halves, max_size=300) == [(BINARY, b"x" * 300)]
    assert failure(*halves, max_size=299) == 1009


@pytest.mark.parametrize("length", [301, 1 << 40, (1 << 63) - 1])
def test_a_length_that_is_only_declared_fails_with_1009(length: int) -> None:
    field = struct.pack("!BH", 0xFE, length) if length < 65_536 else struct.pack("!BQ", 0xFF, length)
    assert failure(b"\x82" + field, max_size=300) == 1009
    assert failure(frame(TEXT, b"x", fin=False), b"\x80" + field, max_size=300) == 1009


def test_the_limit_can_be_changed_and_does_not_count_control_frames() -> None:
    reader = FrameReader(max_size=300)
    assert drained(reader, frame(TEXT, b"x" * 200)) == [(TEXT, "x" * 200)]
    reader.max_size = 100
    assert drained(reader, frame(PING, b"x" * 120)) == [(PING, b"x" * 120)]
    assert drained(reader, frame(TEXT, b"x" * 101))[0][1][0] == 1009


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_a_message_of_more_tiny_frames_than_allowed_fails_with_1008(payload: bytes) -> None:
    reader = FrameReader(max_size=1 << 20)
    most = MAX_FRAGMENTS + MAX_FRAGMENTS * len(payload) // (FRAGMENT_SIZE - 1)
    some = [frame(BINARY, payload, fin=False), *[frame(CONTINUATION, payload, fin=False)] * (most - 1)]
    assert drained(reader, *some, frame(PING)) == [(PING, b"")]
    assert drained(reader, frame(CONTINUATION, payload))[0][1][0] == 1008


def test_each_message_has_its_own_count_of_frames() -> None:
    message = [frame(TEXT, b"", fin=False), *[frame(CONTINUATION, b"", fin=False)] * (MAX_FRAGMENTS - 2)]
    assert read(*[*message, frame(CONTINUATION, b"x")] * 3) == [(TEXT, "x")] * 3


def test_a_long_message_may_have_more_frames_if_they_are_not_tiny() -> None:
    reader = FrameReader(max_size=1 << 20)
    piece = b"x" * FRAGMENT_SIZE
    many = 2 * MAX_FRAGMENTS
    some = [frame(BINARY, piece, fin=False), *[frame(CONTINUATION, piece, fin=False)] * (many - 2)]
    assert drained(reader, *some, frame(CONTINUATION, piece)) == [(BINARY, piece * many)]


def test_held_tells_what_is_waited_with() -> None:
    reader = FrameReader(max_size=1 << 20)
    assert (reader.held, reader.is_partial) == (0, False)
    reader.feed(b"\x81")
    assert (reader.next(), reader.held, reader.is_partial) == (None, 1, True)
    reader.feed(frame(TEXT, b"abc")[1:])
    assert (reader.next(), reader.held, reader.is_partial) == ((TEXT, "abc"), 0, False)
    drained(reader, frame(TEXT, b"abc", fin=False))
    assert (reader.held, reader.is_partial) == (3, True)


@pytest.mark.parametrize("kind", [TEXT, BINARY])
@pytest.mark.parametrize("step", [1, 7, 100, 4096])
@pytest.mark.parametrize("frames", [1, 3])
def test_of_a_message_that_is_not_to_be_kept_only_the_beginning_is_held(kind: int, step: int, frames: int) -> None:
    skipped: list[int] = []
    reader = FrameReader(max_size=1 << 20)
    reader.keep(100, skipped.append)
    part = "häß€𝄞".encode() * 200
    sent = frame(kind, part, fin=frames == 1)
    for number in range(1, frames):
        sent += frame(CONTINUATION, part, fin=number == frames - 1)
    for at in range(0, len(sent), step):
        events = drained(reader, sent[at : at + step])
        assert reader.held <= 100 + 4 + 14
        assert bool(events) is (at + step >= len(sent))
    ((got, value),) = events
    begun = value.encode() if isinstance(value, str) else value
    assert got == kind
    assert 100 < len(begun) <= len(part)
    assert (part * frames).startswith(begun)
    assert drained(reader, frame(TEXT, b"next")) == [(TEXT, "next")]


def test_what_is_not_kept_is_counted_and_checked_all_the_same() -> None:
    skipped: list[int] = []
    reader = FrameReader(max_size=1000)
    reader.keep(10, skipped.append)
    sent = frame(BINARY, b"x" * 900)
    ((_, value),) = drained(reader, sent[:30], sent[30:500], sent[500:])
    assert (len(value), sum(skipped)) == (14, 886)
    wrong = frame(TEXT, b"x" * 500 + b"\xff" + b"x" * 99)
    assert drained(reader, wrong[:50]) == []
    assert drained(reader, wrong[50:550])[0][1][0] == 1007
    assert reader.held == 0


def test_a_message_that_is_not_to_be_kept_still_has_the_limits_of_size_and_frames() -> None:
    reader = FrameReader(max_size=1000)
    reader.keep(10, lambda size: None)
    assert drained(reader, frame(BINARY, b"x" * 900, fin=False)) == []
    assert drained(reader, frame(PING, b"?"), frame(CONTINUATION, b"", fin=False)) == [(PING, b"?")]
    assert drained(reader, frame(CONTINUATION, b"x" * 101)[:8])[0][1][0] == 1009
    many = FrameReader(max_size=1 << 20)
    many.keep(10, lambda size: None)
    some = [frame(BINARY, b"x", fin=False), *[frame(CONTINUATION, b"x", fin=False)] * (MAX_FRAGMENTS + 40)]
    assert drained(many, *some)[0][1][0] == 1008


def test_what_is_parsed_is_let_go_of_while_the_rest_of_a_message_is_awaited() -> None:
    reader = FrameReader(max_size=4 << 20)
    tracemalloc.start()
    try:
        drained(reader, frame(BINARY, b"x" * (1 << 20), fin=False) + b"\x00")
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 1.2 * (1 << 20)


def test_a_long_message_in_short_reads_costs_no_more_than_its_length() -> None:
    data = frame(BINARY, b"x" * (8 << 20))
    began = time.perf_counter()
    assert len(read(*(data[at : at + 1024] for at in range(0, len(data), 1024)), max_size=8 << 20)) == 1
    assert time.perf_counter() - began < 4  # about 0.05 s; were it copied with each read, 30 GB would be


@pytest.mark.parametrize("begun", [0, 3])
def test_many_tiny_frames_in_one_read_cost_no_more_than_their_length(begun: int) -> None:
    data = frame(BINARY) * 160_000
    began = time.perf_counter()
    assert len(read(data[:begun], data[begun:])) == 160_000
    assert time.perf_counter() - began < 8  # about 0.2 s; were the rest copied with each frame, 80 GB would be


def test_what_was_read_is_not_kept_by_an_idle_reader() -> None:
    reader = FrameReader(max_size=4 << 20)
    data = frame(BINARY, b"x" * (2 << 20))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert len(drained(reader, data[:70_000], data[70_000:])) == 1
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()


def test_a_reader_that_is_never_done_keeps_only_what_it_waits_with() -> None:
    reader = FrameReader(max_size=1 << 20)
    data = frame(BINARY, b"x" * 1000, fin=False) + frame(CONTINUATION, b"x" * 1000)
    chunk = data * 50
    drained(reader, data[:7])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(40):
            assert len(drained(reader, chunk[7:] + chunk[:7])) == 50
            assert reader.held == 7
        assert tracemalloc.get_traced_memory()[0] - before < 400_000  # of 4 MB
    finally:
        tracemalloc.stop()


def test_a_long_frame_begun_behind_others_comes_as_soon_as_it_is_whole() -> None:
    first, second = frame(BINARY, b"x" * 100_000), frame(BINARY, b"y" * 70_000)
    reader = FrameReader(max_size=1 << 20)
    assert len(drained(reader, first[:3], first[3:] + second[:20])) == 1
    assert drained(reader, second[20:-1]) == []
    assert drained(reader, second[-1:]) == [(BINARY, b"y" * 70_000)]


# What holds for anything


PAYLOADS = TEXTS.map(lambda text: (TEXT, text)) | st.binary(max_size=300).map(lambda data: (BINARY, data))
MESSAGES = st.tuples(
    PAYLOADS,
    st.lists(st.integers(0, 100), max_size=4),  # where it is cut into fragments
    st.lists(st.none() | CONTROL, max_size=4),  # what comes before each of them
    st.binary(min_size=4, max_size=4),
)
CONVERSATIONS = st.tuples(st.lists(MESSAGES, min_size=1, max_size=5), st.booleans())


def conversation(messages: list[Any], closes: bool) -> tuple[bytes, list[Event]]:
    """What a client that keeps the rules sends, and what is to be read from it."""
    data, events = b"", list[Event]()
    for (kind, content), places, controls, mask in messages:
        pieces = cut(content.encode() if kind == TEXT else content, places)
        for number, (piece, control) in enumerate(zip_longest(pieces, controls[: len(pieces)])):
            if control is not None:
                data += frame(*control, mask=mask)
                events.append(control)
            opcode = kind if number == 0 else CONTINUATION
            data += frame(opcode, piece, fin=number == len(pieces) - 1, mask=mask)
        events.append((kind, content))
    if closes:
        data += frame(CLOSE, b"\x03\xe8bye")
        events.append((CLOSE, (1000, "bye")))
    return data, events


def spoiled(sent: tuple[list[Any], bool], faults: list[tuple[int, int]], rest: bytes) -> bytes:
    """Frames with wrong bytes among them: random bytes alone would seldom get past the first two."""
    data = bytearray(conversation(*sent)[0])
    for place, value in faults:
        data[place % len(data)] = value
    return bytes(data) + rest


FAULTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3)
ANYTHING = st.builds(spoiled, CONVERSATIONS, FAULTS, st.binary(max_size=40)) | st.binary(max_size=200)
PLACES = st.lists(st.integers(0, 400), max_size=12)


@settings(max_examples=400)
@given(CONVERSATIONS, PLACES)
def test_any_conversation_is_read_as_it_was_sent_however_it_is_cut(
    sent: tuple[list[Any], bool], places: list[int]
) -> None:
    data, events = conversation(*sent)
    reader = FrameReader(max_size=600)
    assert drained(reader, *cut(data, places)) == events
    assert (reader.held, reader.is_partial) == (0, False)


@settings(max_examples=400)
@given(ANYTHING, PLACES)
def test_any_bytes_give_the_same_events_however_they_are_cut(data: bytes, places: list[int]) -> None:
    whole = read(data, max_size=300)
    assert read(*cut(data, places), max_size=300) == whole
    assert read(*(data[at : at + 1] for at in range(len(data))), max_size=300) == whole


def beginnings(data: bytes, places: Iterable[int], keep: int) -> list[Event]:
    """The events of a reader that holds so much of a message; longer messages by their first bytes."""
    reader = FrameReader(max_size=300)
    reader.keep(keep, lambda size: None)
    found: list[Event] = []
    for chunk in cut(data, places):
        for kind, value in drained(reader, chunk):
            if kind in (TEXT, BINARY):
                whole = value.encode() if kind == TEXT else value
                found.append((kind, whole if len(whole) <= keep else (whole[: keep + 1], "…")))
            else:
                found.append((kind, value))
        assert reader.held <= max(keep + 4, 125) + 14
    return found


@settings(max_examples=400)
@given(ANYTHING, PLACES, st.integers(0, 100))
def test_any_bytes_give_the_same_events_also_where_long_messages_are_not_kept(
    data: bytes, places: list[int], keep: int
) -> None:
    expected = beginnings(data, (), keep)
    assert beginnings(data, places, keep) == expected
    assert beginnings(data, range(len(data)), keep) == expected
    failed = [event for event in expected if event[0] == FAIL]
    assert failed or [kind for kind, _ in expected] == [kind for kind, _ in read(data, max_size=300)]


@settings(max_examples=400)
@given(ANYTHING, PLACES, st.integers(0, 400))
def test_any_bytes_end_in_at_most_one_failure_and_hold_little_more_than_a_message(
    data: bytes, places: list[int], max_size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socketspec.adapters.uvicorn.frames.MAX_FRAGMENTS", 3)
        reader = FrameReader(max_size=max_size)
        ends: list[int] = []
        for chunk in cut(data, places):
            for kind, value in drained(reader, chunk):
                assert not ends, "nothing comes after the end"
                if kind in (FAIL, CLOSE):
                    ends.append(kind)
                if kind == FAIL:
                    assert value[0] in {1002, 1007, 1008, 1009}
                elif kind in (TEXT, BINARY):
                    assert len(value.encode() if kind == TEXT else value) <= max_size
            assert reader.held <= max_size + 131  # a control frame, or a header, that is not complete
            assert not (ends and reader.held)


# What the server sends


def parsed(data: bytes) -> list[Frame]:
    """The frames that a client library finds in what the server sent."""
    client = Protocol(CLIENT, state=OPEN, max_size=None)
    client.receive_data(data)
    return [event for event in client.events_received() if isinstance(event, Frame)]


@settings(max_examples=40)
@given(st.sampled_from([0, 1, 100, 125, 126, 127, 65_535, 65_536, 70_000]) | st.integers(0, 70_000))
def test_frames_are_what_a_client_library_parses(length: int) -> None:
    for opcode in (TEXT, BINARY, PING):
        body = b"x" * (min(length, 125) if opcode == PING else length)
        (found,) = parsed(frame_header(opcode, len(body)) + body)
        assert (found.opcode, found.data, found.fin) == (opcode, body, True)


@given(st.integers(0, 2**32))
def test_a_frame_header_has_the_shortest_length_field(length: int) -> None:
    size = {True: 2, length >= 126: 4, length >= 65_536: 10}[True]
    assert len(frame_header(1, length)) == size


def test_a_close_frame_has_its_code_and_reason_and_neither_for_1005() -> None:
    assert close_frame(1000, "") == b"\x88\x02\x03\xe8"
    assert close_frame(4008, "full") == b"\x88\x06\x0f\xa8full"
    assert close_frame(1005, "not sent") == b"\x88\x00"


@given(st.text("a\0é€𝄞\U0010ffff", max_size=130))
def test_a_reason_is_cut_between_characters_to_what_a_close_frame_holds(reason: str) -> None:
    (found,) = parsed(close_frame(4000, reason))
    kept = bytes(found.data[2:]).decode()
    assert len(found.data) <= 125
    assert reason.startswith(kept)
    assert kept == reason or len(found.data) + len(reason[len(kept)].encode()) > 125
