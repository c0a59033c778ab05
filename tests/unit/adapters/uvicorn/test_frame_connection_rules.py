"""An open connection, rule by rule: frames between fragments, closing from both sides, deadlines, slow readers.

A played client sends real bytes to the protocol class that uvicorn would make; whoever took the connection over is a
played sink. Source of the rules: RFC 6455, and what `socketspec.adapters.handover` promises a sink.
"""

from __future__ import annotations

import asyncio
import socket
import zlib
from typing import Any

import pytest

from socketspec.adapters.handover import EXTENSION
from socketspec.adapters.uvicorn import WebSocketProtocol
from socketspec.adapters.uvicorn.protocol import DeflateWebSocketProtocol
from tests.played_client import Frame, PlayedClient, PlayedSink, close_frame, frame, upgrade
from tests.virtual_time import in_virtual_time, now
from tests.watching import turns

ASSEMBLY = 30.0
"""Seconds a message may take from its first byte to its last."""
CLOSE = 5.0
"""Seconds a client has to answer a close frame."""
SLICE = 64
"""Frames of one connection that are handled before others get their turn."""
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate"

A_WHILE = 0.001
"""Seconds; nothing that has a deadline is as quick."""


async def opened(**options: Any) -> tuple[PlayedClient, PlayedSink]:
    """An open connection that a sink has taken over."""
    sink = PlayedSink()
    client = PlayedClient(sink, **options)
    client.sends(upgrade(DEFLATE))
    await turns(lambda: client.got and hasattr(sink, "line"))
    return client, sink


def text(payload: str) -> bytes:
    return frame(1, payload.encode())


def assert_failed(client: PlayedClient, sink: PlayedSink, code: int, reason: str) -> None:
    """The client was told what it did wrong, and can read it before the connection goes."""
    assert client.closed == (code, reason)
    assert sink.ends == [(code, reason)]
    assert client.wire.has_ended
    assert not client.wire.is_gone


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


# Closing from the client's side


@pytest.mark.parametrize("code", [1000, 1001, 1012, 3000, 4999])
@in_virtual_time
async def test_a_close_frame_is_answered_with_its_code_and_the_sink_gets_code_and_reason(code: int) -> None:
    client, sink = await opened()
    client.sends(close_frame(code, "adiós".encode()), text("late"), frame(9))
    assert client.closed == (code, "")
    assert sink.ends == [(code, "adiós")]
    assert sink.messages == []
    assert sink.told == []
    await turns(lambda: client.wire.is_gone)
    assert not client.wire.is_aborted


@in_virtual_time
async def test_a_close_frame_without_a_code_is_answered_by_one_without_a_code() -> None:
    client, sink = await opened()
    client.sends(frame(8))
    assert client.frames == [Frame(0x88, b"")]
    assert sink.ends == [(1005, "")]


@in_virtual_time
async def test_what_a_sink_does_to_a_line_that_is_over_has_no_effect() -> None:
    client, sink = await opened()
    client.wire.takes = False
    client.sends(close_frame(1000))
    sink.line.ping()
    sink.line.close(1001, "")
    sink.line.hold()
    sink.line.go_on()
    client.wire.take()
    assert client.frames == [Frame(0x88, b"\x03\xe8")]
    client, sink = await opened()
    client.wire.break_off(None)
    await sink.ended.wait()
    sink.line.ping()
    sink.line.close(1001, "")
    await asyncio.sleep(100)
    assert not client.wire.is_aborted
    assert client.frames == []


@in_virtual_time
async def test_who_closes_and_takes_nothing_more_is_cut_in_time() -> None:
    client, sink = await opened()
    client.wire.takes = False
    sink.line.write(b"\x82\x02xx")
    client.sends(close_frame(1000))
    assert sink.ends == [(1000, "")]
    await asyncio.sleep(CLOSE - A_WHILE)
    assert not client.wire.is_gone
    await asyncio.sleep(2 * A_WHILE)
    assert client.wire.is_aborted


@in_virtual_time
async def test_a_connection_that_just_goes_away_is_1006() -> None:
    for error in (None, ConnectionResetError()):
        client, sink = await opened()
        client.wire.break_off(error)
        await sink.ended.wait()
        assert sink.ends == [(1006, "")]
        assert client.server.connections == set()
        client, sink = await opened()
        client.wire.hang_up()
        await sink.ended.wait()
        assert sink.ends == [(1006, "")]


