"""What comes in on an open connection: whole messages, control frames between them, sizes, deadlines, and turns.

A played client sends real bytes to the protocol class that uvicorn would make; whoever took the connection over is a
played sink. Source of the rules: RFC 6455, and what `socketspec.adapters.handover` promises a sink.
"""

from __future__ import annotations

import asyncio
import zlib
from functools import partial

import pytest

from socketspec.adapters.uvicorn.protocol import DeflateWebSocketProtocol
from tests.played_client import (
    A_WHILE,
    SLICE,
    Frame,
    assert_failed,
    close_frame,
    frame,
    opened,
    text,
)
from tests.virtual_time import in_virtual_time, now
from tests.watching import turns

ASSEMBLY = 30.0
"""Seconds a message may take from its first byte to its last."""
CLOSE = 5.0
"""Seconds a client has to answer a close frame."""


# Messages


@in_virtual_time
async def test_messages_come_as_text_and_bytes_in_their_order() -> None:
    client, sink = await opened()
    client.sends(text("é"), frame(2, b"\x00\xff"), text(""), frame(2))
    client.sends(text("a" * 200), frame(2, b"b" * 70_000))
    assert sink.messages == ["é", b"\x00\xff", "", b"", "a" * 200, b"b" * 70_000]
    assert client.frames == []


@in_virtual_time
async def test_what_is_sent_goes_out_as_whole_unmasked_frames() -> None:
    client, sink = await opened()
    for size in (0, 125, 126, 65_535, 65_536):
        sink.line.write(sink.line.encode(b"x" * size, binary=False))
        sink.line.write(sink.line.encode(b"y" * size, binary=True))
        assert client.frames[-2:] == [Frame(0x81, b"x" * size), Frame(0x82, b"y" * size)]


@pytest.mark.parametrize("kind", [9, 10])
@in_virtual_time
async def test_control_frames_between_fragments_are_taken_at_once_and_break_no_message(kind: int) -> None:
    client, sink = await opened()
    client.sends(frame(1, b"a", final=False))
    client.sends(frame(kind, b"now"))
    assert sink.told == ["heard"]
    assert client.frames == ([Frame(0x8A, b"now")] if kind == 9 else [])
    client.sends(frame(0, b"b", final=False), frame(kind), frame(0, b"c"))
    assert sink.messages == ["abc"]


@in_virtual_time
async def test_a_close_frame_between_fragments_closes_and_the_message_is_never_delivered() -> None:
    client, sink = await opened()
    client.sends(frame(1, b"a", final=False), close_frame(1001, b"bye"), frame(0, b"b"))
    assert sink.messages == []
    assert sink.ends == [(1001, "bye")]


# Pings and pongs


@in_virtual_time
async def test_a_ping_is_answered_with_its_own_payload() -> None:
    client, sink = await opened()
    client.sends(frame(9, b"x" * 125), frame(9))
    assert client.frames == [Frame(0x8A, b"x" * 125), Frame(0x8A, b"")]
    assert sink.told == ["heard", "heard"]


@in_virtual_time
async def test_a_pong_is_told_and_answered_by_nothing() -> None:
    client, sink = await opened()
    client.sends(frame(10, b"x"))
    assert client.frames == []
    assert sink.told == ["heard"]


@in_virtual_time
async def test_a_ping_of_ours_has_no_payload() -> None:
    client, sink = await opened()
    sink.line.ping()
    assert client.frames == [Frame(0x89, b"")]


@in_virtual_time
async def test_while_the_client_takes_nothing_only_the_newest_ping_is_remembered() -> None:
    client, sink = await opened()
    client.wire.takes = False
    sink.line.write(b"\x82\x02xx")
    for payload in (b"old", b"older", b"newest"):
        client.sends(frame(9, payload))
    assert sink.line.buffered == 4
    client.wire.take()
    assert client.frames == [Frame(0x82, b"xx"), Frame(0x8A, b"newest")]
    assert sink.told == ["full", "heard", "heard", "heard", "writable"]
    client.wire.takes = False
    sink.line.write(b"\x82\x00")
    client.wire.take()
    assert client.frames == [Frame(0x82, b"xx"), Frame(0x8A, b"newest"), Frame(0x82, b"")]  # it was answered


