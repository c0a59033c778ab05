"""The members of dead nodes are removed, and told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from socketspec.protocol.publications import Member, Topic
from tests.unit.cluster.presence.redis_in_memory import (
    KEYS,
    OTHER,
    ROOM,
    FakeRedis,
    Told,
    judges,
    leave_behind,
    member,
    nothing,
    settled,
    started,
    until,
)


async def test_the_members_of_a_dead_node_are_told_though_the_hook_fails(caplog: pytest.LogCaptureFixture) -> None:
    redis = FakeRedis()
    told = Told()

    class Failing(Told):
        def __call__(self, topic: Topic, members: Sequence[Member]) -> None:
            told(topic, members)
            raise ValueError("a bug in a hook")

    leave_behind(redis, ROOM, OTHER)
    async with started(redis, lost=Failing()) as presence:
        await judges(redis, presence)
        await until(lambda: len(told.by_topic) == 2, "both topics are told")
        await until(lambda: not redis.sets[KEYS.node_topics("/", "dead-0")], "the dead node is done with")
    assert told.by_topic == {ROOM: ["x"], OTHER: ["x"]}
    assert "a bug in a hook" in caplog.text
    assert redis.is_empty


async def test_of_members_that_could_be_removed_everybody_is_told_though_others_could_not() -> None:
    redis, told = FakeRedis(), Told()
    leave_behind(redis, ROOM, OTHER)
    redis.refuse = lambda command: command.name == "reap" and command.keys[0] == KEYS.nodes(OTHER)
    async with started(redis, lost=told) as presence:
        await judges(redis, presence)
        await until(lambda: told.by_topic == {ROOM: ["x"]}, "one topic is told")
        redis.refuse = nothing
        redis.leases[b"!dead-0"] = 0.0  # the claim has ended
        presence.distrust()
        await until(lambda: told.by_topic == {ROOM: ["x"], OTHER: ["x"]}, "the other one as well, and none twice")


async def test_nobody_is_told_of_a_member_who_is_here() -> None:
    redis, told = FakeRedis(), Told()
    async with started(redis, lost=told) as presence:
        await presence.enter(ROOM, member("x"))
        leave_behind(redis, ROOM, OTHER)
        await judges(redis, presence)
        await until(lambda: told.by_topic == {OTHER: ["x"]}, "the one elsewhere is told")
        await settled()
    assert told.by_topic == {OTHER: ["x"]}


async def test_of_what_is_left_under_a_former_name_of_a_node_that_lives_nobody_is_told() -> None:
    redis, told = FakeRedis(), Told()
    redis.former.add(b"dead-0")
    leave_behind(redis, ROOM, OTHER)
    async with started(redis, lost=told) as presence:
        await judges(redis, presence)
        await until(lambda: not redis.sets[KEYS.node_topics("/", "dead-0")], "it is done with")
        assert redis.inside(ROOM) == redis.inside(OTHER) == set()
        assert redis.counted(ROOM) == redis.counted(OTHER) == 0
        await settled()
    assert told.by_topic == {}
