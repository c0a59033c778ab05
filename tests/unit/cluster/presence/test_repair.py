"""What a node puts right in a Redis that has lost something, or has too much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketspec.cluster.commands.command import Command
from socketspec.cluster.presence import space
from socketspec.cluster.presence.commands import BATCH
from socketspec.cluster.presence.members import RedisPresence
from socketspec.cluster.presence.space import LEFT_OF_LATE
from socketspec.errors import BackendError
from socketspec.protocol.publications import Topic
from tests.unit.cluster.presence.redis_in_memory import (
    KEYS,
    OTHER,
    ROOM,
    FakeRedis,
    Saved,
    everything,
    member,
    named,
    nothing,
    settled,
    started,
    until,
)


@pytest.fixture
def left_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was left counts as left longer ago than a node remembers: it is found on the lists in Redis, or never."""
    monkeypatch.setattr(space, "LEFT_OF_LATE", -1.0)


async def left_last(redis: FakeRedis, presence: RedisPresence) -> Saved:
    """What Redis held just before the only member of `ROOM` left."""
    await presence.enter(ROOM, member("a"))
    before = redis.saved()
    await presence.leave(ROOM, "a")
    return before


async def test_members_are_put_back_after_redis_lost_everything() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        for number in range(600):  # more than a batch
            await presence.enter(ROOM, member(str(number)))
        redis.flush()
        presence.distrust()
        await until(lambda: redis.counted(ROOM) == 600, "all are back")
        assert redis.sets[KEYS.node_topics("/", "n-1")] == {KEYS.channel(ROOM)}
    assert redis.is_empty


async def test_putting_members_back_is_repeated_until_it_succeeds() -> None:
    redis = FakeRedis()
    async with started(redis, lease=1.0) as presence:
        for topic in (ROOM, OTHER):
            await presence.enter(topic, member("a"))
        redis.flush()
        redis.refuse = lambda command: command.name == "enter" and command.keys[0] == KEYS.nodes(OTHER)
        redis.asked.clear()
        presence.distrust()
        await until(lambda: "enter" in redis.asked, "a member was refused")
        await settled()
        redis.refuse = nothing
        await until(lambda: redis.counted(ROOM) == redis.counted(OTHER) == 1, "both are back")


async def test_after_renewals_failed_members_that_redis_lacks_are_put_back() -> None:
    redis = FakeRedis()
    async with started(redis, lease=1.0) as presence:
        await presence.enter(ROOM, member("a"))
        redis.refuse = named("renew")
        redis.asked.clear()
        await until(lambda: "renew" in redis.asked, "a renewal failed")
        redis.hashes.clear()
        redis.refuse = nothing
        await until(lambda: redis.inside(ROOM) == {"a"}, "the member is back")


async def test_who_leaves_while_being_put_back_stays_out() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        await presence.enter(ROOM, member("b"))
        redis.flush()
        redis.hold("HKEYS")
        redis.asked.clear()
        presence.distrust()
        await until(lambda: "HKEYS" in redis.asked, "Redis is being compared")
        await presence.leave(ROOM, "b")
        redis.let_go("HKEYS")
        await until(lambda: redis.inside(ROOM) == {"a"}, "the other one is back")
        presence.distrust()
        await settled()
        assert redis.inside(ROOM) == {"a"}


async def test_a_comparison_puts_nobody_in_whose_entering_may_yet_be_refused() -> None:
    redis = FakeRedis()
    async with started(redis) as presence, started(redis, "m") as other:
        await other.enter(ROOM, member("a"))
        await presence.enter(ROOM, member("b"))
        redis.hold("HKEYS")
        redis.asked.clear()
        presence.distrust()
        await until(lambda: "HKEYS" in redis.asked, "Redis is being compared")
        redis.hold("enter")
        entering = asyncio.create_task(presence.enter(ROOM, member("c"), limit=2))
        await until(lambda: redis.asked.count("enter") == 2, "it is under way")
        redis.let_go("HKEYS")
        await settled()
        redis.let_go("enter")
        assert not await entering
        await settled()
        assert redis.inside(ROOM) == {"a", "b"}


async def test_who_leaves_between_two_batches_of_members_put_back_stays_out() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        names = [str(number) for number in range(BATCH + 50)]
        for name in names:
            await presence.enter(ROOM, member(name))
        redis.hashes.clear()
        redis.hold("HKEYS")
        redis.asked.clear()
        presence.distrust()
        await until(lambda: "HKEYS" in redis.asked, "Redis is being compared")
        redis.hold("enter")
        redis.let_go("HKEYS")
        await until(lambda: redis.counted(ROOM) == BATCH, "the first batch is back")
        await presence.leave(ROOM, names[-1])
        redis.let_go("enter")
        await until(lambda: redis.counted(ROOM) >= len(names) - 1, "the second batch is back")
        assert redis.inside(ROOM) == set(names[:-1])


async def test_members_that_a_server_lost_are_put_back_when_another_takes_over() -> None:
    redis = FakeRedis()
    async with started(redis) as presence, started(redis, "m"):
        await presence.enter(ROOM, member("a"))
        redis.hashes.clear()
        redis.server = b"two"
        redis.now += 8.0  # the next enter renews the lease first
        await presence.enter(OTHER, member("b"))
        await until(lambda: redis.inside(ROOM) == {"a"}, "the member is back")


@pytest.mark.parametrize("ago", [0.0, 2 * LEFT_OF_LATE])
async def test_who_left_last_is_no_ghost_where_a_server_takes_over_that_does_not_know(ago: float) -> None:
    redis = FakeRedis()
    async with started(redis, lease=1.0) as presence:
        before = await left_last(redis, presence)
        redis.now += ago
        redis.take_over(before)
        assert redis.counted(ROOM) == 1
        await until(lambda: redis.counted(ROOM) == 0, "the ghost is gone")
    assert redis.is_empty


