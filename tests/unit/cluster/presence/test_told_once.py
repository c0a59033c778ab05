"""A node that was taken for dead goes on with its members: of each leave somebody is told, and once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from socketspec.cluster.presence.members import RedisPresence
from socketspec.protocol.publications import Member
from tests.unit.cluster.presence.redis_in_memory import (
    KEYS,
    OTHER,
    ROOM,
    FakeRedis,
    Told,
    judges,
    member,
    nothing,
    settled,
    started,
    until,
)

LEASE = 8.0


async def bury(redis: FakeRedis, node: str, survivor: RedisPresence) -> None:
    """The lease of `node` is over, and `survivor` finds that."""
    redis.leases[node.encode()] = 0.0
    survivor.distrust()
    await until(lambda: not redis.sets.get(KEYS.node_topics("/", node)), f"{node} is done with")
    await settled()


@asynccontextmanager
async def frozen_and_woken(redis: FakeRedis, told: Told) -> AsyncIterator[tuple[RedisPresence, RedisPresence]]:
    """A survivor, and a node with members a and b that it took for dead, and which has put them back."""
    async with started(redis, "m", told) as survivor, started(redis) as woken:
        for name in "ab":
            await woken.enter(ROOM, member(name))
        await judges(redis, survivor)
        await bury(redis, "n-0", survivor)
        assert told.by_topic == {ROOM: ["a", "b"]}
        woken.distrust()
        await until(lambda: redis.inside(ROOM) == {"a", "b"}, "they are back")
        await settled()
        yield survivor, woken


async def test_who_was_put_back_after_their_leaving_was_told_is_not_told_again_when_the_node_dies() -> None:
    redis, told = FakeRedis(), Told()
    async with frozen_and_woken(redis, told) as (survivor, woken):
        await woken.enter(ROOM, member("c"))
        await woken.leave(ROOM, "b")
        await woken.enter(ROOM, Member("b", "user-b", 2.0))
        await bury(redis, "n-1", survivor)
        assert told.by_topic == {ROOM: ["a", "b", "c", "b"]}
    assert redis.is_empty


async def test_who_left_and_came_back_before_the_leave_was_carried_out_is_told() -> None:
    redis, told = FakeRedis(), Told()
    async with frozen_and_woken(redis, told) as (survivor, woken):
        redis.refuse = lambda command: command.name == "leave"
        leaving = asyncio.create_task(woken.leave(ROOM, "b"))
        await settled()
        await woken.enter(ROOM, Member("b", "user-b", 2.0))
        await leaving
        redis.refuse = nothing
        await bury(redis, "n-1", survivor)
        assert told.by_topic == {ROOM: ["a", "b", "b"]}


async def test_the_notes_are_made_again_where_redis_has_lost_them() -> None:
    redis, told = FakeRedis(), Told()
    async with frozen_and_woken(redis, told) as (survivor, woken):
        redis.hashes.clear()
        woken.distrust()
        await until(lambda: redis.inside(ROOM) == {"a", "b"}, "they are back again")
        await settled()
        await bury(redis, "n-1", survivor)
        assert told.by_topic == {ROOM: ["a", "b"]}


async def test_nobody_is_put_back_before_it_is_noted() -> None:
    redis, told = FakeRedis(), Told()
    async with started(redis, "m", told) as survivor, started(redis) as woken:
        await woken.enter(ROOM, member("a"))
        await judges(redis, survivor)
        await bury(redis, "n-0", survivor)
        redis.refuse = lambda command: command.name == "mark_told"
        woken.distrust()
        await until(lambda: "mark_told" in redis.asked, "it tries to")
        await settled()
        assert redis.inside(ROOM) == set()
        redis.refuse = nothing
        woken.distrust()
        await until(lambda: redis.inside(ROOM) == {"a"}, "it is back")


async def test_where_the_reaper_died_before_it_told_the_woken_node_tells_of_its_own_members() -> None:
    """Else nobody would: it relies on the other one, also when they leave here."""
    redis, lost = FakeRedis(), Told()
    async with started(redis, "n", lost) as woken:
        await woken.enter(ROOM, member("a"))
        await judges(redis, woken)
        del redis.leases[b"n-0"]  # claimed, and then the one died that had claimed it
        redis.leases[b"!n-0"] = redis.now + LEASE
        redis.claimed.add(b"n-0")
        woken.distrust()
        await until(lambda: redis.hashes.get(KEYS.members(ROOM, "n-1"), {}).keys() == {b"a"}, "it is back")
        assert lost.by_topic == {}
        redis.now += LEASE + 1.0
        await judges(redis, woken)
        await until(lambda: lost.by_topic == {ROOM: ["a"]}, "it is told")
        await woken.leave(ROOM, "a")
        assert not await woken.runs_leave_hooks(ROOM, "a")


async def test_who_was_joining_when_the_node_froze_leaves_with_a_hook_of_its_own() -> None:
    """Its join hook runs after the leave hook that another node ran: without a second one it would stay for ever."""
    redis, told = FakeRedis(), Told()
    async with started(redis, "m", told) as survivor, started(redis) as frozen:
        await judges(redis, survivor)
        await frozen.enter(OTHER, member("a"))  # under a new name, as it was silent while the other began to judge
        redis.hold("enter")
        joining = asyncio.create_task(frozen.enter(ROOM, member("a")))
        await until(lambda: redis.inside(ROOM) == {"a"}, "Redis has it in")
        await bury(redis, "n-1", survivor)
        assert told.by_topic == {OTHER: ["a"], ROOM: ["a"]}
        redis.now += LEASE
        redis.let_go("enter")
        assert await joining
        assert redis.hashes[KEYS.members(ROOM, "n-2")].keys() == {b"a"}
        await frozen.leave(ROOM, "a")
        assert await frozen.runs_leave_hooks(ROOM, "a")
