"""A room's name alone lets no client in: what is a right to a room, and what is none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketspec import Connection, History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryHistory
from socketspec.errors import ConfigurationError, PermissionDenied
from socketspec.protocol.publications import Position, Publication, Topic
from socketspec.testing import TestClient, TestConnection
from tests.engines import running

V1 = ["socketspec.v1.json"]
KEPT = History(size=3, ttl=60)


class Guarded(SocketApp):
    """Remembers what its guard was asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[str] = []


def app(backend: MemoryBackend | None = None, **options: Any) -> Guarded:
    rooms = [
        Room("inbox:{user}"),
        Room("kept:{id}", history=KEPT),
        Room("open:{id}", history=KEPT, client_join=True),
        Room("guarded:{verdict}", history=KEPT),
        Room("both:{verdict}", history=KEPT, client_join=True),
    ]
    made = Guarded(backend=backend or MemoryBackend(), rooms=rooms, **options)

    @made.room_guard("guarded:{verdict}")
    @made.room_guard("both:{verdict}")
    async def guard(conn: Connection, verdict: str) -> bool:
        made.asked.append(verdict)
        if verdict == "broken":
            raise LookupError("the database is away")
        if verdict == "words":
            raise PermissionDenied("Not today.")
        return verdict == "yes"

    return made


async def publish(socket: SocketApp, room: str, count: int) -> list[Position]:
    receipts = [await socket.rooms.broadcast(room, "n", {"n": number}) for number in range(1, count + 1)]
    return [receipt.position for receipt in receipts if receipt.position is not None]


async def resume(conn: TestConnection, rooms: dict[str, Position | None]) -> dict[str, Any]:
    brought = {room: None if at is None else at._asdict() for room, at in rooms.items()}
    await conn.send("__resume__", {"rooms": brought}, id="r")
    results: dict[str, Any] = (await conn.receive_event("__resume__"))["payload"]["rooms"]
    return results


@pytest.mark.parametrize("subprotocols", [[], V1, ["socketspec.v1.msgpack"]])
async def test_a_room_that_only_the_app_joins_is_closed_to_clients_that_name_it(subprotocols: list[str]) -> None:
    socket = app()

    @socket.on_connect
    async def welcome(conn: Connection) -> None:
        await socket.rooms.join(conn, f"inbox:{conn.query_params['name']}")

    async with TestClient(socket) as client:
        alice, mallory = [
            await client.connect(query_params={"name": name}, subprotocols=subprotocols)
            for name in ("alice", "mallory")
        ]
        results = await resume(mallory, {"inbox:alice": None})
        assert results == {
            "inbox:alice": {
                "recovered": False,
                "reason": "PERMISSION_ERROR",
                "message": "You may not join 'inbox:alice' by its name alone.",
            }
        }
        await socket.rooms.broadcast("inbox:alice", "private")
        assert (await alice.receive_event("private"))["event"] == "private"
        await mallory.connection.emit("marker")
        assert (await mallory.receive())["event"] == "marker"
        assert await socket.rooms.count("inbox:alice") == 1


async def test_an_app_that_declares_no_rooms_has_none_that_are_open() -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        assert (await resume(conn, {"anything": None}))["anything"]["reason"] == "PERMISSION_ERROR"
        assert conn.connection.rooms == frozenset()


