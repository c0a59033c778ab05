"""Writing through ASGI's `send`, whether it returns, waits, fails or hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.adapters.asgi_transport import ASGITransport, Event
from socketspec.concurrency.tasks import Tasks
from socketspec.connection.outbox import Backpressure
from socketspec.connection.waiting import Waiting
from socketspec.protocol.encoding import OVERHEAD, Message
from socketspec.protocol.formats import Format
from socketspec.telemetry.counters import Counters
from tests.carriers import account


def message(event: str, size: int = 0, room: str | None = None) -> Message:
    return Message(event, b'{"x":"' + b"x" * size + b'"}', room=room)


class Server:
    """A fake `send`, which waits while `gate` is closed, and fails with `error` if there is one."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.calls = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, event: Event) -> None:
        self.calls += 1
        while not self.gate.is_set():
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(str(event.get("code")) if event["type"] == "websocket.close" else _name(event["text"]))


def _name(text: str) -> str:
    return text.split('"')[3]


class Rig:
    """A transport on a fake server, counting what it reports."""

    def __init__(
        self, send: Callable[[Event], Awaitable[None]] | None = None, waiting: Waiting | None = None, **limits: Any
    ) -> None:
        self.server = Server()
        self.tasks = Tasks()
        self.slow = 0
        self.closing = 0
        limits.setdefault("send_timeout", 5.0)
        self.transport = ASGITransport(
            send or self.server.send,
            Format.PLAIN,
            Backpressure(**limits),
            self.tasks,
            Counters(),
            waiting or account(),
        )
        self.transport.on_slow = self._on_slow
        self.transport.on_closing = self._on_closing

    def _on_closing(self) -> None:
        assert "4000" not in self.server.sent, "reading must stop before the close frame is sent"
        self.closing += 1

    def _on_slow(self) -> None:
        self.slow += 1
        self.transport.close(4006, "slow_consumer")

    def write(self, *events: str, **options: Any) -> None:
        for event in events:
            self.transport.write(message(event, **options))

    async def settle(self) -> None:
        async with asyncio.timeout(5):
            while len(self.tasks):  # noqa: ASYNC110 - the tasks under test have no event to wait for
                await asyncio.sleep(0)


async def test_a_server_that_takes_messages_at_once_costs_no_task() -> None:
    rig = Rig()
    rig.write("a", "b", "c")
    assert rig.server.sent == ["a", "b", "c"]
    assert len(rig.tasks) == 0
    assert rig.transport.buffered == 0
    await rig.transport.drain()


