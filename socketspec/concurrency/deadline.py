"""`Deadline`: ends what takes too long, except for what has to run to its end once it has begun."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar

__all__ = ("Deadline", "held", "running")


class Deadline:
    """Cancels the task that enters `timeout` after so many seconds; `grace` seconds later, `late` is called."""

    def __init__(self, seconds: float, grace: float, late: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._grace = grace
        self._late = late
        self._holds = 0
        self._timeout = asyncio.timeout_at(self._end)
        self._reminder = self._loop.call_at(self._end + grace, late)

    @property
    def timeout(self) -> AbstractAsyncContextManager[object]:
        """Raises `TimeoutError` at its end where it has cancelled what ran within."""
        return self._timeout

    @property
    def expired(self) -> bool:
        """Whether it has cancelled what ran within."""
        return self._timeout.expired()

    def hold(self) -> None:
        """Cancel nothing from now on, unless it is too late for that."""
        self._holds += 1
        if not self.expired:
            self._timeout.reschedule(None)
            self._reminder.cancel()

    def go_on(self) -> None:
        """End a `hold`. What was in time when that began stays so: nothing is cancelled if the time is over by now."""
        self._holds -= 1
        if self._holds == 0 and not self.expired and self._loop.time() < self._end:
            self._timeout.reschedule(self._end)
            self._reminder = self._loop.call_at(self._end + self._grace, self._late)

    def close(self) -> None:
        """Remind nobody any more."""
        self._reminder.cancel()


_running: ContextVar[Deadline | None] = ContextVar("socketspec_deadline", default=None)


@contextmanager
def running(deadline: Deadline) -> Iterator[None]:
    """`deadline` is that of the current task."""
    token = _running.set(deadline)
    try:
        yield
    finally:
        _running.reset(token)


def held() -> Deadline | None:
    """Hold the deadline of the current task, if it has one; it is for the caller to let it `go_on`."""
    deadline = _running.get()
    if deadline is not None:
        deadline.hold()
    return deadline
