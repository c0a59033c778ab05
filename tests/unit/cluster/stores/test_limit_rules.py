"""Shared limits seen from one node: what is remembered of a bucket, what is forgotten, when Redis is asked again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.errors import BackendError
from tests.unit.cluster.stores.watched_limits import WatchedLimits
from tests.virtual_time import in_virtual_time, now
from tests.watching import turns

AWAY = 1.0
"""Seconds between two questions to a Redis that does not answer."""


class FakeRedis:
    """Answers `wait`, after `takes` seconds of the loop's time; raises `error` instead where one is set."""

    def __init__(self) -> None:
        self.wait: float = 0.0
        self.takes = 0.0
        self.error: Exception | None = None
        self.asked: list[float] = []

    async def run(self, command: Command) -> Any:
        self.asked.append(now())
        await asyncio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        return str(self.wait).encode()

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        return [await self.run(command) for command in commands]

    def limits(self, **options: Any) -> WatchedLimits:
        return WatchedLimits(self, Keys(), clock=asyncio.get_running_loop().time, **options)


async def take(limits: WatchedLimits, key: str = "k", *, rate: float = 1, capacity: float = 3) -> float:
    return await limits.take(key, rate=rate, capacity=capacity)


# What one node remembers of a bucket


@in_virtual_time
async def test_a_refusal_of_redis_holds_until_its_time_is_over_however_much_is_left_here() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.wait = 10.0
    assert await take(limits) == 10.0
    redis.wait = 0.0
    await asyncio.sleep(9.5)
    assert await take(limits) == pytest.approx(0.5)
    assert len(redis.asked) == 1
    await asyncio.sleep(0.5)
    assert await take(limits) == 0.0
    assert len(redis.asked) == 2


@in_virtual_time
async def test_a_refusal_counts_from_when_the_answer_came() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.takes, redis.wait = 0.5, 10.0
    assert await take(limits) == 10.0
    assert await take(limits) == pytest.approx(10.0)
    await asyncio.sleep(4)
    assert await take(limits) == pytest.approx(6.0)


@in_virtual_time
async def test_of_two_refusals_the_later_end_counts() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.takes, redis.wait = 0.5, 10.0
    first = asyncio.create_task(take(limits))
    await asyncio.sleep(0.2)
    second = asyncio.create_task(take(limits))
    await asyncio.sleep(0.4)
    redis.wait = 2.0  # the first has its answer, the second gets this one
    assert (await first, await second) == (10.0, 2.0)
    assert await take(limits) == pytest.approx(9.8, abs=0.01)


@in_virtual_time
async def test_every_token_that_redis_refused_is_given_back_here() -> None:
    """What was taken here and then refused there must not be paid for twice."""
    redis = FakeRedis()
    limits = redis.limits()
    redis.takes, redis.wait = 0.1, 0.2
    assert await asyncio.gather(*(take(limits, rate=0.001) for _ in range(3))) == [0.2] * 3
    assert len(redis.asked) == 3
    redis.takes, redis.wait = 0.0, 0.0
    await asyncio.sleep(0.3)
    assert [await take(limits, rate=0.001) for _ in range(3)] == [0.0] * 3
    assert len(redis.asked) == 6
    assert await take(limits, rate=0.001) == pytest.approx(1000, rel=0.01)  # and not one more
    assert len(redis.asked) == 6


@in_virtual_time
async def test_a_token_that_was_given_back_is_taken_here_alone_while_redis_is_away() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.wait = 0.5
    assert await take(limits, rate=0.001, capacity=1) == 0.5
    redis.error = BackendError("gone")
    await take(limits, "other")
    await asyncio.sleep(0.6)
    assert await take(limits, rate=0.001, capacity=1) == 0.0
    assert len(redis.asked) == 2
    assert await take(limits, rate=0.001, capacity=1) > 900


@in_virtual_time
async def test_what_this_node_alone_would_not_allow_is_not_asked_for() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    assert [await take(limits, capacity=2) for _ in range(3)] == [0.0, 0.0, pytest.approx(1.0)]
    assert len(redis.asked) == 2
    await asyncio.sleep(1)
    assert [await take(limits, capacity=2) for _ in range(2)] == [0.0, pytest.approx(1.0)]


# What is forgotten


@in_virtual_time
async def test_a_bucket_that_redis_refused_is_not_forgotten_though_it_is_full_here() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.wait = 100.0
    await take(limits)
    redis.wait = 0.0
    await asyncio.sleep(20)
    for number in range(5):
        await take(limits, f"other{number}", rate=0.001)
    assert len(limits) == 6
    assert await take(limits) == pytest.approx(80.0)
    assert len(redis.asked) == 6


@in_virtual_time
async def test_a_bucket_is_forgotten_as_soon_as_it_is_as_new() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    await take(limits)
    await take(limits)
    await asyncio.sleep(1.9)
    await take(limits, "other")
    assert len(limits) == 2
    await asyncio.sleep(0.2)
    await take(limits, "third")
    assert len(limits) == 2  # the first is gone


@in_virtual_time
async def test_a_refused_bucket_is_forgotten_in_the_very_moment_its_time_is_over() -> None:
    redis = FakeRedis()
    time = 1000.0
    limits = WatchedLimits(redis, Keys(), clock=lambda: time)
    redis.wait = 10.0
    await take(limits)
    redis.wait = 0.0
    time = 1009.75
    await take(limits, "other", rate=0.001)
    assert len(limits) == 2
    time = 1010.0
    await take(limits, "third", rate=0.001)
    assert len(limits) == 2