async def test_a_send_that_waits_queues_what_follows_and_order_is_kept() -> None:
    rig = Rig()
    rig.server.gate.clear()
    rig.write("a", "b", "c")
    assert rig.server.calls == 1
    assert len(rig.tasks) == 1
    assert rig.transport.buffered == 2 * (len(message("b").data(Format.PLAIN)) + OVERHEAD)
    drained = asyncio.ensure_future(rig.transport.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    rig.server.gate.set()
    await drained
    rig.write("d")
    assert rig.server.sent == ["a", "b", "c", "d"]
    assert rig.transport.buffered == 0


@given(st.lists(st.sampled_from(["write", "open", "shut", "turn"]), max_size=40))
def test_messages_arrive_in_order_however_the_server_waits(steps: list[str]) -> None:
    async def main() -> None:
        rig = Rig()
        written = []
        for number, step in enumerate(steps):
            if step == "write":
                written.append(f"e{number}")
                rig.write(written[-1])
            elif step == "turn":
                await asyncio.sleep(0)
            else:
                (rig.server.gate.set if step == "open" else rig.server.gate.clear)()
        rig.server.gate.set()
        rig.transport.close(1000, "")
        await rig.settle()
        assert rig.server.sent == [*written, "1000"]

    asyncio.run(main())


async def test_an_awaitable_that_is_no_coroutine_is_awaited() -> None:
    class Sending:
        def __await__(self) -> Generator[Any, None, None]:
            yield from asyncio.sleep(0).__await__()
            done.append(1)

    done: list[int] = []
    rig = Rig(send=lambda _event: Sending())
    rig.write("a", "b")
    await rig.transport.drain()
    assert done == [1, 1]


@pytest.mark.parametrize("error", [OSError("gone"), ConnectionResetError(), TimeoutError("ETIMEDOUT"), RuntimeError()])
@pytest.mark.parametrize("waits", [False, True])
async def test_a_send_that_fails_ends_sending_and_is_not_taken_for_slow(error: Exception, waits: bool) -> None:
    rig = Rig()
    if waits:
        rig.server.gate.clear()
        rig.write("a", "b")
    rig.server.error = error
    rig.server.gate.set()
    rig.write("c")
    await rig.settle()
    rig.write("d")
    assert rig.server.sent == []
    assert (rig.slow, rig.transport.buffered) == (0, 0)
    rig.transport.close(1000, "")
    await rig.transport.drain()
    assert rig.server.sent == []


async def test_a_close_frame_that_cannot_be_sent_ends_the_wait_at_once() -> None:
    rig = Rig()
    rig.server.error = OSError()
    rig.transport.close(1000, "")
    async with asyncio.timeout(5):
        await rig.transport.flush()
    assert rig.closing == 1


async def test_a_server_that_takes_nothing_for_too_long_is_slow_once_and_nothing_hangs() -> None:
    rig = Rig(send_timeout=0.02)
    rig.server.gate.clear()
    rig.write("a", "b", "c")
    async with asyncio.timeout(5):
        await rig.transport.drain()
    assert (rig.slow, rig.closing, rig.transport.buffered) == (1, 1, 0)
    rig.write("d")
    await rig.settle()
    rig.server.gate.set()
    assert rig.server.sent == []


async def test_a_full_buffer_is_slow_once_and_the_close_follows_what_was_begun() -> None:
    rig = Rig(max_buffer=1024)
    rig.server.gate.clear()
    rig.write(*"abcde", size=400)
    assert (rig.slow, rig.transport.buffered) == (1, 0)
    rig.server.gate.set()
    await rig.settle()
    assert rig.server.sent == ["a", "4006"]


async def test_close_comes_after_what_is_queued_and_nothing_after_it() -> None:
    rig = Rig()
    rig.server.gate.clear()
    rig.write("a", "b")
    rig.transport.close(4000, "bye")
    rig.transport.close(4001, "again")
    rig.write("late")
    rig.server.gate.set()
    await rig.settle()
    assert rig.server.sent == ["a", "b", "4000"]
    assert rig.closing == 1


async def test_close_while_a_send_hangs_gives_up_after_the_send_timeout() -> None:
    rig = Rig(send_timeout=0.02)
    rig.server.gate.clear()
    rig.write("a")
    rig.transport.close(4000, "bye")
    async with asyncio.timeout(5):
        await rig.transport.flush()
    assert rig.server.sent == []
    rig.transport.abort()
    await rig.settle()


async def test_a_close_reason_is_cut_to_what_a_close_frame_holds() -> None:
    events: list[Event] = []

    async def send(event: Event) -> None:
        events.append(event)

    rig = Rig(send)
    rig.transport.close(4000, "é" * 100)
    await rig.settle()
    assert events == [{"type": "websocket.close", "code": 4000, "reason": "é" * 61}]


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_abort_ends_everything_and_wakes_whoever_waits(turns: int) -> None:
    rig = Rig()
    rig.server.gate.clear()
    rig.write("a", "b")
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting = asyncio.ensure_future(rig.transport.drain())
    await asyncio.sleep(0)
    rig.transport.abort()
    async with asyncio.timeout(2):
        await waiting
        await rig.transport.drain()
    rig.write("c")
    rig.transport.close(1000, "")
    await rig.settle()
    assert (rig.server.sent, rig.transport.buffered, rig.slow) == ([], 0, 0)


async def test_abort_before_the_writer_took_its_first_step_wakes_whoever_drains_later() -> None:
    rig = Rig()
    rig.server.gate.clear()
    rig.write("a")
    rig.transport.abort()
    async with asyncio.timeout(2):
        await rig.transport.drain()
    await rig.settle()


async def test_messagepack_goes_out_as_bytes() -> None:
    events: list[Event] = []

    async def send(event: Event) -> None:
        events.append(event)

    transport = ASGITransport(send, Format.MSGPACK, Backpressure(), Tasks(), Counters(), account())
    transport.write(message("a"))
    assert events == [{"type": "websocket.send", "bytes": message("a").data(Format.MSGPACK)}]
    assert not transport.can_ping
    with pytest.raises(RuntimeError, match="can_ping"):
        transport.ping()


async def test_beyond_the_nodes_limit_the_one_for_whom_most_waits_is_closed_as_slow() -> None:
    waiting = account(4096)
    large, small = Rig(waiting=waiting), Rig(waiting=waiting)
    for rig in (large, small):
        rig.server.gate.clear()
        rig.write("a")
    large.write("b", "c", size=1000)
    small.write("d", size=600)
    assert (large.slow, small.slow) == (1, 0)
    assert 0 < waiting.size == small.transport.buffered
    for rig in (large, small):
        rig.server.gate.set()
        await rig.settle()
    assert (large.server.sent, small.server.sent) == (["a", "4006"], ["a", "d"])
    assert waiting.size == 0
