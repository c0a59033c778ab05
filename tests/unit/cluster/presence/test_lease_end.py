"""A lease counts from when it was asked for, not from when the answer came: only so does it end here before it ends
for the others, who by then may have removed this node's members.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.presence.members import RedisPresence
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic
from tests.virtual_time import in_virtual_time
from tests.watching import turns

ROOM = Topic("/", "room", "lobby")
LEASE = 100.0
"""So long that this node does not think of renewing it by itself while a test runs."""


class FakeRedis:
    """Grants everything, as soon as `gate` is open; a renewal only while `renews`. Its clock is the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.renews = True
        self.asked: list[str] = []

    def clock(self) -> float:
        return self.now

    async def run(self, command: Command) -> Any:
        return (await self.run_all([command]))[0]

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        self.asked += [command.name for command in commands]
        await self.gate.wait()
        return [self._reply(command) for command in commands]

    def _reply(self, command: Command) -> Any:
        if command.name == "renew":
            if not self.renews:
                raise BackendError("Redis does not answer")
            return [1, int(LEASE * 1000), b"server", round(self.now * 1000)]
        return 1


def nobody(_topic: Topic, _members: Sequence[Member]) -> None:
    """Nobody is lost here."""


@asynccontextmanager
async def started(redis: FakeRedis, took: float) -> AsyncIterator[RedisPresence]:
    """Presence whose first lease was answered `took` seconds after it was asked for."""
    tasks = Tasks()
    options = RedisOptions(lease=LEASE, command_timeout=0.05)
    presence = RedisPresence(redis, Keys("t"), "n", tasks, options, clock=redis.clock)
    presence.attach("/", nobody)
    redis.gate.clear()
    starting = asyncio.create_task(presence.start("/"))
    await turns(lambda: redis.asked)
    redis.now += took
    redis.gate.set()
    await starting
    try:
        yield presence
    finally:
        await presence.stop("/", nobody)
        await tasks.close(1)


@pytest.mark.parametrize("took", [0.0, 40.0, 99.0])
@in_virtual_time
async def test_a_lease_ends_so_many_seconds_after_it_was_asked_for(took: float) -> None:
    redis = FakeRedis()
    async with started(redis, took) as presence:
        redis.renews = False
        redis.now += LEASE - took - 0.5
        assert await presence.enter(ROOM, Member("a", None, 1.0))
        redis.now += 0.5
        with pytest.raises(BackendError, match="this node's lease in '/' has ended"):
            await presence.enter(ROOM, Member("b", None, 1.0))


@in_virtual_time
async def test_an_answer_later_than_the_lease_is_long_grants_nothing() -> None:
    redis = FakeRedis()
    async with started(redis, LEASE) as presence:
        redis.renews = False
        with pytest.raises(BackendError, match="has ended"):
            await presence.enter(ROOM, Member("a", None, 1.0))


@in_virtual_time
async def test_a_renewal_counts_from_its_own_question() -> None:
    redis = FakeRedis()
    async with started(redis, 0.0) as presence:
        redis.now += LEASE
        redis.gate.clear()
        entering = asyncio.create_task(presence.enter(ROOM, Member("a", None, 1.0)))
        await turns(lambda: redis.asked.count("renew") == 2)
        redis.now += 60
        redis.gate.set()
        assert await entering
        redis.renews = False
        redis.now += LEASE - 60 - 0.5
        assert await presence.enter(ROOM, Member("b", None, 1.0))
        redis.now += 0.5
        with pytest.raises(BackendError, match="has ended"):
            await presence.enter(ROOM, Member("c", None, 1.0))
