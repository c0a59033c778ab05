"""Token buckets, and the bounded table of buckets."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.backend.rate_buckets import BucketTable, TokenBucket
from socketspec.errors import ConfigurationError


def test_a_bucket_starts_full_and_says_how_long_to_wait_when_empty() -> None:
    bucket = TokenBucket(2, 3, now=100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(100.0) == 0.5
    assert bucket.take(100.25) == 0.25
    assert bucket.take(100.5) == 0.0
    assert bucket.take(100.5) == 0.5


def test_a_refused_event_costs_nothing() -> None:
    bucket = TokenBucket(1, 1, now=0.0)
    bucket.take(0.0)
    assert [bucket.take(0.5) for _ in range(10)] == [0.5] * 10
    assert bucket.take(1.0) == 0.0


def test_a_bucket_never_holds_more_than_its_capacity() -> None:
    bucket = TokenBucket(10, 2, now=0.0)
    assert [bucket.take(1e9) for _ in range(3)] == [0.0, 0.0, 0.1]


def test_time_that_goes_back_refills_nothing_and_is_no_error() -> None:
    bucket = TokenBucket(1, 1, now=100.0)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(40.0) == 61.0
    assert bucket.take(100.5) == 0.5
    assert bucket.take(101.0) == 0.0


def test_a_bucket_knows_when_it_is_full_again() -> None:
    bucket = TokenBucket(2, 4, now=0.0)
    assert bucket.is_full(0.0)
    for _ in range(3):
        bucket.take(0.0)
    assert not bucket.is_full(1.4)
    assert bucket.is_full(1.5)


rates = st.floats(0.01, 1000)
capacities = st.floats(1, 1000)
starts = st.sampled_from([0.0, 12345.678, 1e6])
gaps = st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 5))


@given(rate=rates, capacity=capacities, start=starts, waits=st.lists(gaps, min_size=1, max_size=200))
def test_no_window_admits_more_than_a_burst_and_the_rate(
    rate: float, capacity: float, start: float, waits: list[float]
) -> None:
    bucket, now = TokenBucket(rate, capacity, start), start
    admitted: list[float] = []
    for wait in waits:
        now += wait
        if bucket.take(now) == 0.0:
            admitted.append(now)
    for first, opened in enumerate(admitted):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= capacity + rate * (admitted[last] - opened) + 1e-6


@given(
    rate=rates,
    capacity=capacities,
    start=starts,
    waits=st.lists(st.one_of(gaps, st.floats(-2, 0)), max_size=100),
)
def test_a_bucket_agrees_with_exact_arithmetic(rate: float, capacity: float, start: float, waits: list[float]) -> None:
    bucket, now = TokenBucket(rate, capacity, start), start
    tokens, updated, slack = Fraction(capacity), Fraction(start), Fraction(1, 10**6)
    for wait in waits:
        now += wait
        tokens = min(Fraction(capacity), tokens + max(Fraction(now) - updated, Fraction(0)) * Fraction(rate))
        updated = max(updated, Fraction(now))
        answer = bucket.take(now)
        if answer == 0.0:
            assert tokens + slack >= 1
            tokens -= 1
        else:
            assert tokens - slack < 1
            exact = updated - Fraction(now) + (1 - tokens) / Fraction(rate)
            assert answer > 0
            assert abs(Fraction(answer) - exact) * Fraction(rate) <= slack + Fraction(rate) / 10**9


@given(rate=rates, capacity=st.integers(1, 1000), start=starts)
def test_whoever_waits_as_long_as_told_is_admitted(rate: float, capacity: int, start: float) -> None:
    bucket = TokenBucket(rate, capacity, start)
    assert [bucket.take(start) for _ in range(capacity)] == [0.0] * capacity
    wait = bucket.take(start)
    assert bucket.take(start + wait * 0.9) > 0
    assert bucket.take(start + wait + 1e-6) == 0.0


def test_what_rounding_forgives_does_not_add_up() -> None:
    bucket, gap = TokenBucket(1, 1, now=0.0), 1 - 5e-10
    admitted = sum(bucket.take(number * gap) == 0.0 for number in range(10_001))
    assert admitted <= 1 + 10_000 * gap + 1e-6
    assert admitted > 5000


def test_a_token_that_is_nearly_there_is_not_there() -> None:
    bucket = TokenBucket(1, 1, now=0.0)
    bucket.take(0.0)
    assert bucket.take(1 - 1e-6) > 0


def test_each_key_of_a_table_has_a_bucket_of_its_own() -> None:
    table = BucketTable(1, 1)
    assert [table.take(key, 0.0) for key in ("a", "b", "a")] == [0.0, 0.0, 1.0]
    assert table.take("a", 1.0) == 0.0


def test_a_bucket_that_is_full_again_is_dropped_when_others_are_used() -> None:
    table = BucketTable(1, 2)
    for number in range(10):
        table.take(f"old-{number}", 0.0)
    for _ in range(2):
        table.take("new", 0.9)
    assert len(table) == 11
    for number in range(5):
        table.take("new", 1.0 + number)
    assert len(table) == 1
    assert "new" in table


def test_the_bucket_being_used_is_not_lost_to_the_sweep() -> None:
    table = BucketTable(1, 3)
    for _ in range(3):
        table.take("only", 0.0)
    assert [table.take("only", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 1.0]


def test_a_full_table_forgets_the_least_recently_used_key_and_never_grows() -> None:
    table = BucketTable(0.001, 1, max_keys=3)
    for key in ("a", "b", "c"):
        table.take(key, 0.0)
    assert table.take("a", 0.0) > 0
    assert table.take("d", 0.0) == 0.0
    assert [key in table for key in "abcd"] == [True, False, True, True]
    for number in range(100):
        table.take(f"flood-{number}", 0.0)
    assert len(table) == 3


def test_a_table_without_room_for_a_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_keys=0"):
        BucketTable(1, 1, max_keys=0)


@given(
    rate=st.integers(1, 5),
    capacity=st.integers(1, 5),
    takes=st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abcdef")), max_size=100),
)
def test_dropping_full_buckets_changes_no_answer(rate: int, capacity: int, takes: list[tuple[int, str]]) -> None:
    table, plain, now = BucketTable(rate, capacity), dict[str, TokenBucket](), 0.0
    for wait, key in takes:
        now += wait / 4
        bucket = plain.setdefault(key, TokenBucket(rate, capacity, 0.0))
        assert table.take(key, now) == pytest.approx(bucket.take(now))
