"""Rooms: what refusals say, what is counted, who is listed how, and what is undone where something fails."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from socketspec import Broadcasts, Connection, History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.errors import (
    BackendError,
    ConfigurationError,
    PermissionDenied,
    RoomNotFound,
    ValidationFailed,
)
from socketspec.logs import JsonFormatter
from socketspec.membership.rooms import RoomFull
from socketspec.protocol.publications import Member, Position, Publication, Topic
from socketspec.testing import TestClient, TestConnection
from tests.backends import WatchedBackend
from tests.engines import running
from tests.identities import ByName

log = logging.getLogger("the_app")


async def users(client: TestClient, *names: str) -> list[TestConnection]:
    return [await client.connect(query_params={"user": name}) for name in names]


ROOM = Topic("/", "room", "hall")


# Refusals


async def test_refusals_say_in_their_details_what_it_was() -> None:
    app = SocketApp(rooms=[Room("hall", max_members=1), Room("club:{name}")], max_rooms_per_connection=1)

    @app.room_guard("club:{name}")
    async def guard(conn: Connection, name: str) -> bool:
        return name == "open"

    refusals: list[tuple[type[Exception], dict[str, Any]]] = []
    async with TestClient(app) as client:
        one, two = (await client.connect()).connection, (await client.connect()).connection
        await app.rooms.join(one, "hall")
        for conn, room in ((two, "hall"), (two, "club:shut"), (two, "cellar"), (two, ""), (one, "club:open")):
            with pytest.raises((PermissionDenied, RoomNotFound, ValidationFailed)) as refused:
                await app.rooms.join(conn, room)
            refusals.append((refused.type, refused.value.details))
        assert one.rooms == {"hall"}
        assert not two.rooms
    assert refusals == [
        (RoomFull, {"reason": "room_full", "room": "hall", "max_members": 1}),
        (PermissionDenied, {"reason": "guard", "room": "club:shut"}),
        (RoomNotFound, {"room": "cellar"}),
        (ValidationFailed, {"reason": "room_name"}),
        (PermissionDenied, {"reason": "too_many_rooms", "limit": 1}),
    ]


async def test_every_call_checks_the_rooms_name() -> None:
    app = SocketApp(rooms=["hall"])
    async with TestClient(app) as client:
        conn = (await client.connect()).connection
        for room, error in (("cellar", RoomNotFound), ("", ValidationFailed)):
            for call in (
                app.rooms.join(conn, room),
                app.rooms.broadcast(room, "x"),
                app.rooms.members(room),
                app.rooms.count(room),
                app.rooms.history(room),
            ):
                with pytest.raises(error):
                    await call


@pytest.mark.parametrize("event", ["__ack__", "", "a\nb"])
async def test_names_that_an_app_cannot_send_are_not_broadcast(event: str) -> None:
    app = SocketApp(auth=ByName())
    async with TestClient(app) as client:
        (conn,) = await users(client, "ada")
        await app.rooms.join(conn.connection, "hall")
        for call in (
            app.rooms.broadcast("hall", event),
            app.rooms.broadcast_all(event),
            app.rooms.broadcast_except(None, event),
            app.users.send("ada", event),
            conn.connection.emit(event),
        ):
            with pytest.raises(ValueError, match="event"):
                await call
        await conn.send("__ping__")
        assert (await conn.receive())["event"] == "__pong__", "nothing else had come"


async def test_joins_that_are_under_way_count_towards_the_most_there_may_be() -> None:
    app = SocketApp(max_rooms_per_connection=2)
    checking, decided = asyncio.Event(), asyncio.Event()

    @app.room_guard("{room}")
    async def guard(conn: Connection, room: str) -> bool:
        checking.set()
        await decided.wait()
        return True

    async with TestClient(app) as client:
        conn = (await client.connect()).connection
        joins = [asyncio.create_task(app.rooms.join(conn, room)) for room in "abc"]
        await checking.wait()
        decided.set()
        outcomes = await asyncio.gather(*joins, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), type(None), PermissionDenied]
        assert conn.rooms == {"a", "b"}


async def test_what_a_room_guard_logs_is_about_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    app = SocketApp(namespace="/n")

    @app.room_guard("hall")
    async def guard(conn: Connection) -> bool:
        log.warning("guarding")
        return True

    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "hall")
    line = json.loads(caplog.text)
    assert (line["message"], line["connection"], line["namespace"]) == ("guarding", conn.id, "/n")


# Who is in, and what of it is undone


async def test_members_are_listed_with_user_and_time_and_the_declared_limit_is_asked_for() -> None:
    backend = WatchedBackend()
    app = SocketApp(backend=backend, auth=ByName(), rooms=[Room("hall", max_members=7), "free"])
    async with TestClient(app) as client:
        (conn,) = await users(client, "ada")
        before = time.time()
        await app.rooms.join(conn.connection, "hall")
        await app.rooms.join(conn.connection, "free")
        (member,) = await app.rooms.members("hall")
        assert (member.connection_id, member.user_id) == (conn.id, "ada")
        assert before <= member.joined_at <= time.time()
        asked = {topic.name: limit for topic, _, limit in backend.watched.entered if topic.kind == "room"}
        assert asked == {"hall": 7, "free": None}


async def test_joins_and_leaves_are_counted_once_each() -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        conn = await client.connect()
        counters = (await running(app)).counters
        for room in ("a", "a", "b"):
            await app.rooms.join(conn.connection, room)
        assert (counters.joins, counters.leaves) == (2, 0)
        for room in ("a", "a", "c"):
            await app.rooms.leave(conn.connection, room)
        assert (counters.joins, counters.leaves) == (2, 1)
        await conn.close()
        assert (counters.joins, counters.leaves) == (2, 2)


async def test_leaving_a_room_that_one_is_not_in_calls_no_hook() -> None:
    app, left = SocketApp(), list[str]()

    @app.on_room_leave
    async def hook(conn: Connection, room: str) -> None:
        left.append(room)

    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.leave(conn.connection, "hall")
    assert left == []


@pytest.mark.parametrize("where", ["subscribe", "enter", "guard", "full"])
async def test_a_join_that_fails_leaves_nothing_behind_and_calls_no_hook(where: str) -> None:
    backend = WatchedBackend()
    app = SocketApp(backend=backend, rooms=[Room("hall", max_members=1)])
    joined: list[str] = []

    @app.on_room_join
    async def hook(conn: Connection, room: str) -> None:
        joined.append(conn.id)

    @app.room_guard("hall")
    async def guard(conn: Connection) -> bool:
        return where != "guard"

    async with TestClient(app) as client:
        conn = (await client.connect()).connection
        if where == "full":
            await backend.presence.enter(ROOM, Member("on another node", None, 0.0))
        backend.watched.failing = {where}
        backend.fanout.failing = where == "subscribe"
        error = BackendError if where in ("subscribe", "enter") else PermissionDenied
        with pytest.raises(error):
            await app.rooms.join(conn, "hall")
        assert conn.rooms == frozenset()
        assert await app.rooms.count("hall") == (where == "full")
        assert not backend.fanout.stands(ROOM)
        assert [left for left in backend.watched.left if left[0] == ROOM] == ([(ROOM, conn.id)] * (where == "enter"))
        backend.watched.failing = set()
        backend.fanout.failing = False
        if where in ("subscribe", "enter"):
            await app.rooms.join(conn, "hall")
            assert backend.fanout.stands(ROOM)
    assert joined == [conn.id] * (where in ("subscribe", "enter"))


@pytest.mark.parametrize("how", ["leave", "close"])
async def test_leaving_ends_the_subscription_even_where_presence_fails(how: str) -> None:
    backend = WatchedBackend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "hall")
        assert backend.fanout.stands(ROOM)
        backend.watched.failing = {"leave"}
        if how == "leave":
            with pytest.raises(BackendError):
                await app.rooms.leave(conn.connection, "hall")
        else:
            await conn.close()
        backend.watched.failing = set()
        assert not backend.fanout.stands(ROOM)
        assert backend.watched.left == [(ROOM, conn.id)]


async def test_who_leaves_gets_nothing_more_however_long_presence_takes_to_answer() -> None:
    backend = WatchedBackend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        leaver, other = await client.connect(), await client.connect()
        for conn in (leaver, other):
            await app.rooms.join(conn.connection, "hall")
        backend.watched.may_leave.clear()
        leaving = asyncio.create_task(app.rooms.leave(leaver.connection, "hall"))
        async with asyncio.timeout(5):
            await backend.watched.leaving.wait()
        await app.rooms.broadcast("hall", "meanwhile")
        assert (await other.receive())["event"] == "meanwhile"
        backend.watched.may_leave.set()
        await leaving
        await leaver.send("__ping__")
        assert (await leaver.receive())["event"] == "__pong__", "nothing else had come"


async def test_a_subscription_stands_while_one_member_is_left() -> None:
    backend = WatchedBackend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        one, two = [(await client.connect()).connection for _ in range(2)]
        for conn in (one, two):
            await app.rooms.join(conn, "hall")
        await app.rooms.leave(one, "hall")
        assert backend.fanout.stands(ROOM)
        await app.rooms.leave(two, "hall")
        assert not backend.fanout.stands(ROOM)


async def test_a_join_of_a_connection_that_is_gone_is_none() -> None:
    app = SocketApp()
    hooked: list[str] = []

    @app.on_room_join
    async def hook(conn: Connection, room: str) -> None:
        hooked.append(room)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.close()
        await app.rooms.join(conn.connection, "hall")
        assert (await app.rooms.count("hall"), conn.connection.rooms) == (0, frozenset())
    assert hooked == []


@pytest.mark.parametrize("name", ["chat:{", "chat:{}", "", "a\nb"])
def test_a_room_whose_name_cannot_be_is_refused_where_it_is_declared(name: str) -> None:
    with pytest.raises(ConfigurationError):
        Room(name)


# Broadcasts


@pytest.mark.parametrize("how", ["room", "all", "user"])
async def test_who_broadcasts_without_end_lets_others_run(how: str) -> None:
    app = SocketApp(auth=ByName())
    turns = 0

    async def another() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with TestClient(app) as client:
        (conn,) = await users(client, "ada")
        await app.rooms.join(conn.connection, "hall")
        counting = asyncio.create_task(another())
        for _ in range(200):
            if how == "room":
                await app.rooms.broadcast("hall", "x")
            elif how == "all":
                await app.rooms.broadcast_all("x")
            else:
                await app.users.send("ada", "x")
        counting.cancel()
        assert turns >= 3


async def test_broadcasts_are_counted_and_shown_in_the_debug_feed() -> None:
    app = SocketApp(debug=True, auth=ByName())
    async with TestClient(app) as client:
        (conn,) = await users(client, "ada")
        await app.rooms.join(conn.connection, "hall")
        await app.rooms.broadcast("hall", "to the room", {"n": 1})
        await app.rooms.broadcast_all("to all", {"n": 2})
        await app.users.send("ada", "to ada", {"n": 3})
        engine = await running(app)
        assert engine.counters.broadcasts == 3
        assert engine.feed is not None
        shown = [event for event in engine.feed.since(0) if event["direction"] == "broadcast"]
        assert [(event["event"], event["room"], event["data"], event["connection_id"]) for event in shown] == [
            ("to the room", "hall", '{"n":1}', None),
            ("to all", "", '{"n":2}', None),
            ("to ada", "user ada", '{"n":3}', None),
        ]


async def test_nobody_is_excluded_by_an_empty_list() -> None:
    app = SocketApp()
    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "hall")
        excluded: Iterable[str] = []
        await app.rooms.broadcast("hall", "x", exclude=excluded)
        assert (await conn.receive())["event"] == "x"


async def test_broadcasting_to_all_is_checked_against_what_the_handler_declares() -> None:
    app = SocketApp()

    @app.on("act", broadcasts=[Broadcasts("news")])
    async def act(conn: Connection, payload: dict[str, str]) -> None:
        await app.rooms.broadcast_except(conn, payload["event"])

    async with TestClient(app) as client:
        conn = await client.connect()
        for event, outcome in (("news", "__ack__"), ("gossip", "__error__")):
            await conn.send("act", {"event": event}, id=1)
            assert (await conn.receive())["event"] == outcome


async def test_the_history_is_read_from_a_position_with_its_own_positions() -> None:
    app = SocketApp(rooms=[Room("hall", history=History()), "plain"])
    async with TestClient(app):
        at = [(await app.rooms.broadcast("hall", "n", {"n": number})).position for number in range(4)]
        read = await app.rooms.history("hall", since=at[1], limit=1)
        assert at[2] is not None
        assert [(message.event, message.payload) for message in read] == [("n", {"n": 2})]
        assert Position(read[0].offset, read[0].epoch, read[0].tag) == at[2]
        with pytest.raises(LookupError):
            await app.rooms.history("hall", since=Position(1, "another life", ""))


async def test_an_app_without_declared_rooms_keeps_no_history() -> None:
    app = SocketApp()
    async with TestClient(app):
        assert (await app.rooms.broadcast("hall", "n")).position is None
        with pytest.raises(ValueError, match="keeps no history"):
            await app.rooms.history("hall")


async def test_a_publication_that_was_kept_without_a_position_is_shown_all_the_same() -> None:
    class Store(MemoryBackend):
        def __init__(self) -> None:
            super().__init__()
            read = self.history.read

            async def without(topic: Topic, *, since: Position | None = None, limit: int | None = None) -> Any:
                found: Sequence[Publication] = await read(topic, since=since, limit=limit)
                return [publication._replace(position=None) for publication in found]

            self.history.read = without  # type: ignore[method-assign]  # another store's way

    app = SocketApp(backend=Store(), rooms=[Room("hall", history=History())])
    async with TestClient(app):
        await app.rooms.broadcast("hall", "n")
        (message,) = await app.rooms.history("hall")
        assert (message.event, message.offset, message.epoch, message.tag) == ("n", 0, "", "")
