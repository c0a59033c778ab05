"""The timing wheel, on a clock that the test turns."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.concurrency.timing_wheel import OWNERS_A_TURN, TimingWheel
from socketspec.errors import ConfigurationError


class FakeHandle:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeLoop:
    """An event loop's timers on a clock that stands still until `advance`."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.calls = 0
        self.timers: list[tuple[float, int, FakeHandle]] = []
        self._serial = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> FakeHandle:
        handle = FakeHandle(callback)
        heapq.heappush(self.timers, (when, next(self._serial), handle))
        return handle

    @property
    def armed(self) -> int:
        return sum(handle.callback is not None for _, _, handle in self.timers)

    def advance(self, until: float) -> None:
        while self.timers and self.timers[0][0] <= until:
            when, _, handle = heapq.heappop(self.timers)
            if handle.callback is not None:
                self.now = max(self.now, when)
                self.calls += 1
                handle.callback()
        self.now = max(self.now, until)


class Owner:
    """Notes when it was called and answers with the next of `answers`, then with None."""

    def __init__(self, *answers: float | None) -> None:
        self.answers = list(answers)
        self.called: list[float] = []

    def due(self, now: float) -> float | None:
        self.called.append(now)
        return self.answers.pop(0) if self.answers else None


def due(owner: Owner | ModelOwner, now: float) -> float | None:
    return owner.due(now)


@pytest.mark.parametrize(("deadline", "tick"), [(1.2, 1.5), (1.5, 1.5), (1.6, 2.0)])
def test_an_owner_is_called_once_at_the_first_tick_not_before_its_deadline(deadline: float, tick: float) -> None:
    loop, owner = FakeLoop(), Owner()
    wheel = TimingWheel(due, 0.5, loop=loop)
    wheel.schedule(owner, deadline)
    loop.advance(100)
    assert owner.called == [tick]
    assert loop.armed == 0


def test_rounding_in_the_division_makes_nobody_early() -> None:
    loop, owner, deadline = FakeLoop(), Owner(), 6617.300000000001  # 66173 ticks of 0.1 are a little less
    TimingWheel(due, 0.1, loop=loop).schedule(owner, deadline)
    loop.advance(10_000)
    assert len(owner.called) == 1
    assert deadline <= owner.called[0] <= deadline + 0.1


def test_the_deadline_that_due_returns_is_scheduled() -> None:
    loop, owner = FakeLoop(), Owner(3.0, 4.0)
    TimingWheel(due, 0.5, loop=loop).schedule(owner, 1.0)
    loop.advance(10)
    assert owner.called == [1.0, 3.0, 4.0]


def test_scheduling_again_moves_an_owner_to_later_or_earlier() -> None:
    loop, later, earlier = FakeLoop(), Owner(), Owner()
    wheel = TimingWheel(due, 0.5, loop=loop)
    wheel.schedule(later, 1.0)
    wheel.schedule(later, 5.0)
    wheel.schedule(earlier, 9.0)
    wheel.schedule(earlier, 2.0)
    loop.advance(20)
    assert (later.called, earlier.called) == ([5.0], [2.0])


def test_a_cancelled_owner_is_not_called_and_cancelling_twice_is_no_error() -> None:
    loop, cancelled, kept = FakeLoop(), Owner(), Owner()
    wheel = TimingWheel(due, 0.5, loop=loop)
    wheel.schedule(cancelled, 1.0)
    wheel.schedule(kept, 1.0)
    wheel.cancel(cancelled)
    wheel.cancel(cancelled)
    loop.advance(10)
    assert (cancelled.called, kept.called) == ([], [1.0])


def test_only_one_timer_stands_in_the_loop_however_many_owners_there_are() -> None:
    loop = FakeLoop()
    wheel = TimingWheel(due, 0.5, loop=loop)
    for deadline in (5.0, 3.0, 9.0, 1.0, 7.0, 1.0):
        wheel.schedule(Owner(), deadline)
        assert loop.armed == 1
    loop.advance(6.0)
    assert loop.armed == 1
    loop.advance(10.0)
    assert loop.armed == 0


def test_a_past_deadline_is_due_at_once() -> None:
    loop, owner = FakeLoop(now=100.0), Owner()
    TimingWheel(due, 0.5, loop=loop).schedule(owner, 3.0)
    assert owner.called == []
    loop.advance(100.0)
    assert owner.called == [100.0]