@in_virtual_time
async def test_a_connection_that_goes_away_in_the_middle_leaves_nothing_that_would_end_it_again() -> None:
    client, sink = await opened()
    client.wire.takes = False
    sink.line.write(b"\x82\x02xx")
    client.sends(frame(1, b"a", final=False))
    client.wire.break_off(None)
    await asyncio.sleep(1000)
    assert sink.ends == [(1006, "")]
    assert sink.told == ["full"]
    assert not client.wire.is_aborted


# What breaks the rules


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (frame(1, b"\xff"), 1007, "text is not UTF-8"),
        (frame(8, b"\x03\xe8\xff"), 1007, "the reason is not UTF-8"),
        (frame(8, b"\x03"), 1002, "the close frame has no valid code"),
        (frame(8, (1006).to_bytes(2, "big")), 1002, "the close frame has no valid code"),
        (frame(3), 1002, "reserved opcode"),
        (b"\x81\x01x", 1002, "the frame is not masked"),
        (frame(1, b"x", flags=0x40), 1002, "a reserved bit is set"),
    ],
)
@in_virtual_time
async def test_who_breaks_a_rule_is_told_which_and_the_connection_ends(data: bytes, code: int, reason: str) -> None:
    client, sink = await opened()
    client.sends(text("fine"), data, text("late"))
    assert sink.messages == ["fine"]
    assert_failed(client, sink, code, reason)
    assert client.wire.is_reading()  # else TCP would never come to its end
    client.sends(text("later"), frame(9), close_frame(1000))
    await asyncio.sleep(1)
    assert client.wire.is_reading()
    assert sink.messages == ["fine"]
    assert sink.told == []
    client.wire.hang_up()
    await turns(lambda: client.wire.is_gone)
    assert not client.wire.is_aborted
    assert sink.ends == [(code, reason)]


@in_virtual_time
async def test_who_breaks_a_rule_and_stays_is_cut_in_time_whatever_it_sends() -> None:
    client, _ = await opened()
    client.sends(frame(3))
    for _ in range(4):
        await asyncio.sleep(1)
        client.sends(text("still here"), frame(3))
    await asyncio.sleep(1 - A_WHILE)
    assert not client.wire.is_gone
    await asyncio.sleep(2 * A_WHILE)
    assert client.wire.is_aborted
    assert client.closed == (1002, "reserved opcode")


@in_virtual_time
async def test_who_breaks_a_rule_over_tls_is_closed_behind_the_reason() -> None:
    client, sink = await opened(is_tls=True)
    client.sends(frame(3))
    await turns(lambda: client.wire.is_gone)
    assert client.closed == (1002, "reserved opcode")
    assert sink.ends == [(1002, "reserved opcode")]
    assert not client.wire.is_aborted


@in_virtual_time
async def test_a_line_that_the_client_has_reset_meanwhile_is_aborted_without_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, sink = await opened()

    def refuse() -> None:
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(client.wire, "write_eof", refuse)
    client.sends(frame(3))
    assert client.wire.is_aborted
    assert sink.ends == [(1002, "reserved opcode")]


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


async def failed_at(sink: PlayedSink) -> float:
    """When the connection ended, by the clock of the loop."""
    await sink.ended.wait()
    return now()


@pytest.mark.parametrize("begun", [b"\x81", text("hello")[:-1], frame(1, b"a", final=False), frame(9, b"ping")[:-1]])
@in_virtual_time
async def test_what_has_begun_to_arrive_must_end_in_time(begun: bytes) -> None:
    client, sink = await opened()
    await asyncio.sleep(100)  # an idle connection has no deadline
    began = now()
    client.sends(begun)
    assert await failed_at(sink) - began == pytest.approx(ASSEMBLY)
    assert_failed(client, sink, 1008, "a message took too long to arrive")


@in_virtual_time
async def test_a_message_that_drips_gets_no_more_time_by_dripping() -> None:
    client, sink = await opened()
    began = now()
    message = text("x" * 100)
    for byte in message[:20]:
        client.sends(bytes((byte,)))
        await asyncio.sleep(1)
    assert await failed_at(sink) - began == pytest.approx(ASSEMBLY)


@in_virtual_time
async def test_a_message_that_dripped_and_is_whole_has_no_deadline_left() -> None:
    client, sink = await opened()
    for byte in text("hello"):
        client.sends(bytes((byte,)))
        await asyncio.sleep(1)
    assert sink.messages == ["hello"]
    await asyncio.sleep(100)
    assert sink.ends == []


