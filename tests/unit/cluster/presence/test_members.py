"""The local side of presence: who enters and leaves, on a Redis that fails when told to."""

from __future__ import annotations

import asyncio
import logging

import pytest

from socketspec.cluster.options import RedisOptions
from socketspec.cluster.presence import members
from socketspec.cluster.presence.members import RedisPresence
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Topic
from tests.unit.cluster.presence.redis_in_memory import (
    KEYS,
    OTHER,
    ROOM,
    FakeRedis,
    Told,
    everything,
    judges,
    leave_behind,
    member,
    named,
    nothing,
    started,
    until,
)


async def test_who_is_in_already_is_in_without_asking() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.asked.clear()
        assert await presence.enter(ROOM, member("a"), limit=1)
        assert redis.asked == []


async def test_entering_what_is_not_started_is_an_error_and_leaving_is_none() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        elsewhere = Topic("/other", "room", "lobby")
        await presence.leave(elsewhere, "a")
        with pytest.raises(BackendError, match="not started"):
            await presence.enter(elsewhere, member("a"))
    await presence.leave(ROOM, "a")
    with pytest.raises(BackendError, match="stopped"):
        await presence.enter(ROOM, member("a"))
    assert redis.is_empty


async def test_an_enter_whose_fate_is_unknown_is_undone() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        redis.lose_reply = named("enter")
        with pytest.raises(BackendError, match="nobody knows"):
            await presence.enter(ROOM, member("a"))
        await until(lambda: redis.inside(ROOM) == set() and redis.counted(ROOM) == 0, "the member is removed")


async def test_a_cancelled_enter_is_undone() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        redis.hold("enter")
        entering = asyncio.create_task(presence.enter(ROOM, member("a")))
        await until(lambda: redis.inside(ROOM) == {"a"}, "Redis has carried it out")
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        await until(lambda: redis.inside(ROOM) == set(), "the member is removed")


async def test_nobody_is_in_a_topic_that_a_reaper_would_not_find() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        redis.refuse = named("SADD")
        with pytest.raises(BackendError):
            await presence.enter(ROOM, member("a"))
        await until(lambda: redis.inside(ROOM) == set(), "the member is removed")
        redis.refuse = nothing
        assert await presence.enter(ROOM, member("a"))
        assert redis.sets[KEYS.node_topics("/", "n-0")] == {KEYS.channel(ROOM)}


async def test_who_finds_a_room_full_leaves_nothing_behind() -> None:
    redis = FakeRedis()
    async with started(redis) as presence, started(redis, "m") as other:
        await presence.enter(ROOM, member("a"), limit=1)
        assert not await other.enter(ROOM, member("b"), limit=1)
        await until(lambda: not redis.sets[KEYS.node_topics("/", "m-0")], "the topic is off the list")
        assert redis.inside(ROOM) == {"a"}


async def test_leaving_does_not_wait_for_a_redis_that_is_away_and_is_repeated() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        for name in "abc":
            await presence.enter(ROOM, member(name))
        redis.refuse = everything
        for name in "ab":
            await presence.leave(ROOM, name)
        assert redis.inside(ROOM) == {"a", "b", "c"}
        redis.refuse = nothing
        await until(lambda: redis.inside(ROOM) == {"c"}, "both have left")
        assert redis.counted(ROOM) == 1


async def test_who_comes_back_while_a_leave_is_owed_stays_in() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.refuse = named("leave")
        await presence.leave(ROOM, "a")
        assert await presence.enter(ROOM, member("a"), limit=1)
        redis.refuse = nothing
        await presence.enter(ROOM, member("b"))
        await presence.leave(ROOM, "b")
        assert redis.inside(ROOM) == {"a"}
        await presence.leave(ROOM, "a")
        assert redis.inside(ROOM) == set()


async def test_who_comes_back_and_leaves_again_while_the_first_leave_is_under_way_is_out() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.hold("leave")
        await presence.leave(ROOM, "a")
        assert await presence.enter(ROOM, member("a"))
        await presence.leave(ROOM, "a")
        assert redis.inside(ROOM) == {"a"}
        redis.let_go("leave")
        await until(lambda: redis.inside(ROOM) == set(), "the second leave is carried out")


async def test_every_topic_with_members_is_on_the_list_also_when_it_was_empty_in_between() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        await presence.enter(OTHER, member("a"))
        await presence.leave(ROOM, "a")
        await presence.enter(ROOM, member("b"))
        assert redis.sets[KEYS.node_topics("/", "n-0")] == {KEYS.channel(ROOM), KEYS.channel(OTHER)}