def test_an_owner_that_is_always_overdue_is_called_once_a_tick_and_not_for_ever() -> None:
    loop, owner = FakeLoop(), Owner(*[0.0] * 1000)
    TimingWheel(due, 0.5, loop=loop).schedule(owner, 1.0)
    loop.advance(3.0)
    assert owner.called == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_an_exception_in_one_owner_is_logged_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Owner):
        def due(self, now: float) -> float | None:
            super().due(now)
            raise RuntimeError("boom")

    class Unusable(Owner):
        def due(self, now: float) -> float | None:
            super().due(now)
            return float("nan")

    loop = FakeLoop()
    wheel = TimingWheel(due, 0.5, loop=loop)
    owners = [Owner(), Broken(), Owner(), Unusable(), Owner()]
    for owner in owners:
        wheel.schedule(owner, 1.0)
    with caplog.at_level(logging.ERROR, "socketspec.timing"):
        loop.advance(2.0)
    assert [owner.called for owner in owners] == [[1.0]] * 5
    assert len(caplog.records) == 2
    assert {record.exc_info[0] for record in caplog.records if record.exc_info} == {ValueError, RuntimeError}
    wheel.schedule(owners[0], 3.0)
    loop.advance(4.0)
    assert owners[0].called == [1.0, 3.0]


def test_an_exception_that_stops_the_program_does_not_stop_the_wheel() -> None:
    class Interrupted(Owner):
        def due(self, now: float) -> float | None:
            raise KeyboardInterrupt

    loop, other = FakeLoop(), Owner()
    wheel = TimingWheel(due, 0.5, loop=loop)
    wheel.schedule(Interrupted(), 1.0)
    wheel.schedule(other, 2.0)
    with pytest.raises(KeyboardInterrupt):
        loop.advance(1.0)
    loop.advance(2.0)
    assert other.called == [2.0]


def test_a_crowd_that_expires_at_once_is_called_in_slices_between_which_the_loop_runs() -> None:
    loop = FakeLoop()
    wheel = TimingWheel(due, 0.5, loop=loop)
    owners = [Owner() for _ in range(OWNERS_A_TURN * 3 + 7)]
    for owner in owners:
        wheel.schedule(owner, 1.0)
    seen: list[int] = []

    def look() -> None:
        seen.append(sum(len(owner.called) for owner in owners))
        if seen[-1] < len(owners):
            loop.call_at(1.0, look)

    loop.call_at(1.0, look)
    loop.advance(1.0)
    assert seen == [OWNERS_A_TURN, OWNERS_A_TURN * 2, OWNERS_A_TURN * 3, len(owners)]
    assert all(owner.called == [1.0] for owner in owners)


def test_owners_can_be_cancelled_and_moved_between_two_slices() -> None:
    loop = FakeLoop()
    wheel = TimingWheel(due, 0.5, loop=loop)
    owners = [Owner() for _ in range(OWNERS_A_TURN * 2)]
    for owner in owners:
        wheel.schedule(owner, 1.0)
    left: list[Owner] = []

    def intervene() -> None:
        left.extend(owner for owner in owners if not owner.called)
        for owner in left[1:]:
            wheel.cancel(owner)
        wheel.schedule(left[0], 4.0)

    loop.call_at(1.0, intervene)
    loop.advance(10.0)
    assert len(left) == OWNERS_A_TURN
    assert [owner.called for owner in left] == [[4.0]] + [[]] * (OWNERS_A_TURN - 1)


def test_an_owner_may_schedule_and_cancel_others_and_itself_while_it_is_called() -> None:
    loop, victim, friend = FakeLoop(), Owner(), Owner()
    wheel = TimingWheel(due, 0.5, loop=loop)

    class Busy(Owner):
        def due(self, now: float) -> float | None:
            if not self.called:
                wheel.cancel(victim)
                wheel.schedule(friend, now + 1)
                wheel.schedule(self, now + 2)
            return super().due(now)

    busy = Busy()
    wheel.schedule(busy, 1.0)
    wheel.schedule(victim, 1.5)
    loop.advance(10.0)
    assert (busy.called, victim.called, friend.called) == ([1.0, 3.0], [], [2.0])


def test_a_closed_wheel_calls_nobody_and_ignores_what_is_scheduled() -> None:
    loop, owner = FakeLoop(), Owner()
    wheel = TimingWheel(due, 0.5, loop=loop)
    wheel.schedule(owner, 1.0)
    wheel.close()
    wheel.schedule(owner, 2.0)
    wheel.cancel(owner)
    loop.advance(10.0)
    assert (owner.called, loop.armed, loop.calls) == ([], 0, 0)


def test_a_wheel_can_be_closed_by_an_owner_it_calls() -> None:
    loop = FakeLoop()
    wheel = TimingWheel(due, 0.5, loop=loop)

    class Closing(Owner):
        def due(self, now: float) -> float | None:
            super().due(now)
            wheel.close()
            return now + 1

    owners = [Closing(), Closing()]
    for owner in owners:
        wheel.schedule(owner, 1.0)
    loop.advance(10.0)
    assert sum(len(owner.called) for owner in owners) == 1
    assert loop.armed == 0