@in_virtual_time
async def test_who_breaks_a_rule_while_a_message_is_on_its_way_gets_no_more_time_by_it() -> None:
    client, sink = await opened()
    client.sends(frame(1, b"a", final=False))
    await asyncio.sleep(ASSEMBLY - CLOSE + 1)
    client.sends(frame(3))
    assert_failed(client, sink, 1002, "reserved opcode")
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
    assert await failed_at(sink) - began == pytest.approx(ASSEMBLY)
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
    assert await failed_at(sink) - began == pytest.approx(ASSEMBLY)


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


# Hold and go on


@in_virtual_time
async def test_a_held_line_is_not_read_and_what_came_already_waits() -> None:
    client, sink = await opened()
    sink.line.hold()
    assert not client.wire.is_reading()
    client.protocol.data_received(text("decrypted"))
    client.sends(text("in the kernel"))
    await asyncio.sleep(1)
    assert sink.messages == []
    sink.line.go_on()
    assert sink.messages == ["decrypted"]
    await turns(lambda: len(sink.messages) == 2)
    assert client.wire.is_reading()


@in_virtual_time
async def test_holding_twice_is_ended_by_going_on_once() -> None:
    client, sink = await opened()
    sink.line.hold()
    sink.line.hold()
    sink.line.go_on()
    assert client.wire.is_reading()
    sink.line.go_on()
    client.sends(text("a"))
    assert sink.messages == ["a"]


@in_virtual_time
async def test_a_sink_that_holds_within_a_message_gets_the_next_one_when_it_goes_on() -> None:
    client, sink = await opened()
    sink.on_message = lambda _: sink.line.hold()
    client.sends(text("a"), frame(9, b"behind"), text("b"))
    assert sink.messages == ["a"]
    assert client.frames == []
    sink.line.go_on()
    assert sink.messages == ["a", "b"]
    assert client.frames == [Frame(0x8A, b"behind")]
    assert not client.wire.is_reading()


@in_virtual_time
async def test_a_sink_that_holds_and_goes_on_within_a_message_is_read_on() -> None:
    client, sink = await opened()

    def briefly(_data: object) -> None:
        sink.line.hold()
        sink.line.go_on()

    sink.on_message = briefly
    client.sends(text("a"))
    assert client.wire.is_reading()
    client.sends(text("b"), text("c"))
    assert client.wire.is_reading()
    assert sink.messages == ["a", "b", "c"]


@in_virtual_time
async def test_going_on_between_turns_takes_nothing_out_of_turn() -> None:
    client, sink = await opened()
    client.sends(*(text(str(number)) for number in range(2 * SLICE)))
    sink.line.hold()
    await asyncio.sleep(1)
    assert len(sink.messages) == SLICE
    assert not client.wire.is_reading()
    client.protocol.data_received(text("more"))
    sink.line.go_on()
    assert len(sink.messages) == 2 * SLICE
    await turns(lambda: sink.messages[-1] == "more")


@in_virtual_time
async def test_held_and_let_go_between_turns_the_turn_comes_once() -> None:
    client, sink = await opened()
    client.sends(*(text(str(number)) for number in range(3 * SLICE)))
    sink.line.hold()
    sink.line.go_on()
    assert len(sink.messages) == SLICE
    await asyncio.sleep(0)
    assert len(sink.messages) == 2 * SLICE
    await turns(lambda: len(sink.messages) == 3 * SLICE)


@in_virtual_time
async def test_a_held_line_still_says_when_it_can_be_written_to() -> None:
    client, sink = await opened()
    sink.line.hold()
    client.wire.takes = False
    sink.line.write(b"\x82\x02xx")
    client.wire.take()
    assert sink.told == ["full", "writable"]


# Closing from our side


@in_virtual_time
async def test_a_close_goes_out_behind_what_was_written_and_the_clients_answer_ends_it() -> None:
    client, sink = await opened()
    sink.line.write(sink.line.encode(b"last", binary=False))
    sink.line.close(4001, "enough")
    assert client.frames == [Frame(0x81, b"last"), Frame(0x88, b"\x0f\xa1enough")]
    assert not client.wire.is_gone
    assert sink.ends == []
    client.sends(close_frame(4001))
    assert sink.ends == [(4001, "")]
    await turns(lambda: client.wire.is_gone)
    await asyncio.sleep(100)
    assert not client.wire.is_aborted
    assert client.closed == (4001, "enough")


