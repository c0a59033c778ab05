"""Rooms and users: what refusals say, what is counted, who is listed how, and what is undone where something fails."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from socketspec import Broadcasts, Connection, History, Identity, Room, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryBroker, MemoryPresence
from socketspec.errors import BackendError, ConfigurationError, PermissionDenied, RoomNotFound, ValidationFailed
from socketspec.logs import JsonFormatter
from socketspec.protocol.handshake import Handshake, QueryParams
from socketspec.protocol.publications import Member, Position, Publication, Receipt, Topic
from socketspec.testing import ConnectionClosed, TestClient, TestConnection
from tests.carriers import Carrier, opened

log = logging.getLogger("the_app")


class ByName:
    """Everybody is who they say they are."""

    async def authenticate(self, handshake: Handshake) -> Identity:
        user = handshake.query_params.get("user")
        return Identity(user_id=user, is_authenticated="guest" not in handshake.query_params)


class Presence(MemoryPresence):
    """The memory backend's, which can fail and remembers what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: set[str] = set()
        self.entered: list[tuple[Topic, Member, int | None]] = []
        self.left: list[tuple[Topic, str]] = []
        self.listed = 0

    async def members(self, topic: Topic) -> Sequence[Member]:
        self.listed += 1
        return await super().members(topic)

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        self.entered.append((topic, member, limit))
        entered = await super().enter(topic, member, limit=limit)
        if "enter" in self.failing:
            raise BackendError("no answer: whether it was done is not known")
        return entered

    async def leave(self, topic: Topic, connection_id: str) -> None:
        self.left.append((topic, connection_id))
        await super().leave(topic, connection_id)
        if "leave" in self.failing:
            raise BackendError("no answer: whether it was done is not known")


class Broker(MemoryBroker):
    """The memory backend's, which can fail and shows what is subscribed."""

    failing = False

    async def subscribe(self, topic: Topic) -> None:
        if self.failing and topic.kind != "control":
            raise BackendError("redis is gone")
        await super().subscribe(topic)

    def stands(self, topic: Topic) -> bool:
        return topic in self._subscriptions


class Backend(MemoryBackend):
    def __init__(self) -> None:
        super().__init__()
        self.watched = self.presence = Presence()
        self.broker.__class__ = Broker

    def stands(self, topic: Topic) -> bool:
        assert isinstance(self.broker, Broker)
        return self.broker.stands(topic)


async def users(client: TestClient, *names: str) -> list[TestConnection]:
    return [await client.connect(query_params={"user": name}) for name in names]


async def end_of(conn: TestConnection) -> tuple[list[dict[str, Any]], int, str]:
    messages: list[dict[str, Any]] = []
    while True:
        try:
            messages.append(await conn.receive())
        except ConnectionClosed as closed:
            return messages, closed.code, closed.reason


ROOM = Topic("/", "room", "hall")
ADA = Topic("/", "user", "ada")


# Rooms: refusals


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
        (PermissionDenied, {"reason": "room_full", "room": "hall", "max_members": 1}),
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


# Rooms: who is in, and what of it is undone


async def test_members_are_listed_with_user_and_time_and_the_declared_limit_is_asked_for() -> None:
    backend = Backend()
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
        counters = (await app.ensure_started()).counters
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
    backend = Backend()
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
        assert isinstance(backend.broker, Broker)
        backend.broker.failing = where == "subscribe"
        error = BackendError if where in ("subscribe", "enter") else PermissionDenied
        with pytest.raises(error):
            await app.rooms.join(conn, "hall")
        assert conn.rooms == frozenset()
        assert await app.rooms.count("hall") == (where == "full")
        assert not backend.stands(ROOM)
        assert [left for left in backend.watched.left if left[0] == ROOM] == ([(ROOM, conn.id)] * (where == "enter"))
        backend.watched.failing = set()
        backend.broker.failing = False
        if where in ("subscribe", "enter"):
            await app.rooms.join(conn, "hall")
            assert backend.stands(ROOM)
    assert joined == [conn.id] * (where in ("subscribe", "enter"))


