"""A node whose lease is lost, ends, or cannot be renewed."""

from __future__ import annotations

import asyncio

import pytest

from socketspec.cluster.commands.command import Command
from socketspec.errors import BackendError
from tests.unit.cluster.presence.redis_in_memory import (
    KEYS,
    ROOM,
    FakeRedis,
    everything,
    member,
    named,
    nothing,
    started,
    until,
)


async def test_what_stood_under_a_lost_lease_does_not_count_twice() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.leases.clear()
        presence.distrust()
        await until(lambda: list(redis.hashes[KEYS.nodes(ROOM)]) == [b"n-1"], "only the new name counts")
        assert redis.counted(ROOM) == 1
        assert [item.connection_id for item in await presence.members(ROOM)] == ["a"]
        await until(lambda: KEYS.node_topics("/", "n-0") not in redis.sets, "the old list of topics is gone")


async def test_after_a_lost_lease_nobody_enters_a_topic_that_is_not_on_the_new_list() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.refuse = named("SADD")
        redis.leases.clear()
        presence.distrust()
        await until(lambda: b"n-1" in redis.leases, "the lease is begun again")
        with pytest.raises(BackendError):
            await presence.enter(ROOM, member("b"))


async def test_an_enter_under_way_when_the_lease_is_lost_counts_once_under_the_new_name() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        redis.hold("enter")
        redis.refuse = named("clear")  # the old name is not cleared away yet
        entering = asyncio.create_task(presence.enter(ROOM, member("a"), limit=1))
        await until(lambda: redis.inside(ROOM) == {"a"}, "it is under way")
        redis.leases.clear()
        presence.distrust()
        await until(lambda: b"n-1" in redis.leases, "the lease is begun again")
        redis.let_go("enter")
        assert await entering
        assert redis.hashes[KEYS.nodes(ROOM)] == {b"n-1": b"1"}


async def test_nobody_enters_under_a_lease_that_has_ended_until_it_is_renewed() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.now += 8.0
        redis.flush()  # others removed this node meanwhile
        await presence.enter(ROOM, member("b"))
        assert b"b" not in redis.hashes.get(KEYS.members(ROOM, "n-0"), {})
        await until(lambda: redis.inside(ROOM) == {"a", "b"}, "both are in")


async def test_while_redis_is_away_for_longer_than_a_lease_entering_fails_and_nothing_piles_up() -> None:
    redis = FakeRedis()
    async with started(redis, patience=0.05) as presence:
        redis.refuse = everything
        redis.now += 8.0
        redis.asked.clear()
        outcomes = await asyncio.gather(
            *(presence.enter(ROOM, member(str(n))) for n in range(200)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {BackendError}
        assert "ended" in str(outcomes[0])
        assert set(redis.asked) == {"renew"}
        assert len(redis.asked) <= 30


async def test_a_renewal_that_fails_for_an_unforeseen_reason_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    redis = FakeRedis()

    def fail(command: Command) -> bool:
        raise RuntimeError("a bug")

    async with started(redis) as presence:
        redis.refuse = fail
        presence.distrust()
        await until(lambda: "a bug" in caplog.text, "it is said")
        redis.refuse = nothing
        redis.leases.clear()
        presence.distrust()
        await until(lambda: b"n-1" in redis.leases, "it is renewed")
    assert [record.levelname for record in caplog.records if record.exc_info] == ["WARNING"]
