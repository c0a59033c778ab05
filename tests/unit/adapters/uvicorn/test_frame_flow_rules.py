"""An open connection whose sink or client is slow: hold and go on, full and writable, and who is given up."""

from __future__ import annotations

import asyncio
import socket

import pytest

from socketspec.adapters.uvicorn import WebSocketProtocol
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
    assert await sink.ended_at() - began == pytest.approx(1.0)
    client, sink = await opened(protocol=Hasty)
    client.sends(*(frame(10) for _ in range(4)))
    assert_failed(client, sink, 1008, "too many ping and pong frames")
    await asyncio.sleep(2.0 + A_WHILE)
    assert client.wire.is_aborted
