"""How often a node renews its lease, and compares its topics with Redis. In virtual time: no test waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.presence import leases
from socketspec.cluster.presence.members import RedisPresence
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic
from tests.virtual_time import in_virtual_time, now

KEYS = Keys("t")
LEASE, TTL = 8.0, 80.0
RETRY = 0.5
"""Seconds between two tries, as they are in life."""
MEMBER = "a"
TOPICS = [Topic("/", "room", str(number)) for number in range(30)]


class Redis:
    """Grants everything, and has every member; notes when it was asked for what."""

    def __init__(self) -> None:
        self.is_away = self.has_lost_the_lease = False
        self.next_ends = int(LEASE * 1000)
        """Milliseconds until the next lease of any node ends."""
        self.renewed: list[float] = []
        self.compared: list[tuple[float, bytes]] = []
        """When a topic's members were read, and under which key."""

    async def run(self, command: Command) -> Any:
        if command.name == "renew":
            self.renewed.append(now())
        if self.is_away:
            raise BackendError("redis is gone")
        if command.name == "renew":
            begins = command.args[3] == "1"
            if begins or not self.has_lost_the_lease:
                self.has_lost_the_lease = False
                return [1, self.next_ends, b"server", round(now() * 1000)]
            return [0, 0]
        if command.name == "HKEYS":
            self.compared.append((now(), command.keys[0]))
            return [MEMBER.encode()]
        return [] if command.name == "SRANDMEMBER" else 1

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        return [await self.run(command) for command in commands]


def nobody(_topic: Topic, _members: Sequence[Member]) -> None:
    """Nobody is lost here."""


@asynccontextmanager
async def started(redis: Redis) -> AsyncIterator[tuple[Redis, RedisPresence]]:
    """A node with a member in each of `TOPICS`."""
    tasks, clock = Tasks(), asyncio.get_running_loop().time
    options = RedisOptions(lease=LEASE, command_timeout=0.05)
    presence = RedisPresence(redis, KEYS, "n", tasks, options, ttl=TTL, clock=clock)
    presence.attach("/", nobody)
    await presence.start("/")
    for topic in TOPICS:
        await presence.enter(topic, Member(MEMBER, None, 1.0))
    yield redis, presence
    await presence.stop("/", nobody)
    await tasks.close(1)


async def watched(seconds: float) -> Redis:
    """What Redis was asked in so much time."""
    async with started(Redis()) as (redis, _):
        await asyncio.sleep(seconds)
        return redis


@in_virtual_time
async def test_a_lease_is_renewed_four_times_while_it_lasts() -> None:
    redis = await watched(3 * LEASE)
    steps = [after - before for before, after in pairwise(redis.renewed)]
    assert steps == pytest.approx([LEASE / 4] * len(steps), abs=0.01)
    assert len(steps) >= 11


@in_virtual_time
async def test_each_topic_is_compared_about_three_times_while_its_keys_last_and_not_all_at_once() -> None:
    redis = await watched(3 * TTL)
    for topic in TOPICS:
        times = [when for when, key in redis.compared if key == KEYS.members(topic, "n-0")]
        assert len(times) >= 7
        for before, after in pairwise(times):
            assert TTL / 3 <= after - before <= TTL / 3 + LEASE / 4
    at_once = Counter(round(when, 3) for when, _ in redis.compared)
    assert max(at_once.values()) == len(TOPICS) * LEASE / TTL


@in_virtual_time
async def test_a_renewal_that_fails_is_not_tried_more_often_because_many_want_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "RETRY", RETRY)
    async with started(Redis()) as (redis, presence):
        redis.is_away = True
        await asyncio.sleep(LEASE + 1)
        began, asked = now(), len(redis.renewed)
        for number in range(100):
            with pytest.raises(BackendError, match="has ended"):
                await presence.enter(TOPICS[0], Member(str(number), None, 1.0))
        assert len(redis.renewed) - asked <= (now() - began) / RETRY + 1


@in_virtual_time
async def test_where_another_nodes_lease_ends_soon_the_next_renewal_comes_right_after_it() -> None:
    async with started(Redis()) as (redis, _):
        redis.next_ends = 700
        await asyncio.sleep(LEASE)
        first, *others = [after - before for before, after in pairwise(redis.renewed)]
        assert first == pytest.approx(LEASE / 4, abs=1e-4)
        assert others == pytest.approx([0.7 + leases.SOON] * len(others), abs=1e-4)
        assert len(others) == int((LEASE - first) / 0.72)


@in_virtual_time
async def test_a_lost_lease_is_begun_again_at_once_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with started(Redis()) as (redis, _):
        redis.has_lost_the_lease = True
        await asyncio.sleep(LEASE / 4 + 0.01)
        _, *renewed = redis.renewed
        assert renewed == pytest.approx([LEASE / 4] * 2, abs=1e-4)
        assert not redis.has_lost_the_lease
        assert [record.getMessage() for record in caplog.records] == [
            "The lease of '/' was lost; this node's members are entered anew"
        ]
