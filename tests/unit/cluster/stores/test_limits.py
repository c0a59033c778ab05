"""The local side of shared rate limits: what costs a command, what happens while Redis is away, how much is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.backend.rate_buckets import TokenBucket
from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.stores.limits import AWAY_SECONDS
from socketspec.errors import BackendError
from tests.unit.cluster.stores.watched_limits import WatchedLimits


class FakeRedis:
    """A runner with one clock for all, which takes from real token buckets; or answers what `answer` does."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.commands: list[Command] = []
        self.buckets: dict[bytes, TokenBucket] = {}
        self.answer: Callable[[], Any] | None = None
        self.gate: asyncio.Event | None = None

    def clock(self) -> float:
        return self.now

    def limits(self, **options: Any) -> WatchedLimits:
        return WatchedLimits(self, Keys(), clock=self.clock, **options)

    async def run(self, command: Command) -> Any:
        self.commands.append(command)
        if self.gate is not None:
            await self.gate.wait()
        if self.answer is not None:
            return self.answer()
        (key,), (rate, capacity) = command.keys, command.args
        bucket = self.buckets.setdefault(key, TokenBucket(float(rate), float(capacity), self.now))
        return repr(bucket.take(self.now)).encode()

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        return [await self.run(command) for command in commands]

    def go_away(self) -> None:
        def refuse() -> Any:
            raise BackendError("Redis is out of reach")

        self.answer = refuse


async def take(
    limits: WatchedLimits, count: int = 1, key: str = "k", rate: float = 1, capacity: float = 3
) -> list[float]:
    return [await limits.take(key, rate=rate, capacity=capacity) for _ in range(count)]


async def test_a_flood_costs_redis_no_more_commands_than_the_limit_allows() -> None:
    redis = FakeRedis()
    waits = await take(redis.limits(), 1000)
    assert waits.count(0.0) == 3
    assert waits[-1] == pytest.approx(1.0)
    assert len(redis.commands) == 3


async def test_a_flood_of_concurrent_takes_costs_no_more_either() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    waits = await asyncio.gather(*(limits.take("k", rate=1, capacity=3) for _ in range(500)))
    assert waits.count(0.0) == len(redis.commands) == 3


async def test_what_redis_said_is_refused_here_until_then_without_asking_again() -> None:
    redis = FakeRedis()
    one, other = redis.limits(), redis.limits()
    assert await take(one, 3) == [0.0, 0.0, 0.0]
    assert await take(other) == [pytest.approx(1.0)]
    asked = len(redis.commands)
    redis.now += 0.4
    assert await take(other, 50) == [pytest.approx(0.6)] * 50
    assert len(redis.commands) == asked
    redis.now += 0.6
    assert await take(other) == [0.0]
    assert len(redis.commands) == asked + 1


async def test_a_token_that_redis_refused_does_not_count_against_the_node() -> None:
    """The clocks of a node and of Redis never agree to the millisecond: a refusal must not cost twice."""
    redis = FakeRedis()
    limits = redis.limits()
    assert await take(limits, 1, capacity=1) == [0.0]
    redis.now += 1.0
    redis.answer = lambda: b"0.002"
    assert await take(limits, 1, capacity=1) == [0.002]
    redis.now += 0.0021
    redis.answer = lambda: b"0"
    assert await take(limits, 1, capacity=1) == [0.0]


@given(steps=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), max_size=60), capacity=st.integers(1, 4))
def test_two_nodes_together_allow_exactly_what_one_bucket_would(steps: list[tuple[int, int]], capacity: int) -> None:
    async def run() -> None:
        redis = FakeRedis()
        nodes = [redis.limits(), redis.limits()]
        model = TokenBucket(2, capacity, redis.now)
        for quarters, node in steps:
            redis.now += quarters / 4
            expected = model.take(redis.now)
            (wait,) = await take(nodes[node], 1, rate=2, capacity=capacity)
            assert (wait > 0) is (expected > 0)
            assert wait <= expected + 1e-9  # a node that need not ask does not know what others have taken

    asyncio.run(run())


async def test_while_redis_is_away_the_local_bucket_limits_alone() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.go_away()
    waits = await take(limits, 10)
    assert waits[:3] == [0.0, 0.0, 0.0]
    assert min(waits[3:]) > 0
    redis.now += 1
    assert [wait > 0 for wait in await take(limits, 2)] == [False, True]


async def test_while_redis_is_away_it_is_asked_once_a_second() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.go_away()
    await take(limits)
    for _ in range(20):
        redis.now += AWAY_SECONDS / 4
        await asyncio.gather(*(limits.take(f"k{number}", rate=10, capacity=30) for number in range(10)))
    assert len(redis.commands) == 1 + 5


async def test_what_was_used_up_here_before_redis_went_away_stays_used_up() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    await take(limits, 3)
    redis.go_away()
    assert min(await take(limits, 5)) > 0


async def test_a_bucket_that_redis_refused_stays_refused_when_redis_goes_away() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.answer = lambda: b"5"
    assert await take(limits) == [5.0]
    redis.go_away()
    redis.now += 1
    assert await take(limits) == [4.0]


async def test_a_redis_that_is_back_is_used_again_and_both_changes_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "socketspec.cluster")
    redis = FakeRedis()
    limits = redis.limits()
    redis.go_away()
    for _ in range(5):
        await take(limits, 2)
        redis.now += AWAY_SECONDS
    redis.answer = None
    asked = len(redis.commands)
    assert await take(limits, 3, key="other") == [0.0, 0.0, 0.0]
    assert len(redis.commands) == asked + 3
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "Redis is out of reach" in caplog.text


async def test_a_redis_that_does_not_answer_holds_an_event_up_no_longer_than_patience() -> None:
    redis = FakeRedis()
    redis.gate = asyncio.Event()
    limits = redis.limits(patience=0.01)
    async with asyncio.timeout(5):
        assert await take(limits, 3) == [0.0, 0.0, 0.0]
        assert min(await take(limits, 3)) > 0
    assert len(redis.commands) == 1


async def test_other_limits_and_other_keys_are_other_buckets() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    assert await take(limits, 1, capacity=1) == [0.0]
    assert await take(limits, 1, capacity=2) == [0.0]
    assert await take(limits, 1, rate=2, capacity=1) == [0.0]
    assert await take(limits, 1, key="other", capacity=1) == [0.0]
    assert len({command.keys for command in redis.commands}) == 4


async def test_a_whole_number_and_the_same_float_are_one_limit() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    await take(limits, 1, rate=1, capacity=2)
    await take(limits, 1, rate=1.0, capacity=2.0)
    assert len({command.keys for command in redis.commands}) == 1


async def test_no_more_than_max_keys_buckets_are_remembered() -> None:
    redis = FakeRedis()
    limits = redis.limits(max_keys=50)
    for number in range(500):
        await take(limits, key=f"k{number}", rate=0.001)
    assert len(limits) == 50


async def test_buckets_that_are_full_again_are_forgotten() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    for number in range(100):
        await take(limits, key=f"k{number}")
    redis.now += 10
    for _ in range(60):
        await take(limits)
    assert len(limits) == 1