WRONG: dict[str, dict[str, Any]] = {
    "another epoch": {"epoch": "0123456789abcdef"},
    "no epoch": {"epoch": ""},
    "another tag": {"tag": "01234567"},
    "no tag": {"tag": ""},
    "another offset": {"offset": 1},
    "a later offset": {"offset": 99},
    "the beginning of another epoch": {"offset": 0, "epoch": "0123456789abcdef"},
    "the beginning": {"offset": 0},
    "the beginning without a tag": {"offset": 0, "tag": ""},
    "before the beginning": {"offset": 0, "tag": "00000000"},
    "the beginning of no epoch": {"offset": 0, "epoch": "", "tag": ""},
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_position_that_does_not_verify_is_no_right(what: str) -> None:
    socket = app()
    came: list[str] = []

    @socket.on_room_join
    async def note(conn: Connection, room: str) -> None:
        came.append(room)

    async with TestClient(socket) as client:
        at = await publish(socket, "kept:1", 2)
        conn = await client.connect(subprotocols=V1)
        engine = await running(socket)
        subscribed = len(engine.hub.topics)
        results = await resume(conn, {"kept:1": at[1]._replace(**WRONG[what])})
        assert (results["kept:1"]["recovered"], results["kept:1"]["reason"]) == (False, "PERMISSION_ERROR")
        assert (conn.connection.rooms, came, len(engine.hub.topics)) == (frozenset(), [], subscribed)
        assert await socket.rooms.count("kept:1") == 0


async def test_a_position_of_another_room_or_namespace_is_no_right() -> None:
    backend = MemoryBackend()
    here, there = app(backend), app(backend, namespace="/there")
    async with TestClient(here) as client, TestClient(there):
        other = (await publish(here, "kept:2", 2))[-1]
        elsewhere = (await publish(there, "kept:1", 2))[-1]
        await publish(here, "kept:1", 2)
        conn = await client.connect(subprotocols=V1)
        for position in (other, elsewhere):
            assert (await resume(conn, {"kept:1": position}))["kept:1"]["reason"] == "PERMISSION_ERROR"
            assert (await resume(conn, {"inbox:alice": position}))["inbox:alice"]["reason"] == "PERMISSION_ERROR"


@given(
    published=st.integers(0, 6),
    offset=st.integers(0, 7),
    epoch=st.sampled_from(["right", "other", ""]),
    tag=st.sampled_from(["right", "other", ""]),
)
@settings(max_examples=60)
def test_a_client_is_let_in_where_its_position_is_one_that_was_published_and_is_kept(
    published: int, offset: int, epoch: str, tag: str
) -> None:
    async def run() -> None:
        socket = app()
        async with TestClient(socket) as client:
            at = await publish(socket, "kept:1", published)
            real = {position.offset: position for position in at}
            brought = Position(
                offset,
                at[0].epoch if epoch == "right" and at else epoch,
                real[offset].tag if tag == "right" and offset in real else tag,
            )
            kept = at[-KEPT.size - 1 :]  # one more than the size is kept to verify with; the beginning is no message
            conn = await client.connect(subprotocols=V1)
            row = (await resume(conn, {"kept:1": brought}))["kept:1"]
            if brought in kept:
                assert row == {"recovered": True, "replayed": published - offset}
            else:
                assert row["reason"] == "PERMISSION_ERROR"
            assert conn.connection.rooms == ({"kept:1"} if brought in kept else frozenset())

    asyncio.run(run())


@pytest.mark.parametrize("room", ["guarded", "both"])
@pytest.mark.parametrize(
    ("verdict", "reason"),
    [("no", "PERMISSION_ERROR"), ("words", "PERMISSION_ERROR"), ("broken", "failed"), ("yes", None)],
)
async def test_where_there_is_a_guard_it_alone_decides(room: str, verdict: str, reason: str | None) -> None:
    socket = app()
    name = f"{room}:{verdict}"
    async with TestClient(socket) as client:
        at = await publish(socket, name, 2)
        for position, otherwise in ((at[0], None), (None, "no_position"), (at[0]._replace(tag="x"), "history_lost")):
            conn = await client.connect(subprotocols=V1)
            row = (await resume(conn, {name: position}))[name]
            assert row.get("reason") == (reason or otherwise)
            assert conn.connection.rooms == ({name} if reason is None else frozenset())
            assert socket.asked.count(verdict) == 1, "a guard is asked once"
            socket.asked.clear()


async def test_all_guards_of_a_room_have_to_allow_it() -> None:
    socket = app()

    @socket.room_guard("guarded:yes")
    async def closed_today(conn: Connection) -> bool:
        return False

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await resume(conn, {"guarded:yes": None}))["guarded:yes"]["reason"] == "PERMISSION_ERROR"


async def test_a_room_that_is_open_to_clients_can_be_joined_by_its_name() -> None:
    socket = app()
    async with TestClient(socket) as client:
        conn = await client.connect()
        assert await resume(conn, {"open:1": None}) == {"open:1": {"recovered": False, "reason": "no_position"}}
        assert conn.connection.rooms == {"open:1"}


def test_who_may_join_by_themselves_is_declared_and_in_the_schema() -> None:
    declared = {room["name"]: room["client_join"] for room in app().schema()["rooms"]}
    assert declared["open:{id}"] is True
    assert declared["kept:{id}"] is False
    wrong: Any = "yes"
    with pytest.raises(ConfigurationError, match=r"client_join='yes'\) must be True or False"):
        Room("x", client_join=wrong)


class Ordered(MemoryHistory):
    """Remembers what was read, and how many were in the room then."""

    def __init__(self, backend: MemoryBackend, source: MemoryHistory) -> None:
        self._backend = backend
        self._source = source
        self.members: list[int] = []

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        self.members.append(await self._backend.presence.count(topic))
        return await self._source.read(topic, since=since, limit=limit)


async def test_a_position_is_verified_before_the_room_is_joined_and_read_again_after_it() -> None:
    backend = MemoryBackend()
    backend.history = history = Ordered(backend, backend.history)
    socket = app(backend)
    async with TestClient(socket) as client:
        at = await publish(socket, "kept:1", 2)
        conn = await client.connect(subprotocols=V1)
        assert (await resume(conn, {"kept:1": at[0]}))["kept:1"] == {"recovered": True, "replayed": 1}
        assert history.members == [0, 1]
        await resume(conn, {"open:1": at[0], "guarded:yes": at[0]})
        assert history.members == [0, 1, 1, 1], "where it is not needed as a right, it is read once"


async def test_a_room_that_code_of_the_app_is_joining_is_joined_once_and_nothing_comes_twice() -> None:
    socket = app()
    entered, go = asyncio.Event(), asyncio.Event()

    async with TestClient(socket) as client:
        at = await publish(socket, "guarded:yes", 2)
        conn = await client.connect(subprotocols=V1)
        await conn.receive_event("__connect__")
        engine = await running(socket)
        enter = engine.backend.presence.enter

        async def slowly(topic: Topic, member: Any, *, limit: int | None = None) -> bool:
            entered.set()
            await go.wait()
            return await enter(topic, member, limit=limit)

        engine.backend.presence.enter = slowly  # type: ignore[method-assign] # the backend is this test's own
        joining = asyncio.create_task(socket.rooms.join(conn.connection, "guarded:yes"))
        await entered.wait()
        resuming = asyncio.create_task(resume(conn, {"guarded:yes": at[0]}))
        await asyncio.sleep(0)
        go.set()
        await joining
        assert (await resuming)["guarded:yes"] == {"recovered": False, "reason": "already_joined"}
        await publish(socket, "guarded:yes", 1)
        assert (await conn.receive())["offset"] == 3
