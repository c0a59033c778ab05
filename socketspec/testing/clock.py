"""A clock that a test can move. The app's deadlines go by it: sessions, heartbeats, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ("MovableClock",)

LATE: Final = 0.06
"""Seconds that a deadline may be late: the timing wheel rounds up to its ticks."""


class _Timer:
    """One timer of the clock. See `TimerHandle`."""

    __slots__ = ("_callback", "_clock", "_handle", "when")

    def __init__(self, clock: MovableClock, when: float, callback: Callable[[], object]) -> None:
        self._clock = clock
        self._callback = callback
        self.when: float = when
        self._handle: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        self._clock.forget(self)
        self.disarm()

    def arm(self, loop: asyncio.AbstractEventLoop, ahead: float) -> None:
        self.disarm()
        self._handle = loop.call_at(self.when - ahead, self.fire)

    def disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def fire(self) -> None:
        self.cancel()
        self._callback()


class MovableClock:
    """The event loop's clock, and ahead of it by as much as the test has moved it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ahead = 0.0
        self._timers: dict[_Timer, None] = {}

    def time(self) -> float:
        """Seconds, as the app sees them."""
        return self._loop.time() + self._ahead

    def call_at(self, when: float, callback: Callable[[], object], /) -> _Timer:
        """Call `callback` at `when` on this clock."""
        timer = _Timer(self, when, callback)
        self._timers[timer] = None
        timer.arm(self._loop, self._ahead)
        return timer

    def forget(self, timer: _Timer) -> None:
        """No longer keep a timer that was cancelled or has fired."""
        self._timers.pop(timer, None)

    async def advance(
        self, seconds: float, moved: Callable[[float], None], settle: Callable[[], Awaitable[None]]
    ) -> None:
        """Move the clock from one timer to the next, each at its time, until `seconds` have gone by.

        `moved` is told each step, `settle` awaited after each: what a timer does has its effect before the next one.
        """
        target = self.time() + seconds
        while (timer := min(self._timers, key=_when, default=None)) is not None and timer.when <= target + LATE:
            self._move(timer.when, moved)
            timer.fire()
            await settle()
        self._move(target, moved)

    def _move(self, to: float, moved: Callable[[float], None]) -> None:
        step = to - self.time()
        if step > 0:
            self._ahead += step
            moved(step)
            for timer in self._timers:
                timer.arm(self._loop, self._ahead)


def _when(timer: _Timer) -> float:
    return timer.when
