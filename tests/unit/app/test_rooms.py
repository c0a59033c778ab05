"""Rooms, through the whole stack in process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from socketspec import Connection, History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryPresence
from socketspec.errors import ConfigurationError, PermissionDenied, RoomNotFound, ValidationFailed
from socketspec.protocol.publications import Member, Topic
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.engines import engine_of


async def joined(client: TestClient, socket: SocketApp, *rooms: str, count: int = 3) -> list[TestConnection]:
    conns = [await client.connect() for _ in range(count)]
    for conn in conns:
        for room in rooms:
            await socket.rooms.join(conn.connection, room)
    return conns


async def heard(conns: Sequence[TestConnection], socket: SocketApp) -> list[list[str]]:
    """The events each got; a last one to everybody marks the end, so that nothing is waited for in vain."""
    await socket.rooms.broadcast_all("end")
    got: list[list[str]] = []
    for conn in conns:
        events: list[str] = []
        while (message := await conn.receive())["event"] != "end":
            events.append(message["event"])
        got.append(events)
    return got


async def test_a_broadcast_reaches_members_and_nobody_else() -> None:
    socket = SocketApp()
    async with TestClient(socket) as client:
        members = await joined(client, socket, "lobby", count=2)
        outsider = await client.connect()
        receipt = await socket.rooms.broadcast("lobby", "hello", {"n": 1})
        assert receipt.nodes == 1
        assert await members[0].receive() == {"event": "hello", "payload": {"n": 1}}
        assert await heard([members[1], outsider], socket) == [["hello"], []]


async def test_after_leaving_nothing_comes_any_more() -> None:
    socket = SocketApp()
    async with TestClient(socket) as client:
        one, two = await joined(client, socket, "lobby", count=2)
        await socket.rooms.leave(one.connection, "lobby")
        await socket.rooms.leave(one.connection, "lobby")
        await socket.rooms.broadcast("lobby", "hello")
        assert await heard([one, two], socket) == [[], ["hello"]]
        assert one.connection.rooms == frozenset()


async def test_a_broadcast_can_exclude_a_connection_an_id_or_several_of_both() -> None:
    socket = SocketApp()
    async with TestClient(socket) as client:
        a, b, c = await joined(client, socket, "lobby")
        await socket.rooms.broadcast("lobby", "not_a", exclude=a.connection)
        await socket.rooms.broadcast("lobby", "not_b", exclude=b.id)
        await socket.rooms.broadcast("lobby", "only_c", exclude=[a.connection, b.id])
        assert await heard([a, b, c], socket) == [["not_b"], ["not_a"], ["not_a", "not_b", "only_c"]]


async def test_broadcast_all_needs_no_room_and_broadcast_except_spares_some() -> None:
    socket = SocketApp()
    async with TestClient(socket) as client:
        a, b = await joined(client, socket, count=2)
        await socket.rooms.broadcast_all("everybody")
        await socket.rooms.broadcast_except(a.connection, "others")
        assert await heard([a, b], socket) == [["everybody"], ["everybody", "others"]]


async def test_members_and_count_say_who_is_there_in_order() -> None:
    socket = SocketApp()
    async with TestClient(socket) as client:
        conns = await joined(client, socket, "lobby")
        assert [member.connection_id for member in await socket.rooms.members("lobby")] == [conn.id for conn in conns]
        assert await socket.rooms.count("lobby") == 3
        await conns[0].close()
        assert await socket.rooms.count("lobby") == 2
        assert await socket.rooms.count("elsewhere") == 0


async def test_joining_twice_is_joining_once() -> None:
    socket = SocketApp()
    joins: list[str] = []

    @socket.on_room_join
    async def note(conn: Connection, room: str) -> None:
        joins.append(room)

    async with TestClient(socket) as client:
        (conn,) = await joined(client, socket, "lobby", "lobby", count=1)
        await socket.rooms.broadcast("lobby", "once")
        assert await heard([conn], socket) == [["once"]]
        assert joins == ["lobby"]


async def test_history_is_kept_by_declaration_and_read_oldest_first() -> None:
    socket = SocketApp(rooms=[Room("kept", history=History(size=3)), Room("plain")])
    async with TestClient(socket):
        for number in range(5):
            await socket.rooms.broadcast("kept", "n", {"n": number})
        kept = await socket.rooms.history("kept")
        assert [message.payload for message in kept] == [{"n": 2}, {"n": 3}, {"n": 4}]
        assert [message.payload for message in await socket.rooms.history("kept", limit=1)] == [{"n": 4}]
        with pytest.raises(ValueError, match="keeps no history; declare"):
            await socket.rooms.history("plain")


async def test_an_idempotency_key_broadcasts_once() -> None:
    socket = SocketApp(rooms=[Room("kept", history=History())])
    async with TestClient(socket) as client:
        (conn,) = await joined(client, socket, "kept", count=1)
        first = await socket.rooms.broadcast("kept", "paid", idempotency_key="k")
        second = await socket.rooms.broadcast("kept", "paid", idempotency_key="k")
        assert first.position == second.position
        assert await heard([conn], socket) == [["paid"]]


async def test_an_app_that_declares_rooms_has_no_others() -> None:
    socket = SocketApp(rooms=["lobby", Room("chat:{room}")])
    async with TestClient(socket) as client:
        (conn,) = await joined(client, socket, "lobby", "chat:one", count=1)
        with pytest.raises(RoomNotFound):
            await socket.rooms.join(conn.connection, "chat:one:two")
        with pytest.raises(RoomNotFound):
            await socket.rooms.broadcast("nowhere", "x")


@pytest.mark.parametrize("order", [1, -1])
async def test_the_most_specific_declaration_applies_whatever_the_order(order: int) -> None:
    rooms = [Room("chat:{room}", max_members=9), Room("chat:vip", max_members=1), Room("chat:v{rest}", max_members=5)]
    socket = SocketApp(rooms=rooms[::order])
    limits = [socket.rooms.declaration(name) for name in ("chat:vip", "chat:vault", "chat:other")]
    assert [room.max_members if room else None for room in limits] == [1, 5, 9]


async def test_max_members_holds_and_a_place_becomes_free() -> None:
    socket = SocketApp(rooms=[Room("table", max_members=2)])
    async with TestClient(socket) as client:
        one, _ = await joined(client, socket, "table", count=2)
        third = await client.connect()
        with pytest.raises(PermissionDenied) as refusal:
            await socket.rooms.join(third.connection, "table")
        assert refusal.value.details == {"reason": "room_full", "room": "table", "max_members": 2}
        await one.close()
        await socket.rooms.join(third.connection, "table")
        assert await socket.rooms.count("table") == 2


async def test_a_refused_join_is_the_answer_to_the_event() -> None:
    socket = SocketApp(rooms=["lobby"])

    @socket.on("enter")
    async def enter(conn: Connection, payload: dict[str, str]) -> None:
        await socket.rooms.join(conn, payload["room"])

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("enter", {"room": "cellar"}, id=3)
        answer = await conn.receive()
        assert (answer["event"], answer["id"], answer["payload"]["code"]) == ("__error__", 3, "ROOM_NOT_FOUND")
        assert answer["payload"]["event"] == "enter"


async def test_every_matching_guard_gets_the_variables_and_must_agree() -> None:
    socket = SocketApp()
    asked: list[tuple[str, dict[str, str]]] = []

    @socket.room_guard("{kind}:{name}")
    async def first(conn: Connection, kind: str, name: str) -> bool:
        asked.append(("first", {"kind": kind, "name": name}))
        return name != "secret"

    @socket.room_guard("chat:{name}")
    def second(conn: Connection, name: str) -> bool:
        asked.append(("second", {"name": name}))
        return name != "closed"

    async with TestClient(socket) as client:
        (conn,) = await joined(client, socket, "chat:open", count=1)
        assert asked == [("first", {"kind": "chat", "name": "open"}), ("second", {"name": "open"})]
        for room in ("chat:secret", "chat:closed"):
            with pytest.raises(PermissionDenied) as refusal:
                await socket.rooms.join(conn.connection, room)
            assert refusal.value.details["reason"] == "guard"
            assert await socket.rooms.count(room) == 0
        assert conn.connection.rooms == {"chat:open"}


async def test_a_guard_that_returns_no_bool_lets_nobody_in() -> None:
    socket = SocketApp()

    @socket.room_guard("lobby")
    async def forgot(conn: Connection) -> Any:
        return "yes"

    async with TestClient(socket) as client:
        conn = await client.connect()
        with pytest.raises(TypeError, match="must return True or False, not str"):
            await socket.rooms.join(conn.connection, "lobby")
        assert await socket.rooms.count("lobby") == 0


async def test_hooks_tell_of_joins_and_leaves_and_of_rooms_left_by_closing() -> None:
    socket = SocketApp()
    seen: list[tuple[str, str]] = []

    @socket.on_room_join
    async def join(conn: Connection, room: str) -> None:
        seen.append(("join", room))

    @socket.on_room_leave
    def leave(conn: Connection, room: str) -> None:
        seen.append(("leave", room))

    async with TestClient(socket) as client:
        (conn,) = await joined(client, socket, "a", "b", count=1)
        await socket.rooms.leave(conn.connection, "a")
        await conn.close()
    assert seen == [("join", "a"), ("join", "b"), ("leave", "a"), ("leave", "b")]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, "\ud800"])
async def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    socket = SocketApp()
    async with TestClient(socket) as client:
        conn = await client.connect()
        with pytest.raises(ValidationFailed):
            await socket.rooms.join(conn.connection, name)


async def test_one_connection_may_be_in_so_many_rooms() -> None:
    socket = SocketApp(max_rooms_per_connection=2)
    async with TestClient(socket) as client:
        (conn,) = await joined(client, socket, "a", "b", count=1)
        with pytest.raises(PermissionDenied) as refusal:
            await socket.rooms.join(conn.connection, "c")
        assert refusal.value.details == {"reason": "too_many_rooms", "limit": 2}
        await socket.rooms.leave(conn.connection, "a")
        await socket.rooms.join(conn.connection, "c")
        assert conn.connection.rooms == {"b", "c"}


class SlowPresence(MemoryPresence):
    """Enters and leaves when a test opens the gate, as a presence on another machine may."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    async def _pass(self) -> None:
        self.reached.set()
        await self.gate.wait()

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        await self._pass()
        return await super().enter(topic, member, limit=limit)

    async def leave(self, topic: Topic, connection_id: str) -> None:
        await self._pass()
        await super().leave(topic, connection_id)