async def test_after_the_last_member_left_the_topic_is_off_the_list() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        await presence.enter(ROOM, member("b"))
        await presence.leave(ROOM, "a")
        assert redis.sets[KEYS.node_topics("/", "n-0")]
        await presence.leave(ROOM, "b")
        assert not redis.sets[KEYS.node_topics("/", "n-0")]


async def test_members_that_cannot_be_read_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.hashes[KEYS.members(ROOM, "n-0")][b"b"] = b"\xc1"
        with caplog.at_level(logging.WARNING):
            assert list(await presence.members(ROOM)) == [member("a")]
    assert "cannot be read" in caplog.text


async def test_a_start_that_failed_can_be_tried_again_and_tells_once() -> None:
    redis, told = FakeRedis(), Told()
    tasks = Tasks()
    presence = RedisPresence(redis, KEYS, "n", tasks, RedisOptions(), clock=redis.clock)
    redis.refuse = everything
    presence.attach("/", told)
    with pytest.raises(BackendError):
        await presence.start("/")
    redis.refuse = nothing
    leave_behind(redis, ROOM)
    presence.attach("/", told)
    await presence.start("/")
    await judges(redis, presence)
    await until(lambda: bool(told.by_topic), "the dead node is found")
    await presence.stop("/", told)
    await tasks.close(1)
    assert told.by_topic == {ROOM: ["x"]}


async def test_two_apps_of_one_namespace_share_a_lease_and_a_new_start_has_a_new_name() -> None:
    redis, first, second = FakeRedis(), Told(), Told()
    async with started(redis, lost=first) as presence:
        presence.attach("/", second)
        await presence.start("/")
        assert list(redis.leases) == [b"n-0"]
        await presence.enter(ROOM, member("a"))
        await presence.stop("/", second)
        assert redis.inside(ROOM) == {"a"}
        await presence.stop("/", first)
        assert redis.is_empty
        presence.attach("/", first)
        await presence.start("/")
        assert list(redis.leases) == [b"n-1"]


@pytest.mark.parametrize("stopped", [0, 1])
async def test_of_two_apps_the_one_that_did_not_stop_is_told_of_lost_members(stopped: int) -> None:
    redis, apps = FakeRedis(), (Told(), Told())
    async with started(redis, lost=apps[0]) as presence:
        presence.attach("/", apps[1])
        await presence.start("/")
        await presence.stop("/", apps[stopped])
        leave_behind(redis, ROOM)
        await judges(redis, presence)
        await until(lambda: any(app.by_topic for app in apps), "the dead node is found")
        assert [app.by_topic for app in apps] == [{ROOM: ["x"]} if number != stopped else {} for number in range(2)]
        presence.attach("/", apps[stopped])
        await presence.start("/")
        await presence.stop("/", apps[1 - stopped])


async def test_a_stop_while_redis_is_away_ends_and_says_what_that_means(caplog: pytest.LogCaptureFixture) -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.refuse = everything
    assert "ends with its lease" in caplog.text


async def test_a_stop_waits_for_redis_where_it_has_members_that_were_told_to_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else whoever buries this node later tells them once more."""
    monkeypatch.setattr(members, "LAST_PATIENCE", 5.0)
    redis, told = FakeRedis(), Told()
    async with started(redis, lost=told) as presence:
        await presence.enter(ROOM, member("a"))
        redis.refuse = everything
        await presence.leave(ROOM, "a")
        stopping = asyncio.create_task(presence.stop("/", told))
        await asyncio.sleep(0.1)
        assert not stopping.done()
        assert redis.inside(ROOM) == {"a"}
        redis.refuse = nothing
        await stopping
        assert redis.is_empty


async def test_a_node_whose_lease_has_ended_says_so() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        assert presence.ended() == ""
        redis.refuse = everything
        redis.now += 8.0 + 2.5
        assert "lease in '/' has ended 2.5 s ago, and Redis does not renew it: nobody can enter" in presence.ended()
        assert presence.why_closed("/") == "", "it may be renewed in a moment"
        presence.distrust()
        await until(lambda: "ended" in presence.why_closed("/"), "that was tried in vain")
        redis.refuse = nothing
        await until(lambda: presence.ended() == presence.why_closed("/") == "", "it is renewed")
    assert presence.ended() == presence.why_closed("/") == ""
