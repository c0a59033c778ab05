"""An open connection on a played transport and a played clock: deadlines, slices, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import weakref
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, cast

import pytest

from socketspec.adapters.uvicorn.frame_connection import FrameConnection
from socketspec.adapters.uvicorn.frame_pump import FRAMES_A_TURN
from socketspec.adapters.uvicorn.frames import frame_header

CLOSE_1012 = frame_header(8, 2) + (1012).to_bytes(2, "big")


class PlayedLoop:
    """A clock that the test moves; what is due is called in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._number = itertools.count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, call, args, cast("Any", self))
        heapq.heappush(self._due, (self.now + delay, next(self._number), handle))
        return handle

    def call_soon(self, call: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        return self.call_later(0, call, *args)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, handle = heapq.heappop(self._due)
            if not handle.cancelled():
                handle._run()  # noqa: SLF001 - as an event loop does
        self.now = until

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's handles say this to their loop."""


class PlayedTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_reading_paused = False
        self.is_over = False
        self.is_aborted = False
        self.waiting = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_over = True

    def is_closing(self) -> bool:
        return self.is_over

    def close(self) -> None:
        self.is_over = True

    def abort(self) -> None:
        self.is_over = self.is_aborted = True

    def pause_reading(self) -> None:
        assert not self.is_reading_paused
        self.is_reading_paused = True

    def resume_reading(self) -> None:
        assert self.is_reading_paused
        self.is_reading_paused = False


class PlayedReceiver:
    """Keeps what it is told; `each` is called with every message."""

    def __init__(self) -> None:
        self.got: list[str | bytes] = []
        self.ends: list[tuple[int, str]] = []
        self.each: Callable[[str | bytes], None] = lambda data: None

    def received(self, data: str | bytes) -> None:
        self.got.append(data)
        self.each(data)

    def lost(self, code: int, reason: str) -> None:
        self.ends.append((code, reason))

    def too_large(self) -> None: ...

    def heard(self) -> None: ...

    def full(self) -> None: ...

    def writable(self) -> None: ...

    def stalled(self) -> None: ...

    def shutting_down(self) -> None: ...


class OpenConnection(FrameConnection):
    """A connection whose handshake is behind it."""

    def open(self, receiver: PlayedReceiver) -> None:
        self._open_for(receiver)


class Rig:
    def __init__(self) -> None:
        self.loop = PlayedLoop()
        self.transport = PlayedTransport()
        self.receiver = PlayedReceiver()
        self.connection = OpenConnection(cast("Any", self.loop), max_size=1_048_576)
        self.connection.connection_made(self.transport)
        self.connection.open(self.receiver)


def frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """A client's frame, masked with zeros."""
    assert len(payload) < 126
    return bytes((opcode | (0x80 if final else 0), 0x80 | len(payload), 0, 0, 0, 0)) + payload


def test_a_pong_that_comes_in_two_pieces_is_no_message_that_takes_too_long() -> None:
    rig = Rig()
    pong = frame(10)
    rig.connection.data_received(pong[:2])
    rig.loop.pass_time(1)
    rig.connection.data_received(pong[2:])
    rig.loop.pass_time(100)
    assert rig.receiver.ends == []
    rig.connection.data_received(pong[:2])
    rig.loop.pass_time(rig.connection.assembly_timeout)  # but one that never ends is
    assert rig.receiver.ends == [(1008, "a message took too long to arrive")]


def test_pings_between_its_fragments_give_a_message_no_more_time() -> None:
    rig = Rig()
    rig.connection.data_received(frame(1, b"a", final=False))
    for _ in range(29):
        rig.loop.pass_time(1)
        rig.connection.data_received(frame(9))
        rig.connection.data_received(frame(9)[:3])
        rig.connection.data_received(frame(9)[3:])
    assert rig.receiver.ends == []
    rig.loop.pass_time(1)
    assert rig.receiver.ends == [(1008, "a message took too long to arrive")]


def test_a_receiver_may_hold_and_go_on_within_each_message_and_slices_stay_slices() -> None:
    rig = Rig()

    def each(data: str | bytes) -> None:
        rig.connection.hold()
        rig.connection.go_on()

    rig.receiver.each = each
    rig.connection.data_received(b"".join(frame(1, b"%d" % number) for number in range(1000)))
    assert len(rig.receiver.got) == FRAMES_A_TURN
    assert rig.transport.is_reading_paused
    rig.loop.pass_time(0)
    assert rig.receiver.got == [str(number) for number in range(1000)]
    assert not rig.transport.is_reading_paused


def test_a_held_connection_delivers_nothing_until_it_goes_on() -> None:
    rig = Rig()
    rig.receiver.each = lambda data: rig.connection.hold()
    rig.connection.data_received(frame(1, b"a") + frame(1, b"b"))
    assert rig.receiver.got == ["a"]
    assert rig.transport.is_reading_paused
    rig.receiver.each = lambda data: None
    rig.connection.go_on()
    assert rig.receiver.got == ["a", "b"]
    assert not rig.transport.is_reading_paused


def test_a_close_within_a_message_still_sees_the_clients_close_frame() -> None:
    rig = Rig()

    def each(data: str | bytes) -> None:
        rig.connection.hold()
        rig.connection.close(1012, "")

    rig.receiver.each = each
    rig.connection.data_received(frame(1, b"a") + frame(1, b"b") + frame(8, (1012).to_bytes(2, "big")))
    assert rig.receiver.got == ["a"]
    rig.loop.pass_time(0)
    assert rig.receiver.got == ["a"]
    assert rig.receiver.ends == [(1012, "")]
    assert rig.transport.written == CLOSE_1012
    assert rig.transport.is_over
    assert not rig.transport.is_aborted


def closing_while_full(stall_timeout: float) -> Rig:
    """A connection that is told to close while its client has not taken what was written."""
    rig = Rig()
    rig.connection.stall_timeout = stall_timeout
    rig.transport.waiting = 8_000_000
    rig.connection.pause_writing()
    rig.connection.close(1012, "")
    return rig


async def test_who_reads_slowly_has_the_send_timeout_to_take_what_waits_before_the_close() -> None:
    rig = closing_while_full(stall_timeout=10.0)
    rig.loop.pass_time(9.9)
    assert not rig.transport.is_aborted
    rig.connection.resume_writing()  # it has taken all, and now it may answer
    rig.loop.pass_time(4.9)
    assert not rig.transport.is_aborted
    rig.loop.pass_time(0.1)
    assert rig.transport.is_aborted


async def test_who_does_not_take_what_waits_before_the_close_is_cut() -> None:
    rig = closing_while_full(stall_timeout=10.0)
    rig.loop.pass_time(10.0)
    assert rig.transport.is_aborted
    rig.connection.connection_lost(None)
    assert rig.receiver.ends == [(1006, "")]


def held_by(rig: Rig) -> int:
    """Bytes of messages that a connection still refers to, itself or through what belongs to it."""
    seen: set[int] = set()
    waiting: list[object] = [rig.connection]
    total = 0
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, type | ModuleType | FunctionType):
            continue
        seen.add(id(found))
        total += len(found) if isinstance(found, bytes | bytearray) else 0
        if (
            type(found).__module__.startswith("socketspec")
            or isinstance(found, list | tuple | bytearray)
            or found is rig.connection
        ):
            waiting += gc.get_referents(found)
    return total