def slow_app() -> tuple[SocketApp, SlowPresence]:
    backend = MemoryBackend()
    presence = SlowPresence()
    backend.presence = presence
    return SocketApp(backend=backend), presence


async def test_a_join_that_races_with_the_disconnect_leaves_nothing_behind() -> None:
    socket, presence = slow_app()
    async with TestClient(socket) as client:
        conn = await client.connect()
        presence.gate.clear()
        join = asyncio.create_task(socket.rooms.join(conn.connection, "lobby"))
        await presence.reached.wait()
        await conn.close()
        presence.gate.set()
        await join
        assert await socket.rooms.count("lobby") == 0
        assert conn.connection.rooms == frozenset()
        assert len(engine_of(socket).hub.topics) == 2, "only the topics of everybody and of the nodes' orders are left"


async def test_a_second_join_waits_for_the_first() -> None:
    socket, presence = slow_app()
    async with TestClient(socket) as client:
        conn = await client.connect()
        presence.gate.clear()
        first = asyncio.create_task(socket.rooms.join(conn.connection, "lobby"))
        second = asyncio.create_task(socket.rooms.join(conn.connection, "lobby"))
        await presence.reached.wait()
        assert not second.done()
        presence.gate.set()
        await asyncio.gather(first, second)
        assert conn.connection.rooms == {"lobby"}


