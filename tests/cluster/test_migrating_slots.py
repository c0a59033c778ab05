"""While a slot of a real cluster migrates: broadcasts and joins go on, and nothing is lost or sent twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
from redis.crc import key_slot

from socketspec.cluster.backend import RedisBackend, from_url
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.async_publisher import AsyncPublisher
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.declaration.rooms import Room
from socketspec.protocol.publications import History, Member, Publication, Topic
from tests.server_process import HOST
from tests.servers import Cluster, Server

HISTORY = History(size=10, ttl=60)
ROOMS = (Room("kept", history=HISTORY),)


def topic(name: str = "kept") -> Topic:
    return Topic("/", "room", name)


@contextmanager
def migrating(cluster: Cluster, channel: bytes) -> Iterator[tuple[Server, Server, int]]:
    """The slot of `channel` migrates, with its keys still at the source; afterwards it has moved."""
    slot = key_slot(channel)
    source = cluster.owner(slot)
    target = next(server for server in cluster.primaries if server is not source)
    ids = {server: str(server.ask("CLUSTER", "MYID")) for server in (source, target)}
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    try:
        yield source, target, slot
    finally:
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 500):
            source.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
        for server in (target, source, *(item for item in cluster.primaries if item not in (target, source))):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        cluster.wait_ok()


class Ear:
    """What a node heard."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.news = asyncio.Event()

    def deliver(self, _: Topic, publications: object) -> None:
        assert isinstance(publications, list)
        self.events += [item.event for item in publications]
        self.news.set()

    async def heard(self, *events: str) -> None:
        async with asyncio.timeout(5):
            while self.events != list(events):
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def node(url: str, prefix: str) -> AsyncIterator[tuple[RedisBackend, Ear]]:
    backend, ear = from_url(f"{url}?prefix={prefix}"), Ear()
    await backend.start("/", ear.deliver, lambda *_: None)
    try:
        yield backend, ear
    finally:
        await backend.stop("/", ear.deliver)


@pytest.mark.parametrize("is_kept_before", [True, False], ids=["keys at the source", "no keys yet"])
async def test_a_room_with_history_is_published_to_heard_and_read(
    cluster_servers: Cluster, prefix: str, is_kept_before: bool
) -> None:
    room = topic()
    channel = Keys(prefix).channel(room)
    async with node(cluster_servers.url, prefix) as (backend, ear):
        await backend.broker.subscribe(room)
        publish = partial(backend.broker.publish, room, history=HISTORY)
        before = []
        if is_kept_before:
            await publish(Publication(event="first", payload=b"{}"))
            before = ["first"]
        with migrating(cluster_servers, channel):
            receipt = await publish(Publication(event="node", payload=b"{}"))
            assert receipt.nodes == 1
            assert receipt.position is not None
            async with AsyncPublisher(cluster_servers.url, prefix=prefix, rooms=ROOMS) as publisher:
                assert (await publisher.broadcast("kept", "async", {})).nodes == 1
            with Publisher(cluster_servers.url, prefix=prefix, rooms=ROOMS) as blocking:
                assert (await asyncio.to_thread(blocking.broadcast, "kept", "sync", {})).nodes == 1
            await ear.heard(*before, "node", "async", "sync")
            kept = await backend.history.read(room)
            assert [item.event for item in kept] == [*before, "node", "async", "sync"]
        assert [item.event for item in await backend.history.read(room)] == [*before, "node", "async", "sync"]


async def test_an_idempotency_key_of_a_new_room_counts_once(cluster_servers: Cluster, prefix: str) -> None:
    room = topic()
    async with node(cluster_servers.url, prefix) as (backend, ear):
        await backend.broker.subscribe(room)
        with migrating(cluster_servers, Keys(prefix).channel(room)):
            receipts = [
                await backend.broker.publish(
                    room, Publication(event="once", payload=b"{}"), history=HISTORY, idempotency_key="k"
                )
                for _ in range(2)
            ]
            assert receipts[0].position == receipts[1].position
            await ear.heard("once")


async def test_a_publisher_that_knows_no_rooms_reaches_who_is_subscribed(cluster_servers: Cluster, prefix: str) -> None:
    room = topic("plain")
    async with node(cluster_servers.url, prefix) as (backend, ear):
        await backend.broker.subscribe(room)
        with migrating(cluster_servers, Keys(prefix).channel(room)):
            async with AsyncPublisher(cluster_servers.url, prefix=prefix) as publisher:
                assert (await publisher.broadcast("plain", "async", {})).nodes == 1
            with Publisher(cluster_servers.url, prefix=prefix) as blocking:
                assert (await asyncio.to_thread(blocking.broadcast, "plain", "sync", {})).nodes == 1
            await ear.heard("async", "sync")


@pytest.mark.parametrize("others", [0, 1])
async def test_members_enter_and_leave(cluster_servers: Cluster, prefix: str, others: int) -> None:
    room = topic()
    async with node(cluster_servers.url, prefix) as (backend, _):
        for number in range(others):
            assert await backend.presence.enter(room, Member(f"before{number}", None, time.time()))
        with migrating(cluster_servers, Keys(prefix).channel(room)):
            assert await backend.presence.enter(room, Member("new", None, time.time()))
            assert await backend.presence.count(room) == others + 1
            for id in (*(f"before{number}" for number in range(others)), "new"):
                await backend.presence.leave(room, id)
            assert await backend.presence.count(room) == 0


async def test_leases_are_renewed_by_a_node_without_members(cluster_servers: Cluster, prefix: str) -> None:
    backend, ear = from_url(f"{cluster_servers.url}?prefix={prefix}&lease=1&command_timeout=1"), Ear()
    await backend.start("/", ear.deliver, lambda *_: None)
    try:
        leases = Keys(prefix).leases("/")
        with migrating(cluster_servers, leases) as (source, *_):
            ends = [source.ask("ZRANGE", leases, 0, 0, "WITHSCORES")[1]]
            async with asyncio.timeout(5):
                while len(ends) < 4:  # each of a quarter of the lease later
                    await asyncio.sleep(0.05)
                    now = source.ask("ZRANGE", leases, 0, 0, "WITHSCORES")[1]
                    ends += [now] if now != ends[-1] else []
    finally:
        await backend.stop("/", ear.deliver)
