"""The transport on a handed-over line: shared frames, waiting while the client is slow, closing behind what waits."""

from __future__ import annotations

import asyncio

import pytest

from socketspec.adapters.direct import DirectTransport
from socketspec.adapters.uvicorn.frames import frame_header
from socketspec.connection.outbox import Backpressure
from socketspec.protocol.formats import Format
from socketspec.protocol.messages import Message
from tests.watching import until


class PlayedLine:
    """Takes what is written until it is told to be full, and writes everything down."""

    def __init__(self) -> None:
        self.max_size = 0
        self.stall_timeout = 0.0
        self.deflate_bits = 0
        self.buffered = 0
        self.encoded = 0
        self.written: list[bytes] = []
        self.closed: list[tuple[int, str]] = []
        self.aborted = False
        self.pings = 0
        self.room: int | None = None
        """Writes until it is full; None: never."""
        self.transport: DirectTransport | None = None

    def write(self, data: bytes) -> None:
        self.written.append(data)
        if self.room is not None:
            self.room -= 1
            if self.room <= 0:
                assert self.transport is not None
                self.transport.full()

    def encode(self, data: bytes, *, binary: bool) -> bytes:
        self.encoded += 1
        return frame_header(2 if binary else 1, len(data)) + data

    def ping(self) -> None:
        self.pings += 1

    def hold(self) -> None: ...

    def go_on(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))

    def abort(self) -> None:
        self.aborted = True


def pair(format: Format = Format.PLAIN, **limits: object) -> tuple[DirectTransport, PlayedLine]:
    line = PlayedLine()
    transport = DirectTransport(line, format, Backpressure(**limits))  # type: ignore[arg-type] # options of any kind
    line.transport = transport
    return transport, line


def said(number: int) -> Message:
    return Message("said", b'{"n":%d}' % number, room="r")


def numbers(line: PlayedLine) -> list[int]:
    return [int(part.split(b"}")[0]) for data in line.written for part in data.split(b'"n":')[1:]]


def test_a_message_is_one_frame_made_once_for_all_recipients_of_a_format() -> None:
    pairs = [pair() for _ in range(3)] + [pair(Format.MSGPACK) for _ in range(2)]
    message = said(1)
    for transport, _ in pairs:
        transport.write(message)
    text = b'{"event":"said","payload":{"n":1}}'
    assert [line.written for _, line in pairs[:3]] == [[frame_header(1, len(text)) + text]] * 3
    assert pairs[3][1].written == pairs[4][1].written != pairs[0][1].written
    assert [line.encoded for _, line in pairs] == [1, 0, 0, 1, 0]


def test_messages_that_come_together_are_one_write_and_joined_once() -> None:
    pairs = [pair() for _ in range(3)]
    messages = [said(1), said(2), said(3)]
    for transport, _ in pairs:
        transport.write(*messages)
    assert [len(line.written) for _, line in pairs] == [1, 1, 1]
    assert pairs[0][1].written[0] is pairs[2][1].written[0]
    assert numbers(pairs[1][1]) == [1, 2, 3]
    pairs[0][0].write(*messages[:2])  # another selection that begins with the same message
    assert numbers(pairs[0][1]) == [1, 2, 3, 1, 2]
    pairs[0][0].write(messages[0])
    assert numbers(pairs[0][1]) == [1, 2, 3, 1, 2, 1]


def test_members_excluded_from_different_messages_get_their_own() -> None:
    pairs = [pair() for _ in range(4)]
    a, b, c, d = (said(number) for number in range(4))
    for messages, (transport, _) in zip(((a, b, c, d), (a, c, d), (a, b, d), (a, b, c, d)), pairs, strict=True):
        transport.write(*messages)
    assert [numbers(line) for _, line in pairs] == [[0, 1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2, 3]]


async def test_the_last_moment_is_over_once_what_waited_is_out() -> None:
    transport, line = pair(send_timeout=0.02)
    line.room = 1
    for number in range(3):
        transport.write(said(number))
    transport.close(1012, "")
    line.room = None
    transport.writable()
    assert line.closed == [(1012, "")]
    await asyncio.sleep(0.05)
    assert not line.aborted