@in_virtual_time
async def test_a_call_forgets_two_at_most_so_that_none_takes_long_and_the_table_shrinks() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    for number in range(10):
        await take(limits, f"k{number}")
    assert len(limits) == 10
    await asyncio.sleep(10)
    sizes = []
    for number in range(6):
        await take(limits, f"new{number}", rate=0.001)
        sizes.append(len(limits))
    assert sizes == [9, 8, 7, 6, 5, 6]


@in_virtual_time
async def test_what_is_in_use_is_remembered_and_the_least_recently_used_makes_room() -> None:
    redis = FakeRedis()
    limits = redis.limits(max_keys=3)
    for key in ("a", "b", "c", "a", "d"):
        await take(limits, key, rate=0.001, capacity=2)
    assert len(limits) == 3
    assert await take(limits, "a", rate=0.001, capacity=2) > 0  # both are used up, and that is known
    assert await take(limits, "b", rate=0.001, capacity=2) == 0.0
    assert await take(limits, "b", rate=0.001, capacity=2) == 0.0  # it was forgotten, and is full again here
    assert len(limits) == 3


@in_virtual_time
async def test_a_table_of_one_bucket_works() -> None:
    redis = FakeRedis()
    limits = redis.limits(max_keys=1)
    for key in ("a", "b", "a"):
        assert await take(limits, key) == 0.0
        assert len(limits) == 1


# While Redis is away


@in_virtual_time
async def test_who_waits_for_an_answer_waits_no_longer_than_patience_and_the_reason_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.takes = 1000
    began = now()
    assert await take(limits) == 0.0
    assert now() - began == pytest.approx(1.0)  # the default
    limits = redis.limits(patience=0.25)
    began = now()
    assert await take(limits) == 0.0
    assert now() - began == pytest.approx(0.25)
    assert [record.getMessage() for record in caplog.records] == [
        "Rate limits hold for this node alone while Redis is away: no answer within 1.0 s",
        "Rate limits hold for this node alone while Redis is away: no answer within 0.25 s",
    ]


@in_virtual_time
async def test_an_answer_within_patience_counts() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.takes, redis.wait = 0.99, 7.0
    assert await take(limits) == 7.0


@in_virtual_time
async def test_after_a_failure_redis_is_asked_once_a_second_counted_from_the_failure() -> None:
    redis = FakeRedis()
    limits = redis.limits(patience=0.5)
    redis.takes = 1000
    assert await take(limits, "first", rate=1000, capacity=1000) == 0.0
    failed_at = now()
    while now() < failed_at + 4.4:
        assert await take(limits, rate=1000, capacity=1000) == 0.0
        await asyncio.sleep(0.01)
    gaps = [after - before for before, after in zip([failed_at, *redis.asked[1:]], redis.asked[1:], strict=False)]
    assert gaps == pytest.approx([AWAY, AWAY + 0.5, AWAY + 0.5], abs=0.02)


@in_virtual_time
async def test_while_one_call_finds_out_whether_it_is_back_the_others_do_not_wait() -> None:
    redis = FakeRedis()
    limits = redis.limits(patience=0.5)
    redis.error = BackendError("gone")
    await take(limits)
    redis.error, redis.takes = None, 0.4
    await asyncio.sleep(AWAY)
    asking = asyncio.create_task(take(limits, "a"))
    await turns(lambda: len(redis.asked) == 2)
    began = now()
    assert await take(limits, "b") == 0.0
    assert now() == began
    assert len(redis.asked) == 2
    await asking
    await take(limits, "b")
    assert len(redis.asked) == 3  # it is back: everything is asked again


@in_virtual_time
async def test_a_limit_never_opens_while_redis_is_away() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.error = BackendError("gone")
    waits = [await take(limits, rate=0.1) for _ in range(10)]
    assert waits[:3] == [0.0] * 3
    assert waits[3:] == [pytest.approx(10.0)] * 7
    await asyncio.sleep(5)
    assert await take(limits, rate=0.1) == pytest.approx(5.0)


@in_virtual_time
async def test_each_time_away_and_each_return_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "socketspec.cluster")
    redis = FakeRedis()
    limits = redis.limits()
    for _ in range(2):
        redis.error = BackendError("it is out of reach")
        for _ in range(4):
            await take(limits, rate=100, capacity=100)
            await asyncio.sleep(AWAY)
        redis.error = None
        for _ in range(4):
            await take(limits, rate=100, capacity=100)
            await asyncio.sleep(AWAY)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Rate limits hold for this node alone while Redis is away: it is out of reach"),
        ("INFO", "Rate limits are shared between nodes again"),
    ] * 2


@in_virtual_time
async def test_what_was_allowed_while_redis_was_away_is_not_given_back_when_it_returns() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.error = BackendError("gone")
    for _ in range(3):
        await take(limits, rate=0.001)
    redis.error = None
    await asyncio.sleep(AWAY)
    assert await take(limits, rate=0.001) > 900


@in_virtual_time
async def test_an_error_of_our_own_is_not_taken_for_a_redis_that_is_away() -> None:
    redis = FakeRedis()
    limits = redis.limits()
    redis.error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        await take(limits)
    redis.error = None
    await take(limits)
    assert len(redis.asked) == 2
