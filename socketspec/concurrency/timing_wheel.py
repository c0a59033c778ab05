"""One timing wheel per app: it drives heartbeats, idle timeouts and expiry without a task or timer per connection.

Deadlines are rounded up to ticks of `granularity` seconds. All owners of one tick share a bucket, and only the nearest
tick has a timer in the event loop. An owner costs two dict entries, whatever it waits for.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from socketspec.errors import ConfigurationError

__all__ = ("OWNERS_A_TURN", "Loop", "TimerHandle", "TimingWheel")

OWNERS_A_TURN = 256
"""How many owners are called before the event loop gets its turn."""

_STALE_TICKS = 64
_EARLY_WAKE_RETRY = 0.001

Owner = TypeVar("Owner")

logger: logging.Logger = logging.getLogger("socketspec.timing")


class TimerHandle(Protocol):
    """A timer that can be taken back."""

    def cancel(self) -> object:
        """Forget the timer."""
        ...


class Loop(Protocol):
    """The part of an event loop that a wheel needs; tests pass a clock they turn by hand."""

    def time(self) -> float:
        """The time in seconds on a clock that never goes back."""
        ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> TimerHandle:
        """Call `callback` at `when`; soon, but not before returning, where that is past."""
        ...


class TimingWheel(Generic[Owner]):
    """Calls `due` for each owner at its deadline: never early, at most `granularity` seconds (plus loop lag) late.

    Owners are hashable objects, compared by identity. ``due(owner, now)`` does what is due at `now` and returns the
    next deadline on the loop's clock; None leaves what was scheduled during the call, if anything. A deadline that is
    returned wins over a `cancel` during the call. An exception is logged and stops no other owner.

    `schedule` and `cancel` take constant time (a new tick costs a push on a heap). Without `loop`, a wheel must be
    made inside the running event loop that it is to use.
    """

    __slots__ = (
        "_armed",
        "_buckets",
        "_closed",
        "_due",
        "_floor",
        "_granularity",
        "_handle",
        "_heap",
        "_loop",
        "_ticks",
    )

    def __init__(
        self, due: Callable[[Owner, float], float | None], granularity: float = 0.05, *, loop: Loop | None = None
    ) -> None:
        if not 0 < granularity < math.inf:
            raise ConfigurationError(
                f"TimingWheel(granularity={granularity!r}): pass a finite number of seconds greater than 0."
            )
        self._due = due
        self._granularity = granularity
        self._loop: Loop = asyncio.get_running_loop() if loop is None else loop
        self._ticks: dict[Owner, int] = {}
        self._buckets: dict[int, dict[Owner, None]] = {}
        self._heap: list[int] = []  # every tick with a bucket, and stale ticks whose bucket was emptied by `cancel`
        self._handle: TimerHandle | None = None
        self._armed: float = math.inf  # the tick the timer stands at; -inf while no timer must be set
        self._floor: float = -math.inf  # the first tick that was not yet over when the wheel last turned
        self._closed = False

    def schedule(self, owner: Owner, deadline: float) -> None:
        """Have `due` called for `owner` at `deadline` (loop clock), instead of at any deadline given for it before.

        A deadline in the past is due at once, at the latest after one `granularity`. Ignored after `close`.
        Raises `ValueError` where `deadline` is not finite.
        """
        tick = self._tick_for(deadline)
        previous = self._ticks.get(owner)
        if tick == previous or self._closed:
            return
        if previous is not None:
            self._remove(owner, previous)
        self._ticks[owner] = tick
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket[owner] = None
            return
        self._buckets[tick] = {owner: None}
        heapq.heappush(self._heap, tick)
        if tick < self._armed:
            self._arm(tick, tick * self._granularity)

    def cancel(self, owner: Owner) -> None:
        """Forget `owner`; no error where it is not scheduled."""
        tick = self._ticks.pop(owner, None)
        if tick is not None:
            self._remove(owner, tick)

    def close(self) -> None:
        """Forget every owner and stop for good."""
        self._closed = True
        self._disarm()
        self._armed = -math.inf
        self._ticks.clear()
        self._buckets.clear()
        self._heap.clear()

    def _tick_for(self, deadline: float) -> int:
        try:
            tick = math.ceil(deadline / self._granularity)
        except (OverflowError, ValueError):
            raise ValueError(f"deadline {deadline!r} is not a finite time; use cancel() for 'never'") from None
        if tick * self._granularity < deadline:  # the division was rounded down
            tick += 1
        # Ticks that are over stay over: an owner whose deadline is always past must not keep one turn going for ever.
        return tick if tick >= self._floor else int(self._floor)

    def _remove(self, owner: Owner, tick: int) -> None:
        bucket = self._buckets[tick]
        del bucket[owner]
        if bucket:
            return
        del self._buckets[tick]
        if len(self._heap) > 2 * len(self._buckets) + _STALE_TICKS:
            self._heap = list(self._buckets)
            heapq.heapify(self._heap)

    def _arm(self, tick: int, when: float) -> None:
        self._disarm()
        self._armed = tick
        self._handle = self._loop.call_at(when, self._turn)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _turn(self) -> None:
        self._handle = None
        self._armed = -math.inf
        now = self._loop.time()
        floor = math.floor(now / self._granularity) + 1
        self._floor = floor if floor * self._granularity > now else floor + 1
        try:
            self._call_slice(now)
        finally:
            if not self._closed:
                self._arm_nearest(now)

    def _call_slice(self, now: float) -> None:
        budget = OWNERS_A_TURN
        while budget and self._heap and self._heap[0] * self._granularity <= now:
            tick = self._heap[0]
            bucket = self._buckets.get(tick)
            if bucket is None:
                heapq.heappop(self._heap)
                continue
            budget -= 1
            owner, _ = bucket.popitem()  # from the end: taking from the front of a dict is quadratic
            if not bucket:
                del self._buckets[tick]
            del self._ticks[owner]
            self._call(owner, now)

    def _call(self, owner: Owner, now: float) -> None:
        try:
            deadline = self._due(owner, now)
            if deadline is not None:
                self.schedule(owner, deadline)
        except Exception:
            logger.exception(
                "What was due for %r failed; it will not be called again unless it is scheduled anew", owner
            )

    def _arm_nearest(self, now: float) -> None:
        while self._heap and self._heap[0] not in self._buckets:
            heapq.heappop(self._heap)
        if not self._heap:
            self._armed = math.inf
            return
        tick = self._heap[0]
        when = tick * self._granularity
        if when > now:
            # uvloop's clock has milliseconds: without a pause, a timer that fires a fraction early would spin.
            when = max(when, now + _EARLY_WAKE_RETRY)
        self._arm(tick, when)