@in_virtual_time
async def test_a_pong_that_fills_the_line_again_leaves_no_room_for_the_sink() -> None:
    client, sink = await opened()
    client.wire.takes = False
    sink.line.write(b"\x82\x02xx")
    client.sends(frame(9, b"ping"))
    client.wire.take(4)
    assert sink.told == ["full", "heard", "full"]
    client.wire.take()
    assert sink.told == ["full", "heard", "full", "writable"]
    assert client.frames == [Frame(0x82, b"xx"), Frame(0x8A, b"ping")]


@in_virtual_time
async def test_a_hundred_pings_and_pongs_a_second_are_taken_and_one_more_is_not() -> None:
    client, sink = await opened()
    await asyncio.sleep(10)
    for _ in range(3):
        client.sends(*(frame(9 + number % 2) for number in range(100)))
        await asyncio.sleep(1)
    assert sink.ends == []
    client.sends(*(frame(9 + number % 2) for number in range(101)))
    await sink.ended.wait()
    assert_failed(client, sink, 1008, "too many ping and pong frames")
    await asyncio.sleep(1)
    client.sends(*(frame(9) for _ in range(101)))
    assert_failed(client, sink, 1008, "too many ping and pong frames")
    assert len(sink.told) == 400
    assert len(client.frames) == 3 * 50 + 50 + 1


@in_virtual_time
async def test_a_second_of_pings_begins_with_its_first() -> None:
    client, sink = await opened()
    await asyncio.sleep(10.5)
    client.sends(*(frame(10) for _ in range(60)))
    await asyncio.sleep(0.9)
    client.sends(*(frame(10) for _ in range(40)))
    assert sink.ends == []
    await asyncio.sleep(0.05)
    client.sends(frame(10))
    await sink.ended.wait()
    assert_failed(client, sink, 1008, "too many ping and pong frames")


# How large


@pytest.mark.parametrize("limit", [10, 100_000])
@in_virtual_time
async def test_a_message_may_have_as_many_bytes_as_the_sink_says(limit: int) -> None:
    client, sink = await opened()
    sink.line.max_size = limit
    assert sink.line.max_size == limit
    client.sends(frame(2, bytes(limit)))
    client.sends(frame(2, bytes(limit - 1), final=False), frame(0, b"x"))
    assert [len(message) for message in sink.messages] == [limit, limit]
    client.sends(frame(2, bytes(limit + 1)))
    assert_failed(client, sink, 1009, "the message is too large")


@in_virtual_time
async def test_the_servers_limit_counts_until_the_sink_sets_its_own() -> None:
    client, sink = await opened(ws_max_size=5)
    assert sink.line.max_size == 5
    client.sends(text("12345"), text("123456"))
    assert sink.messages == ["12345"]
    assert_failed(client, sink, 1009, "the message is too large")


@in_virtual_time
async def test_a_length_that_is_only_announced_is_refused_before_any_of_it_comes() -> None:
    client, sink = await opened(ws_max_size=1000)
    client.sends(frame(2, bytes(2000))[:8])
    assert_failed(client, sink, 1009, "the message is too large")


@in_virtual_time
async def test_the_sink_is_told_of_a_message_that_is_too_large_and_may_close_in_its_own_words() -> None:
    for own in (False, True):
        client, sink = await opened(ws_max_size=5)
        if own:
            sink.on_too_large = partial(sink.line.close, 4001, "auth_error")
        client.sends(text("123456"))
        assert sink.told == ["too large"]
        assert client.closed == ((4001, "auth_error") if own else (1009, "the message is too large"))
        client.sends(text("1"))
        assert sink.messages == [], "nothing more is taken"
        assert len(sink.ends) == 1