@pytest.mark.parametrize("how", ["leave", "close"])
async def test_leaving_ends_the_subscription_even_where_presence_fails(how: str) -> None:
    backend = Backend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        conn = await client.connect()
        await app.rooms.join(conn.connection, "hall")
        assert backend.stands(ROOM)
        backend.watched.failing = {"leave"}
        if how == "leave":
            with pytest.raises(BackendError):
                await app.rooms.leave(conn.connection, "hall")
        else:
            await conn.close()
        backend.watched.failing = set()
        assert not backend.stands(ROOM)
        assert backend.watched.left == [(ROOM, conn.id)]


async def test_a_subscription_stands_while_one_member_is_left() -> None:
    backend = Backend()
    app = SocketApp(backend=backend)
    async with TestClient(app) as client:
        one, two = [(await client.connect()).connection for _ in range(2)]
        for conn in (one, two):
            await app.rooms.join(conn, "hall")
        await app.rooms.leave(one, "hall")
        assert backend.stands(ROOM)
        await app.rooms.leave(two, "hall")
        assert not backend.stands(ROOM)


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


# Rooms: broadcasts


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
        engine = await app.ensure_started()
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


# Users


async def test_a_refused_connection_learns_the_limit() -> None:
    app = SocketApp(auth=ByName(), max_connections_per_user=1)
    async with TestClient(app) as client:
        await users(client, "ada")
        (two,) = await users(client, "ada")
        (message,), *closed = await end_of(two)
        assert closed == [4008, "too_many_connections"]
        assert message["payload"]["code"] == "PERMISSION_ERROR"
        assert message["payload"]["details"] == {"reason": "too_many_connections", "limit": 1}
        assert await app.users.count("ada") == 1


async def test_the_limit_is_a_limit_not_one_less_or_more() -> None:
    app = SocketApp(auth=ByName(), max_connections_per_user=3, connection_limit_policy="evict_oldest")
    async with TestClient(app) as client:
        conns = await users(client, *["ada"] * 5, "bob")
        await asyncio.sleep(0)
        assert [conn.connection.is_open for conn in conns] == [False, False, True, True, True, True]
        assert (await end_of(conns[0]))[1:] == (4009, "replaced")


async def test_of_two_that_joined_at_once_every_node_picks_the_same_one() -> None:
    backend = Backend()
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=2, connection_limit_policy="evict_oldest")
    async with TestClient(app) as client:
        (mine,) = await users(client, "ada")
        (member,) = await backend.presence.members(ADA)
        await backend.presence.enter(ADA, Member("~ comes later in the alphabet", "ada", member.joined_at))
        await users(client, "ada")
        assert not mine.connection.is_open, "of the same age, the one whose id comes first"


async def test_who_is_authenticated_without_a_name_belongs_to_no_user() -> None:
    async with TestClient(SocketApp(auth=ByName(), max_connections_per_user=1)) as client:
        conns = [await client.connect() for _ in range(2)]
        assert all(conn.connection.is_open and conn.identity.is_authenticated for conn in conns)


@pytest.mark.parametrize(
    ("options", "lists"),
    [
        ({}, 0),
        ({"connection_limit_policy": "evict_oldest"}, 0),
        ({"max_connections_per_user": 3}, 0),
        ({"max_connections_per_user": 3, "connection_limit_policy": "evict_oldest"}, 2),
    ],
)
async def test_a_users_connections_are_listed_only_where_the_oldest_may_have_to_go(
    options: dict[str, Any], lists: int
) -> None:
    backend = Backend()
    async with TestClient(SocketApp(backend=backend, auth=ByName(), **options)) as client:
        await users(client, "ada")
        assert backend.watched.listed == lists


async def test_a_newcomer_is_a_moment_newer_than_one_whose_nodes_clock_is_ahead() -> None:
    backend = Backend()
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=5, connection_limit_policy="evict_oldest")
    ahead = time.time() + 1000
    async with TestClient(app) as client:
        await backend.presence.enter(ADA, Member("on another node", "ada", ahead))
        (conn,) = await users(client, "ada")
        joined = {member.connection_id: member.joined_at for member in await backend.presence.members(ADA)}
        assert 0 < joined[conn.id] - ahead < 0.001


