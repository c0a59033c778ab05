"""The local side of presence: what a node remembers, repeats and puts right, on a Redis that fails when told to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.presence import members as module
from socketspec.cluster.presence.members import RedisPresence
from socketspec.cluster.presence.space import Space
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic

KEYS = Keys("t")
ROOM, OTHER = Topic("/", "room", "lobby"), Topic("/", "room", "other")
LEASES = KEYS.leases("/")
Hash = dict[bytes, bytes]


def member(name: str) -> Member:
    return Member(name, f"user-{name}", 1.0)


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


class FakeRedis:
    """Does what the scripts do, by one clock that tests move; fails and waits where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.hashes: dict[bytes, Hash] = {}
        self.sets: dict[bytes, set[bytes]] = {}
        self.leases: dict[bytes, float] = {}
        self.server = b"one"
        self.asked: list[str] = []
        self.refuse: Callable[[Command], bool] = lambda _: False
        """Commands that are not carried out."""
        self.lose_reply: Callable[[Command], bool] = lambda _: False
        """Commands that are carried out, and answered by an error."""
        self.held: dict[str, asyncio.Event] = {}
        """By name: what the answers to such commands wait for."""

    def clock(self) -> float:
        return self.now

    async def run(self, command: Command) -> Any:
        return (await self.run_all([command]))[0]

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        replies = [self._carry_out(command) for command in commands]
        await asyncio.sleep(0)
        for name in {command.name for command in commands} & self.held.keys():
            await self.held[name].wait()
        for reply in replies:
            if isinstance(reply, BackendError):
                raise reply
        return replies

    def _carry_out(self, command: Command) -> Any:
        self.asked.append(command.name)
        if self.refuse(command):
            return BackendError("was not carried out")
        reply = getattr(self, f"_{command.name.lower()}")(command.keys, [encoded(arg) for arg in command.args])
        return BackendError("nobody knows") if self.lose_reply(command) else reply

    def hold(self, name: str) -> None:
        """Carry out the commands of this name, but give no answer until `let_go`."""
        self.held[name] = asyncio.Event()

    def let_go(self, name: str) -> None:
        self.held.pop(name).set()

    def flush(self) -> None:
        self.hashes.clear()
        self.sets.clear()
        self.leases.clear()

    def inside(self, topic: Topic) -> set[str]:
        """Everybody in `topic`, under whichever name of whichever node."""
        start = KEYS.members(topic, "")
        return {id.decode() for key, ids in self.hashes.items() if key.startswith(start) for id in ids}

    def counted(self, topic: Topic) -> int:
        return sum(map(int, self.hashes.get(KEYS.nodes(topic), {}).values()))

    @property
    def is_empty(self) -> bool:
        return not (any(self.hashes.values()) or any(self.sets.values()) or self.leases)

    def _count(self, keys: Sequence[bytes], node: bytes) -> None:
        own = len(self.hashes.get(keys[1], ()))
        counts = self.hashes.setdefault(keys[0], {})
        counts[node] = encoded(own)
        if not own:
            del counts[node]

    def _enter(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        node, limit, _, *members = args
        ours = self.hashes.setdefault(keys[1], {})
        others = sum(int(value) for key, value in self.hashes.get(keys[0], {}).items() if key != node)
        all_in = 1
        for id, packed in zip(members[::2], members[1::2], strict=True):
            if id not in ours and 0 <= int(limit) <= others + len(ours):
                all_in = 0
            else:
                ours.setdefault(id, packed)
        self._count(keys, node)
        return all_in

    def _leave(self, keys: Sequence[bytes], args: list[bytes]) -> int:
        for id in args[1:]:
            self.hashes.get(keys[1], {}).pop(id, None)
        self._count(keys, args[0])
        return len(self.hashes.get(keys[1], ()))

    def _reap(self, keys: Sequence[bytes], args: list[bytes]) -> list[bytes]:
        gone = self.hashes.pop(keys[1], {})
        self._count(keys, args[0])
        return [part for item in gone.items() for part in item]

    def _renew(self, _keys: Sequence[bytes], args: list[bytes]) -> list[Any]:
        if args[3] != b"1" and args[0] not in self.leases:
            return [0]
        self.leases[args[0]] = self.now + int(args[1]) / 1000
        ended = [node.removeprefix(b"!") for node, end in self.leases.items() if end <= self.now]
        return [1, 60_000, self.server, *ended]

    def _claim(self, keys: Sequence[bytes], args: list[bytes]) -> list[bytes]:
        self.leases.pop(args[0], None)
        topics = self.sets.setdefault(keys[1], set())
        topics.difference_update(args[5:])
        return [b"1", *list(topics)[: int(args[4])]] if topics else []

    def _sadd(self, keys: Sequence[bytes], args: list[bytes]) -> None:
        self.sets.setdefault(keys[0], set()).update(args)

    def _srem(self, keys: Sequence[bytes], args: list[bytes]) -> None:
        self.sets.get(keys[0], set()).difference_update(args)

    def _unlink(self, keys: Sequence[bytes], _args: list[bytes]) -> None:
        self.sets.pop(keys[0], None)

    def _zrem(self, _keys: Sequence[bytes], args: list[bytes]) -> None:
        self.leases.pop(args[0], None)

    def _pexpire(self, _keys: Sequence[bytes], _args: list[bytes]) -> int:
        return 1

    def _hkeys(self, keys: Sequence[bytes], _args: list[bytes]) -> list[bytes]:
        return list(self.hashes.get(keys[0], {}))

    def _hvals(self, keys: Sequence[bytes], _args: list[bytes]) -> list[bytes]:
        return list(self.hashes.get(keys[0], {}).values())

    def _hgetall(self, keys: Sequence[bytes], _args: list[bytes]) -> list[bytes]:
        return [part for item in self.hashes.get(keys[0], {}).items() for part in item]


class Told:
    """A `Lost` that takes note."""

    def __init__(self) -> None:
        self.by_topic: dict[Topic, list[str]] = {}

    def __call__(self, topic: Topic, members: Sequence[Member]) -> None:
        self.by_topic.setdefault(topic, []).extend(item.connection_id for item in members)


def named(*names: str) -> Callable[[Command], bool]:
    return lambda command: command.name in names


def everything(_command: Command) -> bool:
    return True


def nothing(_command: Command) -> bool:
    return False


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY", 0.002)
    monkeypatch.setattr(module, "LEAVE_PATIENCE", 0.02)


@asynccontextmanager
async def started(
    redis: FakeRedis, node: str = "n", lost: Told | None = None, *, patience: float = 5.0, lease: float = 8.0
) -> AsyncIterator[RedisPresence]:
    tasks = Tasks()
    options = RedisOptions(lease=lease, command_timeout=patience)
    presence = RedisPresence(redis, KEYS, node, tasks, options, clock=redis.clock)
    told = lost or Told()
    presence.attach("/", told)
    await presence.start("/")
    try:
        yield presence
    finally:
        await presence.stop("/", told)
        await tasks.close(1)


async def settled() -> None:
    """Let the background work go on until nothing more can come of it."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(check: Callable[[], bool], what: str) -> None:
    """Let the background work go on until `check`."""
    for _ in range(2000):
        if check():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"never came: {what}")


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
        redis.refuse = named("reap")  # the old name is not cleared away yet
        entering = asyncio.create_task(presence.enter(ROOM, member("a"), limit=1))
        await until(lambda: redis.inside(ROOM) == {"a"}, "it is under way")
        redis.leases.clear()
        presence.distrust()
        await until(lambda: b"n-1" in redis.leases, "the lease is begun again")
        redis.let_go("enter")
        assert await entering
        assert redis.hashes[KEYS.nodes(ROOM)] == {b"n-1": b"1"}


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
        names = [str(number) for number in range(module.BATCH + 50)]
        for name in names:
            await presence.enter(ROOM, member(name))
        redis.hashes.clear()
        redis.hold("HKEYS")
        redis.asked.clear()
        presence.distrust()
        await until(lambda: "HKEYS" in redis.asked, "Redis is being compared")
        redis.hold("enter")
        redis.let_go("HKEYS")
        await until(lambda: redis.counted(ROOM) == module.BATCH, "the first batch is back")
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


async def test_a_member_nobody_here_knows_is_removed() -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.hashes[KEYS.members(ROOM, "n-0")][b"ghost"] = b"\x92\xc0\x01"
        presence.distrust()
        await until(lambda: redis.inside(ROOM) == {"a"}, "the ghost is gone")


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


async def test_the_members_of_a_dead_node_are_told_though_the_hook_fails(caplog: pytest.LogCaptureFixture) -> None:
    redis = FakeRedis()
    told = Told()

    class Failing(Told):
        def __call__(self, topic: Topic, members: Sequence[Member]) -> None:
            told(topic, members)
            raise ValueError("a bug in a hook")

    leave_behind(redis, ROOM, OTHER)
    async with started(redis, lost=Failing()) as presence:
        presence.distrust()
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
        presence.distrust()
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
        presence.distrust()
        await until(lambda: told.by_topic == {OTHER: ["x"]}, "the one elsewhere is told")
        await settled()
    assert told.by_topic == {OTHER: ["x"]}


def leave_behind(redis: FakeRedis, *topics: Topic) -> None:
    """What a node leaves that died with one member in each of `topics`."""
    redis.leases[b"dead-0"] = 0.0
    for topic in topics:
        redis.hashes[KEYS.members(topic, "dead-0")] = {b"x": b"\x92\xc0\x01"}
        redis.hashes.setdefault(KEYS.nodes(topic), {})[b"dead-0"] = b"1"
        redis.sets.setdefault(KEYS.node_topics("/", "dead-0"), set()).add(KEYS.channel(topic))


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
    presence.distrust()
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
        presence.distrust()
        await until(lambda: any(app.by_topic for app in apps), "the dead node is found")
        assert [app.by_topic for app in apps] == [{ROOM: ["x"]} if number != stopped else {} for number in range(2)]
        presence.attach("/", apps[stopped])
        await presence.start("/")
        await presence.stop("/", apps[1 - stopped])


async def test_only_the_distrusted_topics_are_compared_each_once_however_often_it_is_said() -> None:
    redis = FakeRedis()
    many = [Topic("/", "room", f"room{number}") for number in range(module.BATCH + 50)]
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


async def test_a_stop_while_redis_is_away_ends_and_says_what_that_means(caplog: pytest.LogCaptureFixture) -> None:
    redis = FakeRedis()
    async with started(redis) as presence:
        await presence.enter(ROOM, member("a"))
        redis.refuse = everything
    assert "ends with its lease" in caplog.text


@given(st.integers(0, 500), st.integers(1, 100))
def test_in_each_period_every_topic_has_one_turn_and_the_turns_are_spread_evenly(topics: int, steps: int) -> None:
    space = Space("/", "n-0")
    space.members = {Topic("/", "room", str(number)): {"a": b""} for number in range(topics)}
    space.next_round = 100.0
    assert space.next_turns(99.0, 100.0, steps) == []
    for began in (100.0, 200.0):
        turns = [space.next_turns(began + step / steps, 100.0, steps) for step in range(steps)]
        assert sorted(topic for turn in turns for topic in turn) == sorted(space.members)
        assert max(map(len, turns)) <= -(-topics // steps)
        assert space.next_turns(began + 99.0, 100.0, steps) == []


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