def compressed(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


@in_virtual_time
async def test_a_compressed_message_is_measured_by_what_it_becomes() -> None:
    client, sink = await opened(protocol=DeflateWebSocketProtocol)
    sink.line.max_size = 1000
    client.sends(frame(2, compressed(bytes(1000)), flags=0x40))
    assert sink.messages == [bytes(1000)]
    client.sends(frame(2, compressed(bytes(1001)), flags=0x40))
    assert_failed(client, sink, 1009, "the message is too large")


@in_virtual_time
async def test_a_compressed_message_that_is_too_long_as_it_comes_is_never_inflated() -> None:
    client, sink = await opened(protocol=DeflateWebSocketProtocol)
    sink.line.max_size = 1000
    client.sends(frame(2, bytes(1001), flags=0x40)[:8])
    assert_failed(client, sink, 1009, "the message is too large")


@in_virtual_time
async def test_what_is_sent_compressed_is_marked_and_can_be_read_alone() -> None:
    client, sink = await opened(protocol=DeflateWebSocketProtocol)
    assert sink.line.deflate_bits == 12
    for binary, first in ((False, 0xC1), (True, 0xC2)):
        sink.line.write(sink.line.encode(b"ha " * 1000, binary=binary))
        sent = client.frames[-1]
        assert sent.first == first
        assert len(sent.payload) < 100
        assert zlib.decompressobj(-15).decompress(sent.payload + b"\x00\x00\xff\xff") == b"ha " * 1000


@in_virtual_time
async def test_without_an_agreement_nothing_is_compressed() -> None:
    client, sink = await opened()
    assert sink.line.deflate_bits == 0
    sink.line.write(sink.line.encode(b"ha " * 10, binary=False))
    assert client.frames == [Frame(0x81, b"ha " * 10)]


# Deadlines


@pytest.mark.parametrize("begun", [b"\x81", text("hello")[:-1], frame(1, b"a", final=False), frame(9, b"ping")[:-1]])
@in_virtual_time
async def test_what_has_begun_to_arrive_must_end_in_time(begun: bytes) -> None:
    client, sink = await opened()
    await asyncio.sleep(100)  # an idle connection has no deadline
    began = now()
    client.sends(begun)
    assert await sink.ended_at() - began == pytest.approx(ASSEMBLY)
    assert_failed(client, sink, 1008, "a message took too long to arrive")


@in_virtual_time
async def test_a_message_that_drips_gets_no_more_time_by_dripping() -> None:
    client, sink = await opened()
    began = now()
    message = text("x" * 100)
    for byte in message[:20]:
        client.sends(bytes((byte,)))
        await asyncio.sleep(1)
    assert await sink.ended_at() - began == pytest.approx(ASSEMBLY)


@in_virtual_time
async def test_a_message_that_dripped_and_is_whole_has_no_deadline_left() -> None:
    client, sink = await opened()
    for byte in text("hello"):
        client.sends(bytes((byte,)))
        await asyncio.sleep(1)
    assert sink.messages == ["hello"]
    await asyncio.sleep(100)
    assert sink.ends == []


@pytest.mark.parametrize("broken", [frame(3), frame(10) * 101])
@in_virtual_time
async def test_who_breaks_a_rule_while_a_message_is_on_its_way_gets_no_more_time_by_it(broken: bytes) -> None:
    client, sink = await opened()
    client.sends(frame(1, b"a", final=False))
    await asyncio.sleep(ASSEMBLY - CLOSE + 1)
    client.sends(broken)
    await sink.ended.wait()
    await asyncio.sleep(CLOSE + A_WHILE)
    assert client.wire.is_aborted


@in_virtual_time
async def test_who_closes_while_a_message_is_on_its_way_gets_no_more_time_by_it() -> None:
    client, sink = await opened()
    client.sends(frame(1, b"a", final=False))
    await asyncio.sleep(ASSEMBLY - CLOSE + 1)
    client.wire.takes = False
    client.sends(close_frame(1000))
    assert sink.ends == [(1000, "")]
    await asyncio.sleep(CLOSE + A_WHILE)
    assert client.wire.is_aborted


@in_virtual_time
async def test_a_deadline_between_two_turns_ends_the_connection_and_what_comes_is_still_read() -> None:
    client, sink = await opened()
    client.sends(frame(1, b"a", final=False))
    pings = [frame(10) for _ in range(SLICE + 1)]
    # A moment before the deadline, but within the same turn of the loop.
    asyncio.get_running_loop().call_at(now() + ASSEMBLY - 5e-10, client.sends, *pings)
    await sink.ended.wait()
    assert len(sink.told) == SLICE
    assert_failed(client, sink, 1008, "a message took too long to arrive")
    await asyncio.sleep(1)
    assert client.wire.is_reading()
    assert len(sink.told) == SLICE


@in_virtual_time
async def test_each_message_has_its_own_time() -> None:
    client, sink = await opened()
    for _ in range(5):
        client.sends(frame(1, b"a", final=False))
        await asyncio.sleep(ASSEMBLY - 1)
        client.sends(frame(0, b"b"))
    await asyncio.sleep(100)
    assert sink.messages == ["ab"] * 5
    assert sink.ends == []


@in_virtual_time
async def test_a_message_that_begins_with_the_end_of_another_has_its_time_from_there() -> None:
    client, sink = await opened()
    client.sends(text("first")[:-1])
    await asyncio.sleep(20)
    client.sends(text("first")[-1:], text("second")[:-1])
    began = now()
    assert await sink.ended_at() - began == pytest.approx(ASSEMBLY)
    assert sink.messages == ["first"]


@in_virtual_time
async def test_time_in_which_the_sink_holds_the_line_does_not_count() -> None:
    client, sink = await opened()
    client.sends(frame(1, b"a", final=False))
    await asyncio.sleep(20)
    sink.line.hold()
    await asyncio.sleep(1000)
    assert sink.ends == []
    sink.line.go_on()
    began = now()
    await asyncio.sleep(ASSEMBLY - 1)
    assert sink.ends == []
    assert await sink.ended_at() - began == pytest.approx(ASSEMBLY)


@in_virtual_time
async def test_a_close_of_ours_is_answered_in_time_though_a_message_was_on_its_way() -> None:
    client, sink = await opened()
    client.sends(frame(1, b"a", final=False))
    await asyncio.sleep(ASSEMBLY - 1)
    sink.line.close(1000, "done")
    await asyncio.sleep(2)  # the message's time is up: no second close frame
    assert client.closed == (1000, "done")
    assert client.wire.has_ended
    assert sink.ends == [(1008, "a message took too long to arrive")]


# Turns


@in_virtual_time
async def test_one_connection_has_so_many_frames_a_turn_and_reads_nothing_meanwhile() -> None:
    client, sink = await opened()
    frames = [text(str(number)) for number in range(3 * SLICE + 1)]
    client.sends(*frames)
    for turn in (1, 2, 3):
        assert len(sink.messages) == turn * SLICE
        assert not client.wire.is_reading()
        await asyncio.sleep(0)
    await turns(lambda: client.wire.is_reading())
    assert sink.messages == [str(number) for number in range(3 * SLICE + 1)]


@in_virtual_time
async def test_pings_count_as_frames_of_a_turn() -> None:
    client, sink = await opened()
    client.sends(*(frame(10) for _ in range(SLICE + 1)))
    assert len(sink.told) == SLICE
    await turns(lambda: len(sink.told) == SLICE + 1)


@in_virtual_time
async def test_large_messages_end_a_turn_before_many_small_ones_would() -> None:
    client, sink = await opened(ws_max_size=1_000_000)
    client.sends(*(frame(2, bytes(131_072)) for _ in range(6)))
    assert len(sink.messages) == 3  # 262,144 bytes are still within a turn
    assert not client.wire.is_reading()
    await turns(lambda: len(sink.messages) == 6)
    await turns(lambda: client.wire.is_reading())
    client.sends(frame(2, bytes(131_072)), *(frame(2, bytes(131_073)) for _ in range(5)))
    assert len(sink.messages) == 6 + 2  # one byte more is not


@in_virtual_time
async def test_what_comes_between_turns_waits_for_its_own() -> None:
    client, sink = await opened()
    client.sends(*(text(str(number)) for number in range(SLICE)), text("last")[:-1])
    await turns(lambda: len(sink.messages) == SLICE)
    client.protocol.data_received(text("last")[-1:])  # what a TLS transport had decrypted already
    await turns(lambda: client.wire.is_reading())
    assert sink.messages[-1] == "last"


@in_virtual_time
async def test_decrypted_bytes_that_come_between_turns_are_not_taken_out_of_turn() -> None:
    client, sink = await opened()
    client.sends(*(text(str(number)) for number in range(SLICE + 1)))
    client.protocol.data_received(text("more"))
    assert len(sink.messages) == SLICE
    await turns(lambda: client.wire.is_reading())
    assert sink.messages[-2:] == [str(SLICE), "more"]


@in_virtual_time
async def test_a_connection_that_was_lost_between_turns_delivers_nothing_more() -> None:
    client, sink = await opened()
    client.sends(*(text(str(number)) for number in range(2 * SLICE)))
    client.wire.break_off(None)
    await sink.ended.wait()
    await asyncio.sleep(1)
    assert sink.ends == [(1006, "")]
    assert len(sink.messages) <= SLICE + 1


@in_virtual_time
async def test_a_sink_that_aborts_within_a_message_gets_no_further_one() -> None:
    client, sink = await opened()
    sink.on_message = lambda _: sink.line.abort()
    client.sends(text("a"), text("b"))
    await sink.ended.wait()
    assert sink.messages == ["a"]
    assert sink.ends == [(1006, "")]