async def test_very_many_that_have_to_go_are_named_in_orders_of_a_thousand() -> None:
    orders: list[list[str]] = []

    class Recording(Broker):
        async def publish(self, topic: Topic, publication: Publication, **options: Any) -> Receipt:
            if topic.kind == "control":
                orders.append(json.loads(publication.payload)["connections"])
            return await super().publish(topic, publication, **options)

    backend = Backend()
    backend.broker.__class__ = Recording
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=1, connection_limit_policy="evict_oldest")
    async with TestClient(app) as client:
        old = [f"c{number}" for number in range(2500)]
        for number, name in enumerate(old):
            await backend.presence.enter(ADA, Member(name, "ada", float(number)))
        await users(client, "ada")
        assert [len(order) for order in orders] == [1000, 1000, 500]
        assert [name for order in orders for name in order] == old


async def test_what_is_sent_to_a_user_is_not_written_to_connections_that_have_left() -> None:
    app = SocketApp(auth=ByName())
    handshake = Handshake(query_params=QueryParams([("user", "ada")]))
    async with app.lifespan() as engine:
        left, stays = Carrier(), Carrier()
        leaving, staying = await opened(app, left, handshake), await opened(app, stays, handshake)
        await engine.closed(leaving, 1000)
        await app.users.send("ada", "you")
        await app.rooms.broadcast_all("everybody")
        await staying.emit("end")
        await asyncio.sleep(0)  # written in the loop's next turn
        assert (left.events, stays.events) == ([], ["you", "everybody", "end"])
        await staying.disconnect()


@pytest.mark.parametrize("user", ["ada", None])
async def test_a_connection_that_has_ended_is_forgotten(user: str | None) -> None:
    app = SocketApp(auth=ByName())
    async with TestClient(app) as client:
        query = {} if user is None else {"user": user}
        stays = [await client.connect(query_params=query) for _ in range(2)]
        handshake = Handshake(query_params=QueryParams(query.items()))
        engine = await app.ensure_started()
        conn = await opened(app, Carrier(), handshake)
        await app.rooms.join(conn, "hall")
        gone = weakref.ref(conn)
        await engine.closed(conn, 1000)
        del conn
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None
        assert all(conn.connection.is_open for conn in stays)


async def test_a_guest_with_a_users_name_is_not_the_user() -> None:
    app = SocketApp(auth=ByName())
    async with TestClient(app) as client:
        guest = await client.connect(query_params={"user": "ada", "guest": "yes"})
        assert await app.users.count("ada") == 0
        assert await app.users.disconnect("ada") == 0
        await app.sessions.revoke(user="ada")
        assert guest.connection.is_open


async def test_who_is_refused_or_fails_leaves_no_subscription_behind() -> None:
    backend = Backend()
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=1)
    async with TestClient(app) as client:
        (one,) = await users(client, "ada")
        assert backend.stands(ADA)
        await users(client, "ada")
        assert backend.stands(ADA), "the first one's"
        assert backend.watched.left == [], "who was refused never was in"
        await one.close()
        assert not backend.stands(ADA)
        assert backend.watched.left == [(ADA, one.id)]
        backend.watched.failing = {"enter"}
        (failed,) = await users(client, "ada")
        assert (await end_of(failed))[1] == 1013
        assert not backend.stands(ADA)
        assert backend.watched.left[1:] == [(ADA, failed.id)]


async def test_a_users_member_has_its_name_and_time() -> None:
    backend = Backend()
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=5)
    async with TestClient(app) as client:
        before = time.time()
        (conn,) = await users(client, "ada")
        ((topic, member, limit),) = backend.watched.entered
        assert (topic, member.connection_id, member.user_id, limit) == (ADA, conn.id, "ada", 5)
        assert before <= member.joined_at <= time.time()


async def test_an_impossible_user_id_is_refused_with_its_reason() -> None:
    app = SocketApp()
    async with TestClient(app):
        for call in (app.users.send("", "x"), app.users.count(""), app.users.disconnect("")):
            with pytest.raises(ValidationFailed) as refused:
                await call
            assert refused.value.details == {"reason": "user_id"}