async def test_joining_while_the_leave_is_under_way_ends_with_a_member() -> None:
    socket, presence = slow_app()
    async with TestClient(socket) as client:
        (conn,) = await joined(client, socket, "lobby", count=1)
        presence.reached.clear()
        presence.gate.clear()
        leave = asyncio.create_task(socket.rooms.leave(conn.connection, "lobby"))
        await presence.reached.wait()
        join = asyncio.create_task(socket.rooms.join(conn.connection, "lobby"))
        presence.gate.set()
        await asyncio.gather(leave, join)
        assert await socket.rooms.count("lobby") == 1
        assert conn.connection.rooms == {"lobby"}


@pytest.mark.parametrize("options", [{"max_members": 0}, {"max_members": True}, {"max_members": 2.5}, {"history": 5}])
def test_a_room_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Room"):
        Room("lobby", **options)


def test_a_room_is_declared_once() -> None:
    with pytest.raises(ConfigurationError, match="declared twice"):
        SocketApp(rooms=["lobby", Room("lobby")])


async def test_who_broadcasts_and_then_disconnects_itself_gets_the_broadcast_too() -> None:
    socket = SocketApp()

    @socket.on("bye")
    async def bye(conn: Connection) -> None:
        await socket.rooms.join(conn, "lobby")
        await socket.rooms.broadcast("lobby", "left")
        await conn.disconnect()

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("bye")
        assert (await conn.receive())["event"] == "left"
        with pytest.raises(ConnectionClosed):
            await conn.receive()


async def test_a_loop_of_broadcasts_that_nobody_hears_leaves_others_their_turn() -> None:
    app, turns = SocketApp(), 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with TestClient(app):
        other = asyncio.create_task(others())
        for _ in range(1000):
            await app.rooms.broadcast("empty", "said")
            await app.users.send("nobody", "said")
        other.cancel()
    assert turns > 10