@in_virtual_time
async def test_a_client_that_closes_with_its_own_code_at_the_same_time_is_believed() -> None:
    client, sink = await opened()
    sink.line.close(1012, "")
    client.sends(close_frame(1001, b"leaving"))
    assert client.closed == (1012, "")
    assert sink.ends == [(1001, "leaving")]


@pytest.mark.parametrize("code", [1005, 1006, 1015])
@in_virtual_time
async def test_codes_that_must_not_be_sent_are_sent_as_1000(code: int) -> None:
    client, sink = await opened()
    sink.line.close(code, "")
    assert client.closed == (1000, "")


@pytest.mark.parametrize(
    ("reason", "sent"),
    [("x" * 123, "x" * 123), ("x" * 124, "x" * 123), ("é" * 62, "é" * 61), ("x" + "é" * 61, "x" + "é" * 61), ("", "")],
)
@in_virtual_time
async def test_a_reason_is_cut_to_what_fits_and_never_within_a_character(reason: str, sent: str) -> None:
    client, sink = await opened()
    sink.line.close(1000, reason)
    assert client.closed == (1000, sent)
    assert len(client.frames[-1].payload) <= 125


@in_virtual_time
async def test_between_our_close_and_the_clients_nothing_is_delivered_answered_or_said() -> None:
    client, sink = await opened()
    sink.line.close(1000, "")
    client.sends(text("late"), frame(9, b"ping"), frame(10))
    sink.line.ping()
    sink.line.close(1001, "again")
    sink.line.hold()
    assert client.wire.is_reading()
    assert sink.messages == []
    assert sink.told == []
    assert client.closed == (1000, "")


@in_virtual_time
async def test_control_frames_are_counted_between_our_close_and_the_clients_as_well() -> None:
    client, sink = await opened()
    sink.line.close(1000, "")
    client.sends(*(frame(9) for _ in range(101)))
    await sink.ended.wait()
    assert sink.ends == [(1008, "too many ping and pong frames")]
    assert client.closed == (1000, "")
    assert client.wire.has_ended


@in_virtual_time
async def test_a_rule_broken_after_our_close_is_not_answered_by_a_second_one() -> None:
    client, sink = await opened()
    sink.line.close(1000, "")
    client.sends(frame(3))
    assert client.closed == (1000, "")
    assert sink.ends == [(1002, "reserved opcode")]
    assert client.wire.has_ended


@in_virtual_time
async def test_who_does_not_answer_our_close_is_cut_in_time() -> None:
    client, sink = await opened()
    await asyncio.sleep(50)
    sink.line.close(1000, "")
    await asyncio.sleep(CLOSE - A_WHILE)
    client.sends(text("no answer"))
    assert not client.wire.is_gone
    await asyncio.sleep(2 * A_WHILE)
    assert client.wire.is_aborted
    assert sink.ends == [(1006, "")]


@in_virtual_time
async def test_who_is_closed_while_it_takes_nothing_has_the_stall_timeout_and_then_time_to_answer() -> None:
    client, sink = await opened()
    sink.line.stall_timeout = 20.0
    client.wire.takes = False
    sink.line.write(b"\x82\x02xx")
    sink.line.close(1000, "")
    for _ in range(4):  # it takes a little, again and again: it does not stall
        await asyncio.sleep(4.9)
        client.wire.take(1)
    assert not client.wire.is_gone
    client.wire.take()
    await asyncio.sleep(CLOSE - A_WHILE)
    assert not client.wire.is_gone
    await asyncio.sleep(2 * A_WHILE)
    assert client.wire.is_aborted
    assert sink.told == ["full", "writable"]


@in_virtual_time
async def test_who_is_closed_and_takes_too_little_is_cut_when_the_stall_timeout_is_over() -> None:
    client, sink = await opened()
    sink.line.stall_timeout = 20.0
    client.wire.takes = False
    sink.line.write(b"\x82\x7d" + b"x" * 125)
    await asyncio.sleep(1)
    began = now()
    sink.line.close(1000, "")
    while not client.wire.is_gone:
        assert now() - began < 21
        await asyncio.sleep(1)
        client.wire.take(1)
    assert now() - began == pytest.approx(20, abs=1.1)
    assert client.wire.is_aborted


