"""What another program writes to our keys and channels: nothing of it is raised, stops others, or reaches a client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgpack
import pytest

from socketspec.cluster import Publisher, RedisBackend
from socketspec.cluster.commands.keys import Keys
from socketspec.errors import BackendError
from socketspec.protocol.publications import History, Member, Position, Publication, Topic
from tests.servers import Server

ROOM, OTHER = Topic("/", "room", "lobby"), Topic("/", "room", "other")
KEPT = History(size=10, ttl=60)
STRANGE: tuple[bytes, ...] = (
    b"",
    b"\xff\xfe",
    b"text",
    b"\0",
    b"nan",
    b"inf",
    b"-1",
    b"1e999",
    b"[" * 10_000,
    b"9" * 400,
)


class Node:
    """A started backend, what it heard, and whom it was told to be lost."""

    def __init__(self, backend: RedisBackend) -> None:
        self.backend = backend
        self.heard: list[Publication] = []
        self.lost: list[str] = []
        self.keys = Keys(backend.options.prefix)

    def deliver(self, _: Topic, publications: Sequence[Publication]) -> None:
        self.heard += publications

    def tell(self, _: Topic, members: Sequence[Member]) -> None:
        self.lost += [member.connection_id for member in members]

    def passed_over(self, kind: str) -> int:
        return self.backend.figures().unreadable_values[kind]


@asynccontextmanager
async def node(server: Server, prefix: str, lease: float = 30.0) -> AsyncIterator[Node]:
    made = Node(RedisBackend(server.url, prefix=prefix, lease=lease))
    await made.backend.start("/", made.deliver, made.tell)
    try:
        yield made
    finally:
        await made.backend.stop("/", made.deliver)


async def until(check: object, what: str) -> None:
    assert callable(check)
    for _ in range(200):
        if check():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never came: {what}")


async def test_frames_that_nobody_of_ours_wrote_are_dropped_counted_and_said_once(
    standalone_server: Server, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(standalone_server, prefix) as here:
        await here.backend.broker.subscribe(ROOM)
        channel = here.keys.channel(ROOM)
        for data in (*STRANGE, b"\x01" + msgpack.packb(["e", b"{no json}"]), b"\x03new", b"\x04newer"):
            standalone_server.ask("SPUBLISH", channel, data)
        standalone_server.ask("SPUBLISH", channel, b"\x01" + msgpack.packb(["more", b"{}", [], "", {"ttl": 1}]))
        await here.backend.broker.publish(ROOM, Publication("ours", b"{}"))
        await until(lambda: len(here.heard) == 2, "what can be read")
        assert [item.event for item in here.heard] == ["more", "ours"]
        frames = here.backend.figures().unreadable_frames
        assert frames["version"] + frames["foreign"] == len(STRANGE) + 3
        health = await here.backend.health()
        assert health.ready
        assert "cannot be read" in health.detail
    lines = [record.message for record in caplog.records if "cannot be read" in record.message]
    assert len(lines) == 2  # one of each reason
    assert all(channel.decode() in line for line in lines)


@pytest.mark.parametrize("strange", STRANGE)
async def test_counts_and_members_that_are_none_count_nobody(
    standalone_server: Server, prefix: str, strange: bytes
) -> None:
    async with node(standalone_server, prefix) as here:
        presence, ask = here.backend.presence, standalone_server.ask
        assert await presence.enter(ROOM, Member("a", None, 1.0), limit=2)
        ask("HSET", here.keys.nodes(ROOM), b"\xff", strange)
        key = here.keys.members(ROOM, f"{here.backend.node}-0")
        ask("HSET", key, b"\xfe", strange)
        ask("HSET", key, b"strange", strange)
        ask("HSET", key, b"newer", msgpack.packb(["u", 2.0, {"role": "x"}]))
        assert [item.connection_id for item in await presence.members(ROOM)] == ["a", "newer"]
        assert await presence.count(ROOM) >= 1
        assert here.passed_over("member") >= 2
        assert here.passed_over("count") >= 1
        with Publisher(standalone_server.url, prefix=prefix) as publisher:
            assert publisher.count("lobby") == await presence.count(ROOM)


async def test_a_lease_of_no_node_does_not_keep_the_dead_from_being_removed(
    standalone_server: Server, prefix: str
) -> None:
    async with node(standalone_server, prefix, lease=1.0) as here:
        ask, keys = standalone_server.ask, here.keys
        for number in range(40):
            ask("ZADD", keys.leases("/"), 1 + number / 100, b"\xff%d" % number)
        ask("SET", keys.node_topics("/", "typed"), "no set")
        ask("ZADD", keys.leases("/"), 1, "typed")
        ask("SET", keys.members(OTHER, "dead"), "no hash")
        ask("SET", keys.told(ROOM, "dead"), "no hash")
        ask("HSET", keys.members(ROOM, "dead"), "gone", msgpack.packb(["u", 1.0]), "\xff", "?")
        ask("SADD", keys.node_topics("/", "dead"), keys.channel(OTHER), b"\xff", "text", keys.channel(ROOM))
        ask("ZADD", keys.leases("/"), 2, "dead")
        await until(lambda: here.lost == ["gone"], "the dead node's member")
        await until(lambda: ask("ZCARD", keys.leases("/")) == 1, "the strange leases are gone")
        assert here.passed_over("lease") >= 40
        assert here.passed_over("topic") >= 2


async def test_a_list_of_topics_of_another_type_keeps_no_room_from_being_repaired(
    standalone_server: Server, prefix: str
) -> None:
    async with node(standalone_server, prefix, lease=1.0) as here:
        ask, keys, presence = standalone_server.ask, here.keys, here.backend.presence
        await presence.enter(ROOM, Member("a", "u", 1.0))
        await presence.leave(ROOM, "a")
        ask("SET", keys.node_topics("/", f"{here.backend.node}-0"), "no set")
        ask("HSET", keys.members(ROOM, f"{here.backend.node}-0"), "ghost", msgpack.packb(["u", 1.0]))
        ask("HSET", keys.nodes(ROOM), f"{here.backend.node}-0", 1)
        presence.distrust()
        await until(lambda: not ask("EXISTS", keys.nodes(ROOM)), "the ghost is gone")
        assert here.passed_over("topic") >= 1


async def test_a_count_of_another_type_keeps_no_other_room_from_being_buried_or_repaired(
    standalone_server: Server, prefix: str
) -> None:
    async with node(standalone_server, prefix, lease=1.0) as here:
        ask, keys, presence = standalone_server.ask, here.keys, here.backend.presence
        for topic in (ROOM, OTHER):
            await presence.enter(topic, Member("a", "u", 1.0))
            ask("HSET", keys.members(topic, "dead"), f"gone-{topic.name}", msgpack.packb(["u", 1.0]))
            ask("SADD", keys.node_topics("/", "dead"), keys.channel(topic))
        ask("DEL", keys.nodes(OTHER), keys.nodes(ROOM), keys.members(ROOM, here.backend.node + "-0"))
        ask("SET", keys.nodes(OTHER), "no hash")
        ask("ZADD", keys.leases("/"), 1, "dead")
        await until(lambda: "gone-lobby" in here.lost, "the dead node's member")
        await until(lambda: not ask("EXISTS", keys.node_topics("/", "dead")), "it is done with")
        presence.distrust()
        await until(lambda: ask("HGETALL", keys.nodes(ROOM)), "the other room is repaired")
        assert await presence.count(ROOM) == 1


@pytest.mark.parametrize("strange", STRANGE)
async def test_a_session_and_a_limit_of_another_form_begin_anew(
    standalone_server: Server, prefix: str, strange: bytes
) -> None:
    async with node(standalone_server, prefix) as here:
        ask, backend = standalone_server.ask, here.backend
        ask("SET", here.keys.session("s"), strange)
        if strange != b"9" * 400:
            assert await backend.sessions.began("s") is None
        began = await backend.sessions.begin("s", ttl=60)
        assert await backend.sessions.began("s") == began > 1_000_000_000
        ask("SET", here.keys.bucket("1.0/2.0/k"), strange)
        assert await backend.limits.take("k", rate=1.0, capacity=2.0) == 0.0
        assert here.passed_over("session") >= 1
        assert here.passed_over("bucket") == 1
        ask("DEL", here.keys.bucket("1.0/2.0/k"))
        ask("LPUSH", here.keys.bucket("1.0/2.0/k"), "x")
        assert await backend.limits.take("k", rate=1.0, capacity=2.0) == 0.0
        assert here.passed_over("bucket") == 2


@pytest.mark.parametrize("field", ["offset", "epoch", "size"])
@pytest.mark.parametrize("strange", STRANGE)
async def test_a_history_that_nobody_of_ours_wrote_is_none_and_begins_anew(
    standalone_server: Server, prefix: str, field: str, strange: bytes
) -> None:
    async with node(standalone_server, prefix) as here:
        backend = here.backend
        first = await backend.broker.publish(ROOM, Publication("one", b"{}"), history=KEPT)
        assert first.position is not None
        standalone_server.ask("HSET", here.keys.meta(ROOM), field, strange)
        try:
            await backend.history.read(ROOM)
            await backend.history.read(ROOM, since=first.position)
        except LookupError:
            pass
        await backend.broker.publish(ROOM, Publication("two", b"{}"), history=KEPT)
        assert [item.event for item in await backend.history.read(ROOM)][-1:] == ["two"]


async def test_entries_of_a_stream_without_our_fields_are_passed_over(standalone_server: Server, prefix: str) -> None:
    async with node(standalone_server, prefix) as here:
        backend, ask = here.backend, standalone_server.ask
        await backend.broker.publish(ROOM, Publication("one", b"{}"), history=KEPT)
        for id, *fields in (("1-5", "b", "x", "t", "y"), ("2-0", "b", "x"), ("3-0", "t", b"\xff", "b", b"\xff")):
            ask("XADD", here.keys.stream(ROOM), id, *fields)
        assert [item.event for item in await backend.history.read(ROOM)] == ["one"]
        assert here.passed_over("history") == 3
        with Publisher(standalone_server.url, prefix=prefix) as publisher:
            assert [item.event for item in publisher.history("lobby")] == ["one"]


async def test_keys_of_another_type_are_passed_over_by_reads_and_named_by_writes(
    standalone_server: Server, prefix: str
) -> None:
    async with node(standalone_server, prefix) as here:
        ask, keys, backend = standalone_server.ask, here.keys, here.backend
        for key in (keys.meta(ROOM), keys.stream(ROOM), keys.nodes(ROOM), keys.members(ROOM, "n"), keys.session("s")):
            ask("DEL", key)
            ask("SADD", key, "x")
        assert list(await backend.history.read(ROOM)) == []
        with pytest.raises(LookupError):
            await backend.history.read(ROOM, since=Position(1, "e", "t"))
        assert await backend.presence.count(ROOM) == 0
        assert list(await backend.presence.members(ROOM)) == []
        assert await backend.sessions.began("s") is None
        assert await backend.sessions.begin("s", ttl=60) > 1_000_000_000
        with pytest.raises(BackendError, match=rf"(?s)another program.*{keys.meta(ROOM).decode()}.*DEL"):
            await backend.broker.publish(ROOM, Publication("e", b"{}"), history=KEPT)
        with pytest.raises(BackendError, match=rf"(?s)another program.*{keys.nodes(ROOM).decode()}.*DEL"):
            await backend.presence.enter(ROOM, Member("a", None, 1.0), limit=5)
        with Publisher(standalone_server.url, prefix=prefix, rooms=["{any}"]) as publisher:
            assert publisher.count("lobby") == 0
        assert await backend.presence.enter(OTHER, Member("b", None, 1.0))
        await backend.presence.leave(OTHER, "b")
        assert await backend.presence.count(OTHER) == 0


def test_the_log_is_told_of_each_kind_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    from socketspec.cluster.commands.unreadable import Unreadable

    now = [0.0]
    unreadable = Unreadable(lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            unreadable.value("member", b"p:{x}:members:n", b"\xff" * 1000)
            unreadable.frame(b"p:{x}:channel", b"\x07")
    assert len(caplog.records) == 2
    now[0] = 60.0
    assert unreadable.recently() == ""
    unreadable.value("member", b"p:{x}:members:n")
    assert "101 so far" in caplog.records[-1].message