@pytest.mark.parametrize("how", ["lost", "closed", "refused"])
async def test_a_connection_that_has_ended_holds_no_bytes_of_an_unfinished_message(how: str) -> None:
    rig = Rig()
    size = 1_000_000
    rig.connection.data_received(b"\x02\xff" + size.to_bytes(8, "big") + bytes(4) + bytes(size))
    assert size <= held_by(rig) < 1.1 * size
    if how == "closed":
        rig.connection.data_received(b"\x88\x80" + bytes(4))
    elif how == "refused":
        rig.connection.data_received(b"\x83\x80" + bytes(4))
    else:
        rig.connection.connection_lost(None)
    assert held_by(rig) < 10_000


@pytest.mark.parametrize("how", ["lost", "closed", "refused", "shut"])
async def test_a_connection_that_has_ended_leaves_memory_without_the_garbage_collector(how: str) -> None:
    rig = Rig()
    ended = weakref.ref(rig.connection)
    rig.connection.data_received(frame(1, b"begun", final=False))
    if how == "closed":
        rig.connection.data_received(frame(8))
    elif how == "refused":
        rig.connection.data_received(frame(3))
    elif how == "shut":
        rig.connection.close(1000, "")
    rig.connection.connection_lost(None)
    gc.collect()
    gc.disable()
    try:
        del rig
        assert ended() is None
    finally:
        gc.enable()
