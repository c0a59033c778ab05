"""How an open connection ends: by the client, by a broken rule, by us; and that it does so in time, and once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from socketspec.adapters.handover import EXTENSION
from tests.played_client import (
    A_WHILE,
    SLICE,
    Frame,
    PlayedClient,
    PlayedReceiver,
    assert_failed,
    close_frame,
    frame,
    opened,
    text,
    upgrade,
)
from tests.virtual_time import in_virtual_time, now
from tests.watching import turns

CLOSE = 5.0
"""Seconds a client has to answer a close frame."""


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
    client = PlayedClient(PlayedReceiver())
    client.protocol.close(1001, "")
    assert client.wire.is_aborted
    assert client.got == b""


@in_virtual_time
async def test_what_was_over_before_it_was_handed_over_takes_nothing_more() -> None:
    gate = asyncio.Event()
    sink = PlayedReceiver()

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