@in_virtual_time
async def test_a_close_while_held_still_sees_the_clients_close_frame() -> None:
    client, sink = await opened()
    sink.line.hold()
    client.sends(text("unread"), close_frame(1001))
    sink.line.close(1000, "")
    assert sink.ends == []  # not within the call
    await sink.ended.wait()
    assert sink.messages == []
    assert sink.ends == [(1001, "")]


@in_virtual_time
async def test_a_sink_that_holds_and_closes_within_a_message_is_told_of_the_end_later() -> None:
    client, sink = await opened()

    def close(_data: object) -> None:
        sink.line.hold()
        sink.line.close(1000, "")

    sink.on_message = close
    client.sends(text("a"), text("b"), close_frame(1001))
    assert sink.ends == []
    await sink.ended.wait()
    assert sink.messages == ["a"]
    assert sink.ends == [(1001, "")]


@in_virtual_time
async def test_a_close_while_held_between_turns_goes_on_in_the_turn_that_was_due() -> None:
    client, sink = await opened()
    client.sends(*(text(str(number)) for number in range(2 * SLICE)), close_frame(1001))
    sink.line.hold()
    sink.line.close(1000, "")
    assert sink.ends == []
    await sink.ended.wait()
    assert sink.ends == [(1001, "")]
    assert len(sink.messages) == SLICE


@in_virtual_time
async def test_closing_what_is_not_open_yet_is_an_abort() -> None:
    client = PlayedClient(PlayedSink())
    client.protocol.close(1001, "")
    assert client.wire.is_aborted
    assert client.got == b""


@in_virtual_time
async def test_what_was_over_before_it_was_handed_over_takes_nothing_more() -> None:
    gate = asyncio.Event()
    sink = PlayedSink()

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await gate.wait()
        sink.line = scope["extensions"][EXTENSION](sink)
        sink.line.go_on()

    client = PlayedClient(late)
    client.sends(upgrade())
    await turns(lambda: client.got)
    client.wire.takes = False
    client.sends(text("early"), close_frame(1001, b"bye"))
    gate.set()
    await sink.ended.wait()
    sink.line.write(b"\x82\x00")
    client.wire.take()
    assert sink.messages == ["early"]
    assert sink.ends == [(1001, "bye")]
    assert client.frames == [Frame(0x88, b"\x03\xe9")]


@in_virtual_time
async def test_an_abort_is_at_once() -> None:
    client, sink = await opened()
    sink.line.abort()
    assert client.wire.is_aborted
    await sink.ended.wait()
    assert sink.ends == [(1006, "")]
    assert client.frames == []


# A client that reads slowly


@in_virtual_time
async def test_what_is_not_taken_at_once_means_full_and_writable_comes_when_all_is_taken() -> None:
    client, sink = await opened()
    client.wire.takes = False
    sink.line.write(b"\x82\x00")
    assert sink.told == ["full"]
    assert sink.line.buffered == 2
    sink.line.write(b"\x82\x02cd")
    client.wire.take(5)
    assert sink.told == ["full"]
    assert sink.line.buffered == 1
    client.wire.take(1)
    assert sink.told == ["full", "writable"]
    assert sink.line.buffered == 0
    client.wire.take()
    assert client.frames == [Frame(0x82, b""), Frame(0x82, b"cd")]


@in_virtual_time
async def test_a_client_that_takes_nothing_is_given_up_after_the_stall_timeout() -> None:
    client, sink = await opened()
    sink.line.stall_timeout = 8.0
    client.wire.takes = False
    sink.line.write(b"\x82\x02ab")
    await asyncio.sleep(8.0 - A_WHILE)
    assert not client.wire.is_gone
    await asyncio.sleep(2.0 + 2 * A_WHILE)
    assert client.wire.is_aborted
    assert sink.told == ["full", "stalled"]
    await sink.ended.wait()
    assert sink.ends == [(1006, "")]


@in_virtual_time
async def test_the_servers_own_stall_timeout_is_ten_seconds() -> None:
    client, sink = await opened()
    assert sink.line.stall_timeout == 10.0
    client.wire.takes = False
    sink.line.write(b"\x82\x02ab")
    await asyncio.sleep(13)
    assert client.wire.is_aborted


