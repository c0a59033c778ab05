"""What a resume promises where something happens in the midst of it: nothing twice, nothing skipped in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from socketspec import History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryHistory
from socketspec.backend.protocols import Deliver, Lost
from socketspec.protocol.publications import Position, Publication, Topic
from socketspec.testing import TestClient, TestConnection

V1 = ["socketspec.v1.json"]
KEPT = History(size=100, ttl=60)


class Watched(MemoryHistory):
    """The history of `source`; a test may do something between looking and answering, and change the answer."""

    def __init__(self, source: MemoryHistory) -> None:
        self._source = source
        self.meanwhile: dict[str, Callable[[], Awaitable[None]]] = {}
        """What to do while this room is read."""
        self.change: Callable[[list[Publication]], Sequence[Publication]] = list

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        found = await self._source.read(topic, since=since, limit=limit)
        if topic.name in self.meanwhile:
            await self.meanwhile[topic.name]()
        return self.change(list(found))


class Backend(MemoryBackend):
    """The memory backend with a clock that a test moves, and the way by which it delivers."""

    deliver: Deliver

    def __init__(self) -> None:
        self.time = 1000.0
        super().__init__(clock=lambda: self.time)
        self.watched = Watched(self.history)
        self.history = self.watched

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        await super().start(namespace, deliver, lost)
        self.deliver = deliver


def app(backend: Backend) -> SocketApp:
    return SocketApp(backend=backend, rooms=[Room("kept:{id}", history=KEPT), Room("plain")])


async def publish(socket: SocketApp, *numbers: int, room: str = "kept:1") -> list[Position]:
    receipts = [await socket.rooms.broadcast(room, "n", {"n": number}) for number in numbers]
    return [receipt.position for receipt in receipts if receipt.position is not None]


async def ask(conn: TestConnection, rooms: dict[str, Position | None]) -> dict[str, Any]:
    brought = {room: None if at is None else at._asdict() for room, at in rooms.items()}
    await conn.send("__resume__", {"rooms": brought}, id="r")
    results: dict[str, Any] = (await conn.receive_event("__resume__"))["payload"]["rooms"]
    return results


async def until_end(socket: SocketApp, conn: TestConnection) -> list[tuple[str, int]]:
    """Everything that comes before an end that is broadcast now: in which room, and its number."""
    await conn.connection.emit("end")
    got: list[tuple[str, int]] = []
    while (message := await conn.receive())["event"] != "end":
        got.append((message["room"], message["payload"]["n"]))
    return got


async def test_a_room_that_overflows_while_a_later_one_is_read_is_not_recovered() -> None:
    backend = Backend()
    socket = app(backend)

    async def flood() -> None:
        for start in range(0, 10_001, 1000):
            at = [Position(start + number + 10, "e", "t") for number in range(min(1000, 10_001 - start))]
            backend.deliver(Topic("/", "room", "kept:1"), [Publication("n", b'{"n":0}', position=p) for p in at])
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    backend.watched.meanwhile["kept:2"] = flood
    async with TestClient(socket) as client:
        one = await publish(socket, 1, 2)
        two = await publish(socket, 3, 4, room="kept:2")
        conn = await client.connect(subprotocols=V1)
        results = await ask(conn, {"kept:1": one[0], "kept:2": two[0]})
        assert results == {
            "kept:1": {"recovered": False, "reason": "history_lost"},
            "kept:2": {"recovered": True, "replayed": 1},
        }
        got = await until_end(socket, conn)
        assert ("kept:1", 2) not in got, "what was missed is not replayed in front of a gap"
        assert ("kept:2", 4) in got


@pytest.mark.parametrize("when", ["while the history is read", "while a later room is read", "afterwards"])
async def test_a_new_life_of_the_stream_is_not_taken_for_what_was_seen(when: str) -> None:
    backend = Backend()
    socket = app(backend)

    async def begin_anew() -> None:
        backend.time += KEPT.ttl + 1
        await publish(socket, 91, 92)  # their offsets are those of the first two

    if when == "while the history is read":
        backend.watched.meanwhile["kept:1"] = begin_anew
    elif when == "while a later room is read":
        backend.watched.meanwhile["kept:2"] = begin_anew
    async with TestClient(socket) as client:
        one = await publish(socket, 1, 2, 3)
        two = await publish(socket, 4, room="kept:2")
        conn = await client.connect(subprotocols=V1)
        results = await ask(conn, {"kept:1": one[0], "kept:2": two[0]})
        assert results["kept:1"] == {"recovered": True, "replayed": 2}
        if when == "afterwards":
            await begin_anew()
        assert [number for _, number in await until_end(socket, conn)] == [2, 3, 91, 92]


async def test_what_was_replayed_does_not_come_again() -> None:
    backend = Backend()
    socket = app(backend)
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2, 3)
        conn = await client.connect(subprotocols=V1)
        assert await ask(conn, {"kept:1": at[0]}) == {"kept:1": {"recovered": True, "replayed": 2}}
        topic = Topic("/", "room", "kept:1")
        for number, position in enumerate(at, 1):  # a node that is behind may still bring them
            backend.deliver(topic, [Publication("n", b'{"n":%d}' % number, position=position)])
            await asyncio.sleep(0)
        await publish(socket, 4)
        assert [number for _, number in await until_end(socket, conn)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("hole", "change"),
    [
        ("at the beginning", lambda found: found[1:]),
        ("in the middle", lambda found: [found[0], *found[2:]]),
        ("out of order", lambda found: found[::-1]),
        ("one twice", lambda found: [found[0], *found]),
        ("one without a position", lambda found: [found[0]._replace(position=None), *found[1:]]),
        ("the last without a position", lambda found: [*found[:-1], found[-1]._replace(position=None)]),
    ],
)
async def test_a_history_with_a_hole_is_not_taken_for_the_whole_story(
    hole: str, change: Callable[[list[Publication]], list[Publication]]
) -> None:
    backend = Backend()
    backend.watched.change = change
    socket = app(backend)
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2, 3, 4)
        conn = await client.connect(subprotocols=V1)
        results = await ask(conn, {"kept:1": at[0]})
        assert results == {"kept:1": {"recovered": False, "reason": "history_lost"}}, hole
        await publish(socket, 5)
        assert await until_end(socket, conn) == [("kept:1", 5)]


async def test_a_gap_in_a_running_stream_is_passed_on_with_the_offsets_that_show_it() -> None:
    backend = Backend()
    socket = app(backend)
    topic = Topic("/", "room", "kept:1")
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        await ask(conn, {"kept:1": at[0]})
        lost_one = [at[1]._replace(offset=offset) for offset in (3, 5, 6)]
        backend.deliver(topic, [Publication("n", b"{}", position=position) for position in lost_one])
        offsets = [(await conn.receive())["offset"] for _ in range(4)]
        assert offsets == [2, 3, 5, 6]
