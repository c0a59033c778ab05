"""Replays wait for the socket: everything comes, once and in order, to clients of whatever speed, in bounded memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketspec import Connection, History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryHistory
from socketspec.connection import Backpressure
from socketspec.connection.outbox import Outbox, Overflow
from socketspec.errors import BackendError
from socketspec.inbound import catching_up
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.publications import Position, Publication, Topic
from socketspec.protocol.spans import history_lost
from socketspec.testing import TestClient
from tests.carriers import account
from tests.engines import Engine, running

BUFFER = Backpressure(max_buffer=16_384)


class SlowTransport:
    """A client that takes what is sent when the test says so, behind the buffer that every transport has.

    While nothing waits, a message is written as it is; those after it wait in the outbox.
    """

    can_ping: bool = False

    def __init__(self) -> None:
        self._written: Message | None = None
        self._outbox = Outbox(BUFFER, Format.JSON, account(), self.abort)
        self._drained = asyncio.Event()
        self.most = 0
        """The most that has waited in the outbox."""
        self.got: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        self.on_slow: Callable[[], None] = self.abort

    @property
    def buffered(self) -> int:
        return self._outbox.size + (0 if self._written is None else len(self._written.data(Format.JSON)))

    def write(self, *messages: Message) -> None:
        for message in messages:
            if self.closed is not None:
                return
            if self._written is None:
                self._written = message
            elif self._outbox.push(message) is Overflow.FULL:
                self._outbox.clear()
                self.on_slow()
        self.most = max(self.most, self._outbox.size)

    def take(self) -> None:
        """The client reads what waits."""
        while self._written is not None:
            self.got.append(json.loads(self._written.data(Format.JSON)))
            self._written = self._outbox.pop() if self._outbox else None
        self._drained.set()

    async def drain(self) -> None:
        if self._written is not None and self.closed is None:
            self._drained.clear()
            await self._drained.wait()

    def ping(self) -> None:
        raise RuntimeError("this transport cannot ping")

    def close(self, code: int, reason: str) -> None:
        self.closed = self.closed or (code, reason)
        self._drained.set()

    def abort(self) -> None:
        self.close(1006, "aborted")


class Troubled(MemoryHistory):
    """The history of `source`; after so many pages it fails."""

    def __init__(self, source: MemoryHistory) -> None:
        self._source = source
        self.pages = 0
        self.fails_after = 10**9
        self.error: Exception = BackendError("redis is gone")

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        if limit != 0 and since is not None:
            self.pages += 1
            assert limit is None or limit <= catching_up.PAGE
            if self.pages > self.fails_after:
                self.fails_after = 10**9
                raise self.error
        return await self._source.read(topic, since=since, limit=limit)


def app(*, size: int = 10_000) -> tuple[SocketApp, Troubled]:
    backend = MemoryBackend()
    backend.history = history = Troubled(backend.history)
    rooms = [Room("kept:{id}", history=History(size=size)), Room("plain", client_join=True)]
    return SocketApp(backend=backend, rooms=rooms, backpressure=BUFFER), history


async def publish(socket: SocketApp, start: int, count: int, room: str = "kept:1", text: str = "") -> list[Position]:
    found: list[Position] = []
    for number in range(start, start + count):
        receipt = await socket.rooms.broadcast(room, "n", {"n": number, "text": text})
        if receipt.position is not None:
            found.append(receipt.position)
    return found


async def opened(engine: Engine) -> tuple[Connection, SlowTransport]:
    transport = SlowTransport()
    handshake = Handshake(subprotocols=("socketspec.v1.json",))
    conn = await engine.open(await engine.admit(handshake), handshake, transport)
    transport.take()
    transport.got.clear()
    return conn, transport


async def resume(engine: Engine, conn: Connection, **rooms: Position | None) -> asyncio.Task[None]:
    positions = {name: None if at is None else at._asdict() for name, at in rooms.items()}
    pending = engine.receive(conn, json.dumps({"event": "__resume__", "payload": {"rooms": positions}}), binary=False)
    assert pending is not None
    return asyncio.ensure_future(pending)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(transport: SlowTransport, count: int, *, within: float = 5.0) -> None:
    """Read until so many messages have come."""
    async with asyncio.timeout(within):
        while len(transport.got) < count:
            transport.take()
            await asyncio.sleep(0)


def numbers(transport: SlowTransport) -> list[int]:
    return [message["payload"]["n"] for message in transport.got if message["event"] == "n"]


@pytest.mark.parametrize("text", ["", "x" * 1000, "x" * 20_000])
async def test_a_replay_of_whatever_size_waits_for_the_client(text: str) -> None:
    socket, _ = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 0, 501, text=text)
        conn, transport = await opened(engine)
        resuming = await resume(engine, conn, **{"kept:1": at[0]})
        await turns(200)
        assert transport.most <= BUFFER.max_buffer
        assert len(numbers(transport)) < 500
        await until(transport, 501)
        assert transport.got[0]["payload"]["rooms"]["kept:1"] == {"recovered": True, "replayed": 500}
        assert numbers(transport) == list(range(1, 501))
        assert conn.is_open
        await resuming


@given(
    steps=st.lists(st.tuples(st.sampled_from(["publish", "take", "turn", "live"]), st.integers(1, 7)), max_size=40),
    missed=st.integers(0, 30),
    page=st.integers(1, 5),
    held=st.integers(0, 6),
)
@settings(max_examples=250, deadline=None)
def test_everything_comes_once_and_in_order_however_it_interleaves(
    steps: list[tuple[str, int]], missed: int, page: int, held: int
) -> None:
    """The client takes what is live in time, as a client has to; how much it has missed does not matter."""

    async def run() -> None:
        socket, _ = app()
        async with TestClient(socket):
            engine = await running(socket)
            at = await publish(socket, 0, missed + 1, text="x" * 400)
            conn, transport = await opened(engine)
            resuming = await resume(engine, conn, **{"kept:1": at[0], "plain": None})
            next_number, live = missed + 1, 0
            for what, count in steps:
                if what == "turn":
                    await turns(count)
                    continue
                if what == "take" or live == 3:
                    transport.take()
                    live = 0
                if what == "publish":
                    await publish(socket, next_number, 1, text="x" * 400)
                    next_number += 1
                    live += 1
                elif what == "live":
                    await publish(socket, 10_000, 1, room="plain")
                    live += 1
            expected = list(range(1, next_number))
            async with asyncio.timeout(5):
                while [number for number in numbers(transport) if number < 10_000] != expected:
                    transport.take()
                    await asyncio.sleep(0)
                await resuming
            transport.take()
            assert [number for number in numbers(transport) if number < 10_000] == expected
            answers = [message for message in transport.got if message["event"] == "__resume__"]
            assert answers[0]["payload"]["rooms"]["kept:1"]["recovered"] is True
            assert all(list(answer["payload"]["rooms"]) == ["plain"] for answer in answers[1:])

    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(catching_up, "PAGE", page)
        patch.setattr(catching_up, "MAX_HELD", held)
        asyncio.run(run())


def test_what_is_taken_out_is_held_no_longer() -> None:
    keep = catching_up.Keep()
    held = catching_up.Held(keep)
    held(Message("n", b"12345"), Message("n", b"678"))
    assert (keep.messages, keep.bytes) == (2, 8)
    assert [message.payload for message in held.take()] == [b"12345", b"678"]
    assert (keep.messages, keep.bytes) == (0, 0)


@pytest.mark.parametrize(("count", "has_more"), [(0, False), (0, True), (1, False), (1, True)])
def test_a_lag_is_long_where_anything_has_to_be_replayed(count: int, has_more: bool) -> None:
    held = catching_up.Held(catching_up.Keep())
    page = [Publication("n", b"{}")] * count
    lag = catching_up.Lag("kept:1", Topic("/", "room", "kept:1"), held, page=page, has_more=has_more)
    assert lag.is_long is (count > 0 or has_more)


async def test_live_messages_that_are_held_meanwhile_are_bounded_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[catching_up.Keep] = []
    most = 0

    class Watched(catching_up.Keep):
        def __init__(self) -> None:
            super().__init__()
            kept.append(self)

    monkeypatch.setattr("socketspec.inbound.resume.Keep", Watched)
    monkeypatch.setattr(catching_up, "MAX_HELD_BYTES", 1_000_000)
    socket, history = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 0, 300, text="x" * 1000)
        conn, transport = await opened(engine)
        resuming = await resume(engine, conn, **{"kept:1": at[0]})
        await turns()
        for start in range(300, 3300, 100):  # 100 kB at a time of live messages, which the client does not take
            await publish(socket, start, 100, text="x" * 1000)
            await turns(2)
            assert kept[0].bytes <= catching_up.MAX_HELD_BYTES + 200_000
            most = max(most, kept[0].bytes)
        assert most > catching_up.MAX_HELD_BYTES // 2
        await until(transport, 3300)
        assert numbers(transport) == list(range(1, 3300))
        assert history.pages > 10
        await resuming


async def test_what_was_held_and_sent_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catching_up, "MAX_HELD", 20)
    socket, _ = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 0, 20, text="x" * 1000)
        conn, transport = await opened(engine)
        resuming = await resume(engine, conn, **{"kept:1": at[0]})
        await turns()
        await publish(socket, 20, 15, text="x" * 1000)
        await turns()
        while max(numbers(transport), default=0) < 20:  # until what was held is on its way
            transport.take()
            await turns()
        await publish(socket, 35, 30, text="x" * 1000)  # too many to be held while the client takes nothing
        await turns()
        await until(transport, 1 + 64)
        await resuming
        await turns()
        transport.take()
        assert numbers(transport) == list(range(1, 65))


@pytest.mark.parametrize("error", [BackendError("redis is gone"), LookupError("trimmed")])
async def test_what_is_lost_in_the_midst_of_a_replay_is_told_before_anything_newer(error: Exception) -> None:
    socket, history = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 0, 301)
        history.fails_after, history.error = 2, error
        conn, transport = await opened(engine)
        resuming = await resume(engine, conn, **{"kept:1": at[0]})
        await turns()
        await publish(socket, 301, 3)
        await until(transport, 1 + 200 + 1 + 3)
        await resuming
        told = [message for message in transport.got if message["event"] == "__resume__"]
        assert told[0]["payload"]["rooms"]["kept:1"] == {"recovered": True, "replayed": 300}
        lost = told[1]["payload"]["rooms"]["kept:1"]
        assert lost["recovered"] is False
        assert lost["reason"] == ("failed" if isinstance(error, BackendError) else "history_lost")
        assert numbers(transport) == [*range(1, 201), 301, 302, 303]
        assert transport.got.index(told[1]) == 201
        await publish(socket, 304, 1)
        await until(transport, 206)
        assert numbers(transport)[-1] == 304


async def test_a_history_that_is_trimmed_while_a_slow_client_reads_is_told() -> None:
    socket, _ = app(size=300)
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 0, 300)
        conn, transport = await opened(engine)
        await resume(engine, conn, **{"kept:1": at[0]})
        await turns()
        for start in range(300, 20_300, 1000):
            await publish(socket, start, 1000)
            await turns(2)
        async with asyncio.timeout(5):
            while [message["event"] for message in transport.got].count("__resume__") < 2:
                transport.take()
                await asyncio.sleep(0)
        await turns()
        await publish(socket, 20_300, 1)
        await until(transport, len(transport.got) + 1)
        events = [message["event"] for message in transport.got]
        told = [message for message in transport.got if message["event"] == "__resume__"]
        assert [message["payload"]["rooms"]["kept:1"]["recovered"] for message in told] == [True, False]
        before = events.index("__resume__", 1) - 1
        assert numbers(transport)[:before] == list(range(1, before + 1)), "nothing is missing before it is told"
        assert numbers(transport)[before:] == [20_300]


async def test_who_leaves_the_room_or_goes_gets_nothing_more() -> None:
    socket, history = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 0, 2000)
        for ends in ("leaves", "closes"):
            conn, transport = await opened(engine)
            resuming = await resume(engine, conn, **{"kept:1": at[0]})
            await turns()
            if ends == "leaves":
                await socket.rooms.leave(conn, "kept:1")
            else:
                engine.lost(conn, 1006)
                transport.abort()
            transport.take()
            pages, got = history.pages, len(numbers(transport))
            await turns(50)
            transport.take()
            await resuming
            assert len(numbers(transport)) <= got + 1
            assert history.pages == pages


async def test_a_client_that_takes_nothing_holds_up_its_own_messages_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socketspec.inbound.resume.PATIENCE", 0.01)
    socket, _ = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 0, 1000)
        conn, transport = await opened(engine)
        async with asyncio.timeout(5):
            await (await resume(engine, conn, **{"kept:1": at[0]}))
        assert len(numbers(transport)) < 999, "the replay goes on, and the client's next message is heard"
        assert engine.receive(conn, '{"event":"__ping__"}', binary=False) is None
        second = await resume(engine, conn, **{"kept:2": at[0]})
        await turns()
        assert not second.done(), "one replay at a time"
        await until(transport, 1002)
        await second
        assert [message["event"] for message in transport.got if message["event"] != "n"] == [
            "__resume__",
            "__pong__",
            "__resume__",
        ]
        assert numbers(transport) == list(range(1, 1000))


async def test_rooms_with_nothing_to_replay_do_not_wait_for_those_that_have() -> None:
    socket, _ = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 0, 1000)
        conn, transport = await opened(engine)
        await resume(engine, conn, **{"kept:1": at[0], "plain": None})
        await turns()
        await publish(socket, 5000, 1, room="plain")
        await until(transport, 200)
        assert numbers(transport).index(5000) < 100


async def test_many_long_gaps_are_not_all_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catching_up, "MAX_HELD_BYTES", 50_000)
    socket, history = app()
    async with TestClient(socket):
        engine = await running(socket)
        rooms = {
            f"kept:{number}": (await publish(socket, 0, 40, f"kept:{number}", "x" * 900))[0] for number in range(9)
        }
        conn, transport = await opened(engine)
        resuming = await resume(engine, conn, **rooms)
        await turns(50)
        assert history.pages == 2, "two pages are full, the others are read when their turn comes"
        await until(transport, 1 + 9 * 39)
        answer = transport.got[0]["payload"]["rooms"]
        assert answer == {room: {"recovered": True, "replayed": 39} for room in rooms}
        for room in rooms:
            assert [m["payload"]["n"] for m in transport.got[1:] if m["room"] == room] == list(range(1, 40))
        await resuming


# A history that forks


async def forks(engine: Engine, position: Position, room: str = "kept:1") -> None:
    """What a node delivers when a replica took over that kept the first three messages only."""
    topic = Topic("/", "room", room)
    engine.deliver(topic, (history_lost(room),))
    new = [
        Publication("n", b'{"n":%d}' % (100 + offset), position=Position(offset, position.epoch, f"new{offset}"))
        for offset in range(4, 8)
    ]
    engine.deliver(topic, new)
    await turns()


async def test_who_has_resumed_is_told_of_a_fork_and_gets_all_that_took_the_place_of_what_it_has() -> None:
    socket, _ = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 1, 6)
        conn, transport = await opened(engine)
        await (await resume(engine, conn, **{"kept:1": at[5]}))
        await forks(engine, at[5])
        transport.take()
        told = [message["payload"]["rooms"] for message in transport.got if message["event"] == "__resume__"]
        assert told[1:] == [{"kept:1": {"recovered": False, "reason": "history_lost"}}]
        assert [message["event"] for message in transport.got] == ["__resume__", "__resume__", *["n"] * 4]
        assert numbers(transport) == [104, 105, 106, 107]


async def test_what_is_held_while_a_client_resumes_may_be_of_another_line_of_history() -> None:
    socket, _ = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 1, 6, text="x" * 6000)
        conn, transport = await opened(engine)
        resuming = await resume(engine, conn, **{"kept:1": at[2]})
        await turns()
        await forks(engine, at[5])
        await until(transport, 9)
        await resuming
        assert numbers(transport) == [4, 5, 6, 104, 105, 106, 107]
        events = [message["event"] for message in transport.got]
        assert events == ["__resume__", "n", "n", "n", "__resume__", "n", "n", "n", "n"]


async def test_who_is_told_of_a_loss_that_was_none_gets_no_gap_in_what_comes_again() -> None:
    """A node took an older server for the successor; its next one has everything, and is read from there on."""
    socket, _ = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 1, 6)
        conn, transport = await opened(engine)
        await (await resume(engine, conn, **{"kept:1": at[4]}))
        topic = Topic("/", "room", "kept:1")
        engine.deliver(topic, (history_lost("kept:1"),))
        engine.deliver(topic, [Publication("n", b'{"n":%d}' % one.offset, position=one) for one in at[2:]])
        await turns()
        transport.take()
        assert [message["event"] for message in transport.got] == ["__resume__", "n", "__resume__", *["n"] * 4]
        assert numbers(transport) == [6, 3, 4, 5, 6]


async def test_a_plain_client_is_not_told() -> None:
    socket, _ = app()
    async with TestClient(socket):
        engine = await running(socket)
        at = await publish(socket, 1, 3)
        transport = SlowTransport()
        conn = await engine.open(await engine.admit(Handshake()), Handshake(), transport)
        await socket.rooms.join(conn, "kept:1")
        other, told = await opened(engine)
        await socket.rooms.join(other, "kept:1")
        await forks(engine, at[2])
        transport.take()
        told.take()
        assert [message["event"] for message in transport.got] == ["n"] * 4
        assert [message["event"] for message in told.got] == ["__resume__", *["n"] * 4]