def test_a_timer_that_fires_early_is_set_again_and_calls_nobody_early() -> None:
    class Hasty(FakeLoop):
        def call_at(self, when: float, callback: Callable[[], object], /) -> FakeHandle:
            return super().call_at(when - 0.0004, callback)

    loop, owner = Hasty(), Owner()
    TimingWheel(due, 0.5, loop=loop).schedule(owner, 1.0)
    loop.advance(2.0)
    assert len(owner.called) == 1
    assert 1.0 <= owner.called[0] <= 1.001
    assert loop.calls == 2


def test_scheduling_and_cancelling_for_ever_does_not_grow_the_wheel() -> None:
    wheel = TimingWheel(due, 0.05, loop=FakeLoop())
    owner = Owner()
    tracemalloc.start()
    try:
        for number in range(20_000):
            wheel.schedule(owner, 1000.0 + number)
            if number % 2:
                wheel.cancel(owner)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 50_000


@pytest.mark.parametrize("deadline", [float("nan"), float("inf"), float("-inf")])
def test_a_deadline_that_is_no_time_is_refused(deadline: float) -> None:
    loop = FakeLoop()
    wheel = TimingWheel(due, loop=loop)
    with pytest.raises(ValueError, match="not a finite time"):
        wheel.schedule(Owner(), deadline)
    assert loop.armed == 0


@pytest.mark.parametrize("granularity", [0, -1, float("inf"), float("nan")])
def test_a_granularity_that_cannot_work_is_refused(granularity: float) -> None:
    with pytest.raises(ConfigurationError, match="granularity"):
        TimingWheel(due, granularity, loop=FakeLoop())


async def test_a_wheel_made_in_a_running_loop_uses_that_loop() -> None:
    loop = asyncio.get_running_loop()
    called: asyncio.Future[float] = loop.create_future()

    class Once(Owner):
        def due(self, now: float) -> float | None:
            called.set_result(now)
            return super().due(now)

    wheel = TimingWheel(due, 0.01)
    deadline = loop.time() + 0.015
    wheel.schedule(Once(), deadline)
    assert await asyncio.wait_for(called, 5) >= deadline
    wheel.close()


times = st.floats(min_value=0, max_value=30, allow_nan=False)
operations = st.one_of(
    st.tuples(st.just("schedule"), st.integers(0, 5), times),
    st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0.0)),
    st.tuples(st.just("advance"), st.just(0), times),
)


class Model:
    """Who waits for what, as a plain dict; it objects to every call that is early, late or not wanted."""

    def __init__(self, granularity: float, start: float, answers: list[float | None]) -> None:
        self.granularity = granularity
        self.loop = FakeLoop(start)
        self.wheel = TimingWheel(due, granularity, loop=self.loop)
        self.answers = answers
        self.waiting: dict[int, tuple[float, float]] = {}
        self.failures: list[str] = []
        self.owners = [ModelOwner(self, number) for number in range(6)]

    def expect(self, number: int, deadline: float) -> None:
        self.waiting[number] = (deadline, max(deadline, self.loop.now) + self.granularity + 1e-6)

    def apply(self, operation: tuple[str, int, float]) -> None:
        kind, number, amount = operation
        if kind == "schedule":
            deadline = self.loop.now + amount - 5  # some are past
            self.expect(number, deadline)
            self.wheel.schedule(self.owners[number], deadline)
        elif kind == "cancel":
            self.waiting.pop(number, None)
            self.wheel.cancel(self.owners[number])
        else:
            self.loop.advance(self.loop.now + amount)
        assert all(latest >= self.loop.now for _, latest in self.waiting.values()), "somebody was not called in time"
        assert self.loop.armed == 1 or not self.waiting, "somebody waits for a timer that was not set"


class ModelOwner:
    def __init__(self, model: Model, number: int) -> None:
        self.model = model
        self.number = number

    def due(self, now: float) -> float | None:
        deadline, latest = self.model.waiting.pop(self.number, (math.inf, math.inf))
        if not deadline <= now <= latest:  # noted, because the wheel would catch an AssertionError
            self.model.failures.append(f"owner {self.number}: {deadline} <= {now} <= {latest}")
        delay = self.model.answers.pop() if self.model.answers else None
        if delay is None:
            return None
        self.model.expect(self.number, now + delay)
        return now + delay


@given(
    granularity=st.sampled_from([0.05, 0.1, 1 / 3, 1.0]),
    start=st.sampled_from([0.0, 1234.567, 3e7]),
    answers=st.lists(st.one_of(st.none(), st.floats(-1, 20)), max_size=20),
    program=st.lists(operations, max_size=40),
)
def test_the_wheel_does_what_a_plain_list_of_deadlines_would(
    granularity: float, start: float, answers: list[float | None], program: list[tuple[str, int, float]]
) -> None:
    model = Model(granularity, start, answers)
    for operation in [*program, ("advance", 0, 1000.0)]:
        model.apply(operation)
    assert model.failures == []
    assert model.waiting == {}
