"""Reading in turns: what goes to whom, how much at a time, how fast, and what happens to the rest."""

from __future__ import annotations

from typing import Any, cast

from socketspec.adapters.uvicorn.frame_pump import BYTES_A_TURN, FramePump
from socketspec.adapters.uvicorn.frames import PING, PONG, FrameReader
from tests.unit.adapters.uvicorn.test_frame_connection import PlayedLoop, PlayedReceiver, PlayedTransport
from tests.unit.adapters.uvicorn.test_frames import frame

TEXT, CLOSE = 1, 8


class PlayedListener:
    """Keeps what it is told, and stops the pump where a connection would."""

    assembly_timeout = 30.0
    max_control_frames = 3

    def __init__(self) -> None:
        self.pump: FramePump
        self.controls: list[tuple[int, bytes]] = []
        self.ends: list[tuple[int, str]] = []

    def control_received(self, kind: int, payload: bytes) -> None:
        self.controls.append((kind, payload))

    def close_received(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))
        self.pump.stop()

    def rules_broken(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))
        self.pump.discard()


class Rig:
    def __init__(self) -> None:
        self.loop = PlayedLoop()
        self.transport = PlayedTransport()
        self.listener = PlayedListener()
        self.receiver = PlayedReceiver()
        self.reader = FrameReader(max_size=1_048_576)
        self.pump = FramePump(cast("Any", self.loop), self.transport, self.reader, self.listener)
        self.pump.receiver = self.receiver
        self.listener.pump = self.pump

    def feed(self, *frames: bytes) -> None:
        """As a connection does with what was received."""
        self.reader.feed(b"".join(frames))
        if self.pump.is_reading:
            self.pump.run()


def test_messages_go_to_the_receiver_and_all_else_to_the_listener() -> None:
    rig = Rig()
    rig.feed(frame(TEXT, b"a"), frame(PING, b"p"), frame(PONG, b"q"), frame(2, b"b"), frame(CLOSE, b"\x03\xe8bye"))
    assert rig.receiver.got == ["a", b"b"]
    assert rig.listener.controls == [(PING, b"p"), (PONG, b"q")]
    assert rig.listener.ends == [(1000, "bye")]


def test_without_a_receiver_messages_are_dropped_and_the_close_frame_is_still_seen() -> None:
    rig = Rig()
    rig.pump.receiver = None
    rig.feed(frame(TEXT, b"a"), frame(CLOSE, b"\x03\xe8"))
    assert rig.receiver.got == []
    assert rig.listener.ends == [(1000, "")]


def test_a_turn_has_so_many_bytes_and_the_rest_comes_in_the_next_ones() -> None:
    rig = Rig()
    large = frame(TEXT, b"x" * (BYTES_A_TURN // 2 + 1))
    rig.feed(*[large] * 5)
    assert len(rig.receiver.got) == 2
    assert rig.transport.is_reading_paused
    rig.loop.pass_time(0)
    assert len(rig.receiver.got) == 5
    assert not rig.transport.is_reading_paused


def test_control_frames_have_a_rate_that_begins_anew_each_second() -> None:
    rig = Rig()
    rig.loop.pass_time(10)
    for _ in range(2):
        rig.feed(*[frame(PING)] * rig.listener.max_control_frames)
        rig.loop.pass_time(1)
    assert rig.listener.ends == []
    rig.feed(*[frame(PING)] * (rig.listener.max_control_frames + 1))
    assert rig.listener.ends == [(1008, "too many ping and pong frames")]
    assert len(rig.listener.controls) == 3 * rig.listener.max_control_frames


def test_what_came_together_with_a_broken_rule_is_not_looked_at() -> None:
    rig = Rig()
    rig.feed(*[frame(PING)] * 10 * rig.listener.max_control_frames, frame(TEXT, b"late"), frame(CLOSE, b"\x03\xe8"))
    rig.loop.pass_time(100)
    assert rig.listener.ends == [(1008, "too many ping and pong frames")]
    assert len(rig.listener.controls) == rig.listener.max_control_frames
    assert rig.receiver.got == []


def test_while_held_only_what_was_read_before_is_delivered() -> None:
    rig = Rig()
    rig.pump.hold()
    rig.feed(frame(TEXT, b"later"))
    assert rig.pump.deliver_while_held("early", rig.receiver)
    rig.receiver.each = lambda data: rig.pump.hold()
    assert not rig.pump.deliver_while_held("enough", rig.receiver)
    assert rig.receiver.got == ["early", "enough"]
    assert rig.transport.is_reading_paused
    rig.receiver.each = lambda data: None
    rig.pump.go_on()
    assert rig.receiver.got == ["early", "enough", "later"]


def test_going_on_soon_delivers_nothing_within_the_call() -> None:
    rig = Rig()
    rig.pump.hold()
    rig.feed(frame(TEXT, b"a"))
    rig.pump.go_on_soon()
    rig.pump.go_on_soon()
    assert rig.receiver.got == []
    rig.loop.pass_time(0)
    assert rig.receiver.got == ["a"]


def test_what_comes_after_a_broken_rule_is_read_and_forgotten() -> None:
    rig = Rig()
    rig.pump.hold()
    rig.feed(frame(TEXT, b"a"))
    rig.pump.discard()
    assert not rig.transport.is_reading_paused
    rig.loop.pass_time(100)
    assert (rig.receiver.got, rig.listener.ends) == ([], [])


def test_a_stopped_pump_has_no_deadline_and_no_turn() -> None:
    rig = Rig()
    rig.feed(frame(TEXT, b"a", fin=False))
    rig.pump.run_soon()
    rig.pump.stop()
    rig.feed(frame(0, b"b"))
    rig.loop.pass_time(100)
    assert (rig.receiver.got, rig.listener.ends) == ([], [])
