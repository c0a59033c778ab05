"""`__resume__`: exactly what was missed, in order, once; or the word that this cannot be known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketspec import Connection, History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryHistory
from socketspec.backend.protocols import Backend
from socketspec.protocol.publications import Position, Publication, Topic
from socketspec.testing import TestClient, TestConnection

V1 = ["socketspec.v1.json"]


def app(backend: Backend | str = "memory", *, size: int = 100) -> SocketApp:
    return SocketApp(backend=backend, rooms=[Room("kept:{id}", history=History(size=size)), Room("plain")])


async def publish(socket: SocketApp, *numbers: int, room: str = "kept:1") -> list[Position | None]:
    return [(await socket.rooms.broadcast(room, "n", {"n": number})).position for number in numbers]


def position(at: Position | None, **changes: Any) -> dict[str, Any]:
    assert at is not None
    return at._replace(**changes)._asdict()


async def resume(conn: TestConnection, rooms: dict[str, Any]) -> dict[str, Any]:
    await conn.send("__resume__", {"rooms": rooms}, id="r")
    answer = await conn.receive_event("__resume__")
    assert answer["id"] == "r"
    results: dict[str, Any] = answer["payload"]["rooms"]
    return results


async def received(conn: TestConnection, count: int) -> list[int]:
    return [(await conn.receive())["payload"]["n"] for _ in range(count)]


@pytest.mark.parametrize("subprotocol", ["socketspec.v1.json", "socketspec.v1.msgpack"])
async def test_what_was_missed_is_replayed_then_the_new_comes(subprotocol: str) -> None:
    socket = app()
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2, 3, 4)
        conn = await client.connect(subprotocols=[subprotocol])
        assert await resume(conn, {"kept:1": position(at[1])}) == {"kept:1": {"recovered": True, "replayed": 2}}
        await publish(socket, 5)
        assert await received(conn, 3) == [3, 4, 5]
        assert conn.connection.rooms == {"kept:1"}


async def test_replayed_messages_carry_the_position_to_resume_from_next() -> None:
    socket = app()
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        await resume(conn, {"kept:1": position(at[0])})
        message = await conn.receive()
        assert {"room": "kept:1", **position(at[1])}.items() <= message.items()


async def test_a_client_that_missed_nothing_gets_nothing_twice() -> None:
    socket = app()
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        assert await resume(conn, {"kept:1": position(at[-1])}) == {"kept:1": {"recovered": True, "replayed": 0}}
        await publish(socket, 3)
        assert await received(conn, 1) == [3]


@pytest.mark.parametrize("changes", [{"epoch": "other"}, {"tag": "other"}, {"offset": 99}, {"offset": 0}])
async def test_a_wrong_position_is_not_recovered_and_says_why_but_the_room_is_joined(changes: dict[str, Any]) -> None:
    socket = app(size=3)
    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2, 3, 4, 5)
        conn = await client.connect(subprotocols=V1)
        results = await resume(conn, {"kept:1": position(at[3], **changes)})
        assert results["kept:1"]["recovered"] is False
        assert results["kept:1"]["reason"] == "history_lost"
        await publish(socket, 6)
        assert await received(conn, 1) == [6]


@pytest.mark.parametrize(
    ("room", "since", "reason"),
    [
        ("kept:1", None, "no_position"),
        ("plain", {"offset": 1, "epoch": "e"}, "history_lost"),
        ("nowhere", None, "ROOM_NOT_FOUND"),
        ("a\nb", None, "VALIDATION_ERROR"),
    ],
)
async def test_rooms_that_cannot_be_resumed_say_why(room: str, since: Any, reason: str) -> None:
    async with TestClient(app()) as client:
        conn = await client.connect(subprotocols=V1)
        results = await resume(conn, {room: since})
        assert (results[room]["recovered"], results[room]["reason"]) == (False, reason)


async def test_a_room_that_was_joined_before_is_not_recovered() -> None:
    socket = app()
    async with TestClient(socket) as client:
        (at,) = await publish(socket, 1)
        conn = await client.connect(subprotocols=V1)
        await socket.rooms.join(conn.connection, "kept:1")
        results = await resume(conn, {"kept:1": position(at)})
        assert results == {"kept:1": {"recovered": False, "reason": "already_joined"}}
        await publish(socket, 2)
        assert await received(conn, 1) == [2]


async def test_guards_run_again_and_a_refused_or_broken_one_lets_nobody_in() -> None:
    socket = app()

    @socket.room_guard("kept:{id}")
    async def guard(conn: Connection, id: str) -> bool:
        if id == "broken":
            raise LookupError("secret")
        return id != "closed"

    async with TestClient(socket) as client:
        (at,) = await publish(socket, 1)
        conn = await client.connect(subprotocols=V1)
        results = await resume(conn, {"kept:closed": None, "kept:broken": None, "kept:1": position(at)})
        assert results["kept:closed"]["reason"] == "PERMISSION_ERROR"
        assert results["kept:broken"] == {"recovered": False, "reason": "failed"}
        assert results["kept:1"]["recovered"] is True
        assert conn.connection.rooms == {"kept:1"}


@pytest.mark.parametrize(
    "rooms",
    [[], "x", {"kept:1": 5}, {"kept:1": {"offset": -1, "epoch": "e"}}, {"kept:1": {"offset": True, "epoch": ""}}],
)
async def test_a_malformed_resume_is_a_validation_error(rooms: Any) -> None:
    async with TestClient(app()) as client:
        conn = await client.connect()
        await conn.send("__resume__", {"rooms": rooms}, id=1)
        answer = await conn.receive()
        assert (answer["event"], answer["id"], answer["payload"]["code"]) == ("__error__", 1, "VALIDATION_ERROR")


class GatedHistory(MemoryHistory):
    """Reads only when let: `before` is awaited before looking, `after` between looking and answering."""

    def __init__(self, source: MemoryHistory) -> None:
        self._source = source
        self.before, self.after = asyncio.Event(), asyncio.Event()
        self.looking, self.looked = asyncio.Event(), asyncio.Event()

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        self.looking.set()
        await self.before.wait()
        found = await self._source.read(topic, since=since, limit=limit)
        self.looked.set()
        await self.after.wait()
        return found


@given(counts=st.tuples(*[st.integers(0, 4)] * 4), seen=st.integers(1, 3))
@settings(max_examples=40)
def test_what_is_broadcast_during_a_resume_comes_once_and_in_order(
    counts: tuple[int, int, int, int], seen: int
) -> None:
    """Broadcasts before the resume, before the read, between read and answer, and after: all that may interleave."""

    async def run() -> None:
        backend = MemoryBackend()
        gated = GatedHistory(backend.history)
        backend.history = gated
        socket = app(backend)
        async with TestClient(socket) as client:
            numbers = iter(range(100))
            at = await publish(socket, *(next(numbers) for _ in range(3)))
            conn = await client.connect(subprotocols=V1)
            await conn.receive_event("__connect__")
            await publish(socket, *(next(numbers) for _ in range(counts[0])))
            since = position(at[seen - 1])
            resuming = asyncio.create_task(conn.send("__resume__", {"rooms": {"kept:1": since}}))
            await gated.looking.wait()
            await publish(socket, *(next(numbers) for _ in range(counts[1])))
            gated.before.set()
            await gated.looked.wait()
            await publish(socket, *(next(numbers) for _ in range(counts[2])))
            gated.after.set()
            await resuming
            await publish(socket, *(next(numbers) for _ in range(counts[3])))
            await socket.rooms.broadcast_all("end")
            answer = await conn.receive()
            assert answer["payload"]["rooms"]["kept:1"]["recovered"] is True
            got: list[int] = []
            while (message := await conn.receive())["event"] != "end":
                got.append(message["payload"]["n"])
            assert got == list(range(seen, 3 + sum(counts)))

    asyncio.run(run())


async def test_rooms_with_more_traffic_than_can_be_held_are_not_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socketspec.inbound.resume.MAX_HELD", 2)
    backend = MemoryBackend()
    gated = GatedHistory(backend.history)
    gated.before.set()
    backend.history = gated
    socket = app(backend)
    async with TestClient(socket) as client:
        (at,) = await publish(socket, 1)
        conn = await client.connect(subprotocols=V1)
        resuming = asyncio.create_task(conn.send("__resume__", {"rooms": {"kept:1": position(at)}}))
        await gated.looked.wait()
        await publish(socket, 2, 3, 4)
        gated.after.set()
        await resuming
        answer = await conn.receive_event("__resume__")
        assert answer["payload"]["rooms"]["kept:1"] == {"recovered": False, "reason": "history_lost"}


async def test_what_a_join_hook_broadcasts_during_a_resume_reaches_the_one_who_resumes() -> None:
    socket = app()

    @socket.on_room_join
    async def came(_conn: Connection, room: str) -> None:
        await socket.rooms.broadcast(room, "came", {"to": room})

    async with TestClient(socket) as client:
        (at,) = await publish(socket, 1)
        conn = await client.connect(subprotocols=V1)
        await resume(conn, {"kept:1": position(at), "plain": None})
        assert [(await conn.receive())["payload"] for _ in range(2)] == [{"to": "kept:1"}, {"to": "plain"}]


async def test_what_is_broadcast_in_the_turn_of_the_answer_follows_what_was_missed() -> None:
    socket = app()

    @socket.on_room_join
    async def came(_conn: Connection, room: str) -> None:
        if room == "plain":  # the history of the other room has been read, and nothing was written since
            await publish(socket, 3)

    async with TestClient(socket) as client:
        at = await publish(socket, 1, 2)
        conn = await client.connect(subprotocols=V1)
        await resume(conn, {"kept:1": position(at[0]), "plain": None})
        await publish(socket, 4)
        assert await received(conn, 3) == [2, 3, 4]