async def test_who_left_last_is_no_ghost_where_the_nodes_list_is_on_another_server_than_the_room() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        redis.hashes, *_ = await left_last(redis, presence)
        presence.distrust([OTHER])  # the link to the room's server came back; nobody listens to the room any more
        await until(lambda: redis.counted(ROOM) == 0, "the ghost is gone")
    assert redis.is_empty


@pytest.mark.usefixtures("left_long_ago")
async def test_what_a_node_has_under_two_former_names_is_removed_though_it_has_left_everything() -> None:
    redis = FakeRedis()
    async with started(redis, lease=1.0) as presence:
        before = await left_last(redis, presence)
        redis.flush()  # a server that is empty takes over for a moment, then one with older data
        redis.refuse = lambda command: command.name == "UNLINK"  # it is gone before the node is done
        presence.distrust()
        await until(lambda: b"n-1" in redis.leases, "the node began again")
        redis.take_over(before)
        redis.refuse = nothing
        presence.distrust()
        await until(lambda: b"n-2" in redis.leases, "the node began again, again")
        await until(lambda: redis.counted(ROOM) == 0 and not any(redis.sets.values()), "nothing is left")


@pytest.mark.usefixtures("left_long_ago")
async def test_a_node_that_stops_before_it_compared_leaves_no_ghost_of_who_left_last() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        before = await left_last(redis, presence)
        redis.take_over(before)  # and the node stops before it renews its lease, and so notices
        assert redis.counted(ROOM) == 1
    assert redis.counted(ROOM) == 0
    assert redis.is_empty


@pytest.mark.usefixtures("left_long_ago")
async def test_a_node_that_stops_before_it_compared_leaves_nothing_under_a_former_name() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        before = await left_last(redis, presence)
        redis.refuse = named("SRANDMEMBER")  # its old list cannot be read yet
        redis.flush()
        presence.distrust()
        await until(lambda: b"n-1" in redis.leases, "the node began again")
        redis.take_over(before)
        redis.refuse = nothing
    assert redis.counted(ROOM) == 0
    assert not any(redis.sets.values())


async def test_a_member_nobody_here_knows_is_removed() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.hashes[KEYS.members(ROOM, "n-0")][b"ghost"] = b"\x92\xc0\x01"
        presence.distrust()
        await until(lambda: redis.inside(ROOM) == {"a"}, "the ghost is gone")


async def test_only_the_distrusted_topics_are_compared_each_once_however_often_it_is_said() -> None:
    redis = FakeRedis()
    many = [Topic("/", "room", f"room{number}") for number in range(BATCH + 50)]
    async with started(redis) as presence:
        for topic in many:
            await presence.enter(topic, member("a"))
        await settled()
        redis.hashes.clear()  # the lease is on another shard
        redis.asked.clear()
        for topic in many[10:]:
            presence.distrust([topic, Topic("/", "room", "nobody-is-in"), Topic("/unknown", "room", "x")])
        await until(lambda: all(redis.inside(topic) for topic in many[10:]), "all of them are back")
        await settled()
        assert redis.asked.count("HKEYS") == len(many) - 10


async def test_a_full_server_keeps_no_topic_from_being_compared_and_no_ghost_in() -> None:
    redis = FakeRedis()
    many = [Topic("/", "room", f"room{number}") for number in range(BATCH + 50)]
    async with started(redis) as presence:
        for topic in many:
            await presence.enter(topic, member("a"))
            redis.hashes[KEYS.members(topic, "n-0")][b"ghost"] = b"\x92\xc0\x01"
        redis.refuse = named("SADD")  # as it needs memory, also for what is on the list already
        presence.distrust()
        await until(lambda: all(redis.inside(topic) == {"a"} for topic in many), "the ghosts are gone")
        await settled()
        redis.refuse = nothing
        redis.sets.clear()
        presence.distrust()
        listed = KEYS.node_topics("/", "n-0")
        await until(lambda: len(redis.sets.get(listed, ())) == len(many), "all of them are listed")


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave", "flush", "lose lease", "compare", "wait"]),
        st.sampled_from([ROOM, OTHER]),
        st.sampled_from("abc"),
        st.sampled_from([nothing, named("enter"), named("leave"), named("SADD", "HKEYS"), everything]),
        st.booleans(),
    ),
    max_size=25,
)


@given(OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_whatever_failed_in_the_end_redis_holds_exactly_who_is_in(
    operations: list[tuple[str, Topic, str, Callable[[Command], bool], bool]],
) -> None:
    async def main() -> None:
        redis = FakeRedis()
        inside: dict[Topic, set[str]] = {ROOM: set(), OTHER: set()}
        async with started(redis) as presence:
            for what, topic, name, fault, is_carried_out in operations:
                redis.lose_reply, redis.refuse = (fault, nothing) if is_carried_out else (nothing, fault)
                if what == "enter":
                    try:
                        assert await presence.enter(topic, member(name))
                        inside[topic].add(name)
                    except BackendError:
                        inside[topic].discard(name)
                elif what == "leave":
                    await presence.leave(topic, name)
                    inside[topic].discard(name)
                elif what == "flush":
                    redis.flush()
                elif what == "lose lease":
                    redis.leases.clear()
                elif what == "compare":
                    presence.distrust()
                else:
                    await asyncio.sleep(0.002)
            redis.lose_reply = redis.refuse = nothing
            presence.distrust()
            await until(
                lambda: all(
                    redis.inside(topic) == inside[topic] and redis.counted(topic) == len(inside[topic])
                    for topic in inside
                ),
                f"Redis holds {inside}",
            )
        assert redis.is_empty

    asyncio.run(main())