@in_virtual_time
async def test_a_client_that_takes_a_little_is_not_given_up() -> None:
    client, sink = await opened()
    client.wire.takes = False
    sink.line.write(b"\x82\x7d" + b"x" * 125)
    for _ in range(20):
        await asyncio.sleep(9)
        client.wire.take(1)
    assert sink.told == ["full"]
    client.wire.take()
    await asyncio.sleep(100)
    assert sink.told == ["full", "writable"]
    assert not client.wire.is_gone


@in_virtual_time
async def test_a_client_that_stalls_a_second_time_has_its_whole_time_again() -> None:
    client, sink = await opened()
    for _ in range(3):
        client.wire.takes = False
        sink.line.write(b"\x82\x02ab")
        await asyncio.sleep(9)
        client.wire.take()
    assert sink.told == ["full", "writable"] * 3
    await asyncio.sleep(100)
    assert not client.wire.is_gone
    client.wire.takes = False
    sink.line.write(b"\x82\x02ab")
    await asyncio.sleep(13)
    assert sink.told[-2:] == ["full", "stalled"]
    assert client.wire.is_aborted


@in_virtual_time
async def test_a_sink_that_writes_when_there_is_room_may_fill_the_line_again() -> None:
    client, sink = await opened()
    sink.on_writable = lambda: sink.line.write(b"\x82\x02cd") if len(sink.told) < 4 else None
    client.wire.takes = False
    sink.line.write(b"\x82\x02ab")
    client.wire.take(4)
    assert sink.told == ["full", "writable", "full"]
    await asyncio.sleep(9)
    client.wire.take(4)
    assert sink.told == ["full", "writable", "full", "writable"]
    assert client.frames == [Frame(0x82, b"ab"), Frame(0x82, b"cd")]


@in_virtual_time
async def test_a_line_that_is_closing_is_not_said_to_be_full() -> None:
    client, sink = await opened()
    client.wire.takes = False
    sink.line.close(1000, "")
    assert sink.told == []
    client.wire.take()
    assert sink.told == ["writable"]
    client.sends(close_frame(1000))
    assert sink.ends == [(1000, "")]


@in_virtual_time
async def test_a_ping_that_waits_for_room_is_not_answered_behind_a_close() -> None:
    client, sink = await opened()
    client.wire.takes = False
    sink.line.write(b"\x82\x02ab")
    client.sends(frame(9, b"ping"))
    sink.line.close(1000, "")
    client.wire.take()
    assert client.frames == [Frame(0x82, b"ab"), Frame(0x88, b"\x03\xe8")]


# The connection itself


class PlayedSocket:
    def __init__(self, family: int) -> None:
        self.family = family
        self.options: list[tuple[int, int, int]] = []

    def getsockname(self) -> str:
        return "here"

    def getpeername(self) -> str:
        return "there"

    def setsockopt(self, *option: int) -> None:
        self.options.append((option[0], option[1], option[2]))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
@in_virtual_time
async def test_small_messages_are_sent_at_once_where_that_can_be_asked_for(family: int) -> None:
    played = PlayedSocket(family)
    client, _ = await opened(extra={"socket": played})
    assert client.answer.status == 101
    asked = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    assert played.options == ([] if family == socket.AF_UNIX else asked)


@in_virtual_time
async def test_a_server_that_stops_tells_the_sink_and_leaves_closing_to_it() -> None:
    client, sink = await opened()
    client.protocol.shutdown()
    assert sink.told == ["shutting_down"]
    assert not client.wire.is_closing()
    sink.line.close(1012, "")
    client.protocol.shutdown()
    assert sink.told == ["shutting_down"]
    assert not client.wire.is_closing()
    assert client.closed == (1012, "")


@in_virtual_time
async def test_times_and_rates_can_be_set_by_a_subclass() -> None:
    class Hasty(WebSocketProtocol):
        __slots__ = ()
        assembly_timeout = 1.0
        close_timeout = 2.0
        max_control_frames = 3
        max_stall = 4.0

    client, sink = await opened(protocol=Hasty)
    assert sink.line.stall_timeout == 4.0
    began = now()
    client.sends(b"\x81")
    assert await failed_at(sink) - began == pytest.approx(1.0)
    client, sink = await opened(protocol=Hasty)
    client.sends(*(frame(10) for _ in range(4)))
    assert_failed(client, sink, 1008, "too many ping and pong frames")
    await asyncio.sleep(2.0 + A_WHILE)
    assert client.wire.is_aborted
