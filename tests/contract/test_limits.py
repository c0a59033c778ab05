"""What every `Limits` promises, compared with a model."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.backend.protocols import Backend
from tests.contract.conftest import Subject, memory


async def test_a_bucket_starts_full_and_holds_no_more_than_its_capacity(subject: Subject) -> None:
    limits = subject.backend.limits
    assert [await limits.take("k", rate=2, capacity=3) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert await limits.take("k", rate=2, capacity=3) > 0
    await subject.wait(2.1)
    assert [await limits.take("k", rate=2, capacity=3) > 0 for _ in range(4)] == [False, False, False, True]


async def test_a_refusal_says_when_there_will_be_a_token_and_takes_none(subject: Subject) -> None:
    limits = subject.backend.limits
    await limits.take("k", rate=2, capacity=1)
    for _ in range(2):  # on a real server time goes by between the calls
        assert 0.3 < await limits.take("k", rate=2, capacity=1) <= 0.5
    await subject.wait(0.55)
    assert await limits.take("k", rate=2, capacity=1) == 0.0


async def test_keys_have_buckets_of_their_own(backend: Backend) -> None:
    assert await backend.limits.take("one", rate=1, capacity=1) == 0.0
    assert await backend.limits.take("two", rate=1, capacity=1) == 0.0
    assert await backend.limits.take("one", rate=1, capacity=1) > 0


async def test_a_limit_holds_under_concurrency(backend: Backend) -> None:
    waits = await asyncio.gather(*(backend.limits.take("k", rate=0.001, capacity=5) for _ in range(30)))
    assert waits.count(0.0) == 5


@given(steps=st.lists(st.integers(0, 40), min_size=1, max_size=40), capacity=st.integers(1, 5))
def test_takes_follow_the_model_of_a_token_bucket(steps: list[int], capacity: int) -> None:
    """With a fake clock only: the memory backend, the specification of the others.

    Time moves in quarter seconds at two tokens a second: exact in binary, so that nothing is rounded.
    """

    async def run() -> None:
        tokens = float(capacity)
        async with memory() as subject:
            for step in steps:
                await subject.wait(step / 4)
                tokens = min(capacity, tokens + step / 2)
                wait = await subject.backend.limits.take("k", rate=2, capacity=capacity)
                if tokens >= 1:
                    tokens -= 1
                    assert wait == 0.0
                else:
                    assert wait == pytest.approx((1 - tokens) / 2, abs=0.01)

    asyncio.run(run())
