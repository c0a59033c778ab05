"""A user's connections: limits and who has to go, who is listed how, and what is undone where something fails."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from socketspec import SocketApp
from socketspec.errors import BackendError, ValidationFailed
from socketspec.protocol.handshake import Handshake, QueryParams
from socketspec.protocol.publications import Member, Publication, Receipt, Topic
from socketspec.session import SessionConfig
from socketspec.testing import TestClient, TestConnection
from tests.backends import WatchedBackend, WatchedBroker, WatchedPresence
from tests.carriers import Carrier, opened
from tests.endings import end_of
from tests.engines import running
from tests.identities import ByName


async def users(client: TestClient, *names: str) -> list[TestConnection]:
    return [await client.connect(query_params={"user": name}) for name in names]


ADA = Topic("/", "user", "ada")


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
    backend = WatchedBackend()
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=2, connection_limit_policy="evict_oldest")
    async with TestClient(app) as client:
        (mine,) = await users(client, "ada")
        (member,) = await backend.presence.members(ADA)
        await backend.presence.enter(ADA, Member("~ comes later in the alphabet", "ada", member.joined_at))
        await users(client, "ada")
        assert not mine.connection.is_open, "of the same age, the one whose id comes first"


async def test_who_is_authenticated_without_a_name_belongs_to_no_user() -> None:
    async with TestClient(SocketApp(auth=ByName(), max_connections_per_user=1)) as client:
        conns = await users(client, "", "")
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
    backend = WatchedBackend()
    async with TestClient(SocketApp(backend=backend, auth=ByName(), **options)) as client:
        await users(client, "ada")
        assert backend.watched.listed == lists


async def test_a_newcomer_is_a_moment_newer_than_one_whose_nodes_clock_is_ahead() -> None:
    backend = WatchedBackend()
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=5, connection_limit_policy="evict_oldest")
    ahead = time.time() + 1000
    async with TestClient(app) as client:
        await backend.presence.enter(ADA, Member("on another node", "ada", ahead))
        (conn,) = await users(client, "ada")
        joined = {member.connection_id: member.joined_at for member in await backend.presence.members(ADA)}
        assert 0 < joined[conn.id] - ahead < 0.001


async def test_very_many_that_have_to_go_are_named_in_orders_of_a_thousand() -> None:
    orders: list[list[str]] = []

    class Recording(WatchedBroker):
        async def publish(self, topic: Topic, publication: Publication, **options: Any) -> Receipt:
            if topic.kind == "control":
                orders.append(json.loads(publication.payload)["connections"])
            return await super().publish(topic, publication, **options)

    backend = WatchedBackend()
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


@pytest.mark.parametrize("user", ["ada", ""])
async def test_a_connection_that_has_ended_is_forgotten(user: str) -> None:
    app = SocketApp(auth=ByName(), session=SessionConfig(idle_timeout=1000))
    async with TestClient(app) as client:
        query = {"user": user}
        stays = [await client.connect(query_params=query) for _ in range(2)]
        handshake = Handshake(query_params=QueryParams(query.items()), subprotocols=("socketspec.v1.json",))
        engine = await running(app)
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
    backend = WatchedBackend()
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=1)
    async with TestClient(app) as client:
        (one,) = await users(client, "ada")
        assert backend.fanout.stands(ADA)
        await users(client, "ada")
        assert backend.fanout.stands(ADA), "the first one's"
        assert backend.watched.left == [], "who was refused never was in"
        await one.close()
        assert not backend.fanout.stands(ADA)
        assert backend.watched.left == [(ADA, one.id)]
        backend.watched.failing = {"enter"}
        (failed,) = await users(client, "ada")
        assert (await end_of(failed))[1] == 1013
        assert not backend.fanout.stands(ADA)
        assert backend.watched.left[1:] == [(ADA, failed.id)]


async def test_who_hangs_up_before_its_place_could_be_made_leaves_nothing_behind() -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    class Presence(WatchedPresence):
        async def members(self, topic: Topic) -> Sequence[Member]:
            if not self.entered:
                return await super().members(topic)
            asked.set()
            await may_answer.wait()
            raise BackendError("redis is gone")

    backend = WatchedBackend()
    backend.presence = presence = Presence()
    app = SocketApp(backend=backend, auth=ByName(), max_connections_per_user=1, connection_limit_policy="evict_oldest")
    handshake = Handshake(query_params=QueryParams([("user", "ada")]))
    async with app.lifespan() as engine:
        opening = asyncio.create_task(opened(app, Carrier(), handshake))
        await asked.wait()
        ((_, member, _),) = presence.entered
        await engine.closed(engine.directory.connections[member.connection_id], 1006)
        may_answer.set()
        await opening
        assert presence.left == [(ADA, member.connection_id)]
        assert not backend.fanout.stands(ADA)


async def test_a_users_member_has_its_name_and_time() -> None:
    backend = WatchedBackend()
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
