"""What a resume promises where something happens in the midst of it: nothing twice, nothing skipped in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from socketspec import Connection, History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryHistory
from socketspec.backend.protocols import Deliver, Lost
from socketspec.errors import BackendError
from socketspec.protocol.publications import Position, Publication, Topic
from socketspec.testing import TestClient, TestConnection
from tests.engines import running

V1 = ["socketspec.v1.json"]
KEPT = History(size=100, ttl=60)
RECOVERED = {"recovered": True, "replayed": 1}


class Watched(MemoryHistory):
    """The history of `source`; a test may do something between looking and answering, and change the answer."""

    def __init__(self, source: MemoryHistory) -> None:
        self._source = source
        self.meanwhile: dict[str, Callable[[], Awaitable[None]]] = {}
        """What to do while this room is read."""
        self.change: Callable[[list[Publication]], Sequence[Publication]] = list
        self.asked: list[Position | None] = []

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        self.asked.append(since)
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


def app(backend: Backend, *, kept: History = KEPT) -> SocketApp:
    rooms = [Room("kept:{id}", history=kept, client_join=True), Room("plain", client_join=True)]
    return SocketApp(backend=backend, rooms=rooms)


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


async def flood(backend: Backend, room: str, count: int) -> None:
    """Deliver messages as fast as they are written."""
    for start in range(0, count, 1000):
        at = [Position(number + 10, "e", "t") for number in range(start, min(start + 1000, count))]
        backend.deliver(Topic("/", "room", room), [Publication("n", b'{"n":0}', position=position) for position in at])
        await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.parametrize("read", ["kept:1", "kept:2"])
async def test_a_room_that_overflows_while_it_or_a_later_one_is_read_goes_on_from_its_history(read: str) -> None:
    backend = Backend()
    socket = app(backend, kept=History(size=20_000, ttl=60))

    async def flood_once() -> None:
        del backend.watched.meanwhile[read]
        await publish(socket, *range(3, 10_004))

    backend.watched.meanwhile[read] = flood_once
    async with TestClient(socket) as client:
        one = await publish(socket, 1, 2)
        two = await publish(socket, 1, 2, room="kept:2")
        conn = await client.connect(subprotocols=V1)
        results = await ask(conn, {"kept:1": one[0], "kept:2": two[0]})
        assert results == dict.fromkeys(["kept:1", "kept:2"], RECOVERED)
        await conn.send("__resume__", id="after the replay")
        got: list[tuple[str, int]] = []
        while (message := await conn.receive())["event"] != "__resume__":
            got.append((message["room"], message["payload"]["n"]))
        assert [number for room, number in got if room == "kept:1"] == list(range(2, 10_004))
        assert [number for room, number in got if room == "kept:2"] == [2]


async def test_ten_thousand_messages_are_held_while_a_history_is_read() -> None:
    backend = Backend()
    socket = app(backend)
    backend.watched.meanwhile["kept:1"] = lambda: flood(backend, "kept:1", 10_000)
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        assert await ask(conn, {"kept:1": at[0]}) == {"kept:1": {"recovered": True, "replayed": 1}}
        assert await until_end(socket, conn) == [("kept:1", 2), *[("kept:1", 0)] * 10_000]


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


def of_another_life(item: Publication) -> Publication:
    assert item.position is not None
    return item._replace(position=item.position._replace(epoch="another"))


@pytest.mark.parametrize(
    "newest",
    [
        lambda found: [],
        lambda found: [of_another_life(found[0])],
        lambda found: [found[0]._replace(position=None)],
    ],
    ids=["gone", "of another life", "without a position"],
)
async def test_a_stream_that_begins_anew_while_much_of_it_is_read_is_not_the_one_that_was_missed(
    newest: Callable[[list[Publication]], list[Publication]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socketspec.inbound.catching_up.PAGE", 2)
    backend = Backend()
    socket = app(backend)

    def change(found: list[Publication]) -> Sequence[Publication]:
        return found if backend.watched.asked[-1] is not None else newest(found)

    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2, 3, 4)
        conn = await client.connect(subprotocols=V1)
        backend.watched.change = change
        assert await ask(conn, {"kept:1": at[0]}) == {"kept:1": {"recovered": False, "reason": "history_lost"}}
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


async def test_after_something_newer_everything_comes_as_it_is() -> None:
    backend = Backend()
    socket = app(backend)
    topic = Topic("/", "room", "kept:1")
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        await ask(conn, {"kept:1": at[0]})
        # After a failover that lost the newest entries, offsets are given a second time.
        for offset, tag in ((3, "lost"), (2, "again"), (3, "again")):
            position = Position(offset, at[0].epoch, tag)
            backend.deliver(topic, [Publication("n", b"{}", position=position)])
            await asyncio.sleep(0)
        tags = [(await conn.receive())["tag"] for _ in range(4)]
        assert tags == [at[1].tag, "lost", "again", "again"]


async def test_a_message_without_a_position_is_never_taken_for_seen() -> None:
    # A node that is not updated yet may publish without keeping.
    backend = Backend()
    socket = app(backend)
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        await ask(conn, {"kept:1": at[0]})
        backend.deliver(Topic("/", "room", "kept:1"), [Publication("unkept", b"{}")])
        assert [(await conn.receive())["event"] for _ in range(2)] == ["n", "unkept"]


async def test_a_room_that_is_left_at_once_by_its_join_hook_is_not_recovered() -> None:
    backend = Backend()
    socket = app(backend)

    @socket.on_room_join
    async def turn_away(conn: Connection, room: str) -> None:
        await socket.rooms.leave(conn, room)

    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        assert await ask(conn, {"kept:1": at[0]}) == {"kept:1": {"recovered": False, "reason": "no_position"}}
        await publish(socket, 3)
        assert await until_end(socket, conn) == []
        assert conn.connection.rooms == frozenset()


async def test_the_reason_of_a_refusal_comes_with_words() -> None:
    backend = Backend()
    socket = app(backend)
    async with TestClient(socket) as client:
        conn = await client.connect(subprotocols=V1)
        results = await ask(conn, {"nowhere": None, "kept:1": Position(1, "e", "t")})
        assert results["nowhere"]["message"] == "There is no room 'nowhere'."
        assert "new history" in results["kept:1"]["message"]


@pytest.mark.parametrize("error", [BackendError("redis is gone"), OSError("a bug")])
@pytest.mark.parametrize("where", ["joining", "reading"])
async def test_a_room_that_fails_is_not_recovered_and_the_others_are(
    error: Exception, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend()
    socket = app(backend)

    async def fail() -> None:
        raise error

    @socket.room_guard("kept:bad")
    async def guard(conn: Connection) -> bool:
        if where == "joining":
            await fail()
        return True

    if where == "reading":
        backend.watched.meanwhile["kept:bad"] = fail
    async with TestClient(socket) as client:
        bad = await publish(socket, 1, room="kept:bad")
        good = await publish(socket, 2, 3)
        conn = await client.connect(subprotocols=V1)
        results = await ask(conn, {"kept:bad": bad[0], "kept:1": good[0]})
        assert results == {
            "kept:bad": {"recovered": False, "reason": "failed"},
            "kept:1": {"recovered": True, "replayed": 1},
        }
        assert await until_end(socket, conn) == [("kept:1", 3)]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "'kept:bad'" in record.getMessage()
    assert conn.id in record.getMessage()
    # Nothing is wrong with the code when the backend is away: no traceback.
    assert (record.exc_info is None) is isinstance(error, BackendError)


async def test_what_became_of_each_room_is_counted() -> None:
    backend = Backend()
    socket = app(backend)
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        await ask(conn, {"kept:1": at[0], "kept:2": None, "kept:3": at[0], "nowhere": None})
        await ask(conn, {"kept:1": at[1]})
        engine = await running(socket)
        assert engine.counters.recoveries == {
            "recovered": 1,
            "no_position": 1,
            "history_lost": 1,
            "ROOM_NOT_FOUND": 1,
            "already_joined": 1,
        }


async def test_a_malformed_resume_is_answered_once_and_joins_nothing() -> None:
    socket = app(Backend())
    async with TestClient(socket) as client:
        conn = await client.connect(subprotocols=V1)
        await conn.receive_event("__connect__")
        await conn.send("__resume__", {"rooms": {"kept:1": None, "kept:2": 5}}, id=1)
        answer = await conn.receive()
        assert (answer["event"], answer["payload"]["code"], answer["id"]) == ("__error__", "VALIDATION_ERROR", 1)
        assert "'kept:2'" in answer["payload"]["message"]
        assert await until_end(socket, conn) == []
        assert conn.connection.rooms == frozenset()


@pytest.mark.parametrize(
    "position",
    [
        {"offset": 1.0, "epoch": "e"},
        {"offset": "1", "epoch": "e"},
        {"offset": -1, "epoch": "e"},
        {"offset": 2**63, "epoch": "e"},
        {"offset": 1},
        {"offset": 1, "epoch": 5},
        {"offset": 1, "epoch": None},
        {"offset": 1, "epoch": "e", "tag": 5},
        {"offset": 1, "epoch": "e", "tag": None},
        {"epoch": "e"},
        "e",
        [1, "e"],
    ],
)
async def test_what_cannot_be_a_position_is_refused(position: Any) -> None:
    async with TestClient(app(Backend())) as client:
        conn = await client.connect()
        await conn.send("__resume__", {"rooms": {"kept:1": position}}, id=1)
        assert (await conn.receive())["payload"]["code"] == "VALIDATION_ERROR"


@pytest.mark.parametrize("offset", [0, 2**63 - 1])
async def test_a_position_at_the_bounds_is_looked_up_as_it_is(offset: int) -> None:
    backend = Backend()
    socket = app(backend)
    async with TestClient(socket) as client:
        conn = await client.connect(subprotocols=V1)
        await conn.send("__resume__", {"rooms": {"kept:1": {"offset": offset, "epoch": "e"}}})
        results = (await conn.receive_event("__resume__"))["payload"]["rooms"]
        assert results["kept:1"]["reason"] == "history_lost"
        assert backend.watched.asked == [Position(offset, "e", "")]


async def test_as_many_rooms_are_resumed_at_once_as_a_connection_may_be_in() -> None:
    socket = SocketApp(max_rooms_per_connection=3, rooms=[Room("{number}", client_join=True)])
    async with TestClient(socket) as client:
        conn = await client.connect(subprotocols=V1)
        await conn.send("__resume__", {"rooms": {str(number): None for number in range(4)}}, id=1)
        error = (await conn.receive_event("__error__"))["payload"]
        assert error["code"] == "VALIDATION_ERROR"
        assert "at most 3 rooms" in error["message"]
        assert conn.connection.rooms == frozenset()
        await ask(conn, {str(number): None for number in range(3)})
        assert conn.connection.rooms == {"0", "1", "2"}


async def test_a_resume_that_is_refused_has_the_number_of_its_request() -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        numbers: list[int] = []
        for _ in range(3):
            await conn.send("__resume__", {"rooms": "all"}, id=1)
            request: str = (await conn.receive_event("__error__"))["payload"]["request_id"]
            numbers.append(int(request.rpartition("-")[2], 16))
        assert numbers == list(range(numbers[0], numbers[0] + 3))