async def test_what_a_slow_client_does_not_take_waits_and_comes_in_order() -> None:
    transport, line = pair()
    line.room = 1
    for number in range(10):
        transport.write(said(number))
    assert numbers(line) == [0]
    assert transport.buffered > 0
    draining = asyncio.create_task(transport.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    line.room = None
    transport.writable()
    assert numbers(line) == list(range(10))
    assert len(line.written) == 2  # what waited was joined
    transport.write(said(10))
    assert numbers(line) == list(range(11))
    await draining
    assert transport.buffered == 0


async def test_a_client_that_is_slow_again_gets_no_more_than_it_takes() -> None:
    transport, line = pair()
    line.room = 1
    big = Message("said", b'{"text":"%s","n":1}' % (b"x" * 40_000), room="r")
    for _ in range(10):
        transport.write(big)
    line.room = 1
    transport.writable()  # one batch, and it is full again
    assert len(line.written) == 2
    assert transport.buffered > 200_000
    line.room = None
    transport.writable()
    assert numbers(line) == [1] * 10


def test_a_burst_of_large_messages_gives_a_stalled_client_no_more_than_one_of_them() -> None:
    transport, line = pair(max_buffer=1_048_576)
    told: list[str] = []
    transport.on_slow = lambda: told.append("slow")
    line.room = 1  # the kernel takes nothing of what is written first
    large = b'{"text":"%s"}' % (b"x" * 262_144)
    transport.write(*(Message("said", large, room="r") for _ in range(5)))
    assert len(line.written) == 1
    assert len(line.written[0]) < 300_000
    assert told == ["slow"]


def test_what_a_client_was_full_for_is_not_encoded_again_for_it() -> None:
    (quick, quick_line), (slow, slow_line) = pair(), pair()
    slow.full()
    messages = [said(number) for number in range(5)]
    for message in messages:
        quick.write(message)
        slow.write(message)
    slow.writable()
    assert numbers(slow_line) == numbers(quick_line)
    assert slow_line.encoded == 0


def test_a_full_outbox_tells_the_engine_once_and_forgets_what_waited() -> None:
    transport, line = pair(max_buffer=2000)
    told: list[str] = []

    def slow() -> None:
        told.append("slow")
        transport.close(4006, "slow_consumer")

    transport.on_slow = slow
    line.room = 1
    for number in range(20):
        transport.write(said(number))
    assert told == ["slow"]
    assert line.closed == [(4006, "slow_consumer")]
    assert transport.buffered == 0


@pytest.mark.parametrize("policy", ["drop_oldest", "keep_latest"])
def test_a_policy_that_drops_keeps_the_newest(policy: str) -> None:
    transport, line = pair(max_buffer=2000, policy=policy)
    line.room = 1
    for number in range(50):
        transport.write(said(number))
    line.room = None
    transport.writable()
    assert numbers(line)[0] == 0
    assert numbers(line)[-1] == 49
    assert len(numbers(line)) < 6


async def test_close_comes_behind_what_waits_and_nothing_after_it() -> None:
    transport, line = pair()
    line.room = 1
    transport.write(said(0))
    transport.write(said(1))
    transport.close(1012, "server_shutdown")
    transport.close(4000, "again")
    transport.write(said(2))
    assert line.closed == []
    line.room = None
    transport.writable()
    assert numbers(line) == [0, 1]
    assert line.closed == [(1012, "server_shutdown")]
    transport.gone()


async def test_a_close_that_cannot_be_sent_in_time_aborts() -> None:
    transport, line = pair(send_timeout=0.01)
    line.room = 1
    transport.write(said(0))
    transport.write(said(1))
    transport.close(1012, "")
    await until(lambda: line.aborted)


async def test_after_the_line_is_lost_nothing_is_written_and_nobody_waits() -> None:
    transport, line = pair()
    line.room = 1
    transport.write(said(0))
    draining = asyncio.create_task(transport.drain())
    await asyncio.sleep(0)
    transport.gone()
    transport.write(said(1))
    transport.close(1000, "")
    transport.writable()
    await draining
    assert (numbers(line), line.closed) == ([0], [])


def test_a_client_that_does_not_read_is_not_pinged() -> None:
    transport, line = pair()
    transport.ping()
    transport.full()
    transport.ping()
    assert line.pings == 1
