"""The transport of a handed-over connection: shared frames, waiting for a slow client, closing behind what waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from socketspec.adapters.direct_transport import DirectTransport
from socketspec.adapters.uvicorn.frames import frame_header
from socketspec.connection.outbox import Backpressure
from socketspec.connection.waiting import Waiting
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.telemetry.counters import Counters
from tests.carriers import account
from tests.watching import until


class PlayedConnection:
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

    def keep(self, size: int, skipped: Callable[[int], None]) -> None: ...

    def hold(self) -> None: ...

    def go_on(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))

    def abort(self) -> None:
        self.aborted = True


def pair(
    format: Format = Format.PLAIN, waiting: Waiting | None = None, **limits: object
) -> tuple[DirectTransport, PlayedConnection]:
    raw = PlayedConnection()
    options = Backpressure(**limits)  # type: ignore[arg-type] # options of any kind
    transport = DirectTransport(raw, format, options, Counters(), waiting or account())
    raw.transport = transport
    return transport, raw


def said(number: int) -> Message:
    return Message("said", b'{"n":%d}' % number, room="r")


def numbers(raw: PlayedConnection) -> list[int]:
    return [int(part.split(b"}")[0]) for data in raw.written for part in data.split(b'"n":')[1:]]


def test_a_message_is_one_frame_made_once_for_all_recipients_of_a_format() -> None:
    pairs = [pair() for _ in range(3)] + [pair(Format.MSGPACK) for _ in range(2)]
    message = said(1)
    for transport, _ in pairs:
        transport.write(message)
    text = b'{"event":"said","payload":{"n":1}}'
    assert [raw.written for _, raw in pairs[:3]] == [[frame_header(1, len(text)) + text]] * 3
    assert pairs[3][1].written == pairs[4][1].written != pairs[0][1].written
    assert [raw.encoded for _, raw in pairs] == [1, 0, 0, 1, 0]


def test_messages_that_come_together_are_one_write_and_joined_once() -> None:
    pairs = [pair() for _ in range(3)]
    messages = [said(1), said(2), said(3)]
    for transport, _ in pairs:
        transport.write(*messages)
    assert [len(raw.written) for _, raw in pairs] == [1, 1, 1]
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
    assert [numbers(raw) for _, raw in pairs] == [[0, 1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2, 3]]


async def test_the_last_moment_is_over_once_what_waited_is_out() -> None:
    transport, raw = pair(send_timeout=0.02)
    raw.room = 1
    for number in range(3):
        transport.write(said(number))
    transport.close(1012, "")
    raw.room = None
    transport.writable()
    assert raw.closed == [(1012, "")]
    await asyncio.sleep(0.05)
    assert not raw.aborted


async def test_what_a_slow_client_does_not_take_waits_and_comes_in_order() -> None:
    transport, raw = pair()
    raw.room = 1
    for number in range(10):
        transport.write(said(number))
    assert numbers(raw) == [0]
    assert transport.buffered > 0
    draining = asyncio.create_task(transport.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    raw.room = None
    transport.writable()
    assert numbers(raw) == list(range(10))
    assert len(raw.written) == 2  # what waited was joined
    transport.write(said(10))
    assert numbers(raw) == list(range(11))
    await draining
    assert transport.buffered == 0


async def test_a_client_that_is_slow_again_gets_no_more_than_it_takes() -> None:
    transport, raw = pair()
    raw.room = 1
    big = Message("said", b'{"text":"%s","n":1}' % (b"x" * 40_000), room="r")
    for _ in range(10):
        transport.write(big)
    raw.room = 1
    transport.writable()  # one batch, and it is full again
    assert len(raw.written) == 2
    assert transport.buffered > 200_000
    raw.room = None
    transport.writable()
    assert numbers(raw) == [1] * 10


def test_a_burst_of_large_messages_gives_a_stalled_client_no_more_than_one_of_them() -> None:
    transport, raw = pair(max_buffer=1_048_576)
    told: list[str] = []
    transport.on_slow = lambda: told.append("slow")
    raw.room = 1  # the kernel takes nothing of what is written first
    large = b'{"text":"%s"}' % (b"x" * 262_144)
    transport.write(*(Message("said", large, room="r") for _ in range(5)))
    assert len(raw.written) == 1
    assert len(raw.written[0]) < 300_000
    assert told == ["slow"]


def test_what_a_client_was_full_for_is_not_encoded_again_for_it() -> None:
    (quick, quick_raw), (slow, slow_raw) = pair(), pair()
    slow.full()
    messages = [said(number) for number in range(5)]
    for message in messages:
        quick.write(message)
        slow.write(message)
    slow.writable()
    assert numbers(slow_raw) == numbers(quick_raw)
    assert slow_raw.encoded == 0


def test_a_full_outbox_tells_the_engine_once_and_forgets_what_waited() -> None:
    transport, raw = pair(max_buffer=2000)
    told: list[str] = []

    def slow() -> None:
        told.append("slow")
        transport.close(4006, "slow_consumer")

    transport.on_slow = slow
    raw.room = 1
    for number in range(20):
        transport.write(said(number))
    assert told == ["slow"]
    assert raw.closed == [(4006, "slow_consumer")]
    assert transport.buffered == 0


@pytest.mark.parametrize("policy", ["drop_oldest", "keep_latest"])
def test_a_policy_that_drops_keeps_the_newest(policy: str) -> None:
    transport, raw = pair(max_buffer=2000, policy=policy)
    raw.room = 1
    for number in range(50):
        transport.write(said(number))
    raw.room = None
    transport.writable()
    assert numbers(raw)[0] == 0
    assert numbers(raw)[-1] == 49
    assert len(numbers(raw)) < 6


async def test_close_comes_behind_what_waits_and_nothing_after_it() -> None:
    transport, raw = pair()
    raw.room = 1
    transport.write(said(0))
    transport.write(said(1))
    transport.close(1012, "server_shutdown")
    transport.close(4000, "again")
    transport.write(said(2))
    assert raw.closed == []
    raw.room = None
    transport.writable()
    assert numbers(raw) == [0, 1]
    assert raw.closed == [(1012, "server_shutdown")]
    transport.gone()


async def test_a_close_that_cannot_be_sent_in_time_aborts() -> None:
    transport, raw = pair(send_timeout=0.01)
    raw.room = 1
    transport.write(said(0))
    transport.write(said(1))
    transport.close(1012, "")
    await until(lambda: raw.aborted)


async def test_after_the_line_is_lost_nothing_is_written_and_nobody_waits() -> None:
    transport, raw = pair()
    raw.room = 1
    transport.write(said(0))
    draining = asyncio.create_task(transport.drain())
    await asyncio.sleep(0)
    transport.gone()
    transport.write(said(1))
    transport.close(1000, "")
    transport.writable()
    await draining
    assert (numbers(raw), raw.closed) == ([0], [])


def test_a_client_that_does_not_read_is_not_pinged() -> None:
    transport, raw = pair()
    transport.ping()
    transport.full()
    transport.ping()
    assert raw.pings == 1


def test_what_waits_is_counted_for_the_node_until_it_is_sent_or_forgotten() -> None:
    waiting = account()
    (first, raw), (second, _), (third, _) = (pair(waiting=waiting) for _ in range(3))
    for transport in (first, second, third):
        transport.full()
        transport.write(said(1), said(2))
    each = waiting.size / 3
    first.writable()
    assert numbers(raw) == [1, 2]
    assert waiting.size == 2 * each
    second.gone()
    assert waiting.size == each
    third.give_up()
    assert waiting.size == 0


def test_beyond_the_nodes_limit_the_one_for_whom_most_waits_is_slow_not_the_one_that_is_written_to() -> None:
    waiting = account(20_000)
    (large, raw), (small, _) = pair(waiting=waiting), pair(waiting=waiting)
    slow: list[str] = []

    def end_large() -> None:
        slow.append("large")
        large.close(4006, "slow_consumer")

    large.on_slow = end_large
    small.on_slow = lambda: slow.append("small")
    for transport, count in ((large, 30), (small, 5)):
        transport.full()
        for number in range(count):
            transport.write(said(number))
    while not slow:
        small.write(said(0))
        assert small.buffered < 20_000
    assert slow == ["large"]
    assert raw.closed == [(4006, "slow_consumer")]
    assert (raw.written, large.buffered) == ([], 0)


def test_who_waits_most_may_be_the_one_that_is_written_to_in_the_midst_of_several_messages() -> None:
    transport, raw = pair(waiting=account(20_000))
    transport.on_slow = lambda: transport.close(4006, "slow_consumer")
    transport.full()
    transport.write(*(said(number) for number in range(100)))
    transport.write(said(100))
    assert raw.closed == [(4006, "slow_consumer")]
    assert raw.written == []
