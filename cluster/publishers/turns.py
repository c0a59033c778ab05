"""`Turns`: a bounded number of places, handed on in the order of coming: to threads, greenlets and event loops."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

__all__ = ("Turns",)


class _Waiting:
    """Somebody who waits for a place."""

    __slots__ = ("is_served", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.is_served = False


class Turns:
    """At most `places` holders at a time.

    A place that is given back goes to whoever waits longest, and not to whoever asks next: a semaphore would let a
    greenlet that publishes in a loop take its own place again and again, while others wait until their time is up.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._free = places
        self._waiting: deque[_Waiting] = deque()

    def take(self, timeout: float) -> bool:
        """Wait for a place; False after `timeout` seconds without one. Blocks."""
        served = threading.Event()
        waiting = self._enter(served.set)
        if waiting is None:
            return True
        is_served = False
        try:
            is_served = served.wait(timeout)
        finally:
            if not is_served:
                self._leave(waiting)
        return is_served

    async def take_in_loop(self) -> None:
        """Wait for a place in an event loop."""
        loop = asyncio.get_running_loop()
        served: asyncio.Future[None] = loop.create_future()
        waiting = self._enter(lambda: loop.call_soon_threadsafe(_resolve, served))
        if waiting is None:
            return
        try:
            await served
        except BaseException:
            self._leave(waiting)
            raise

    def give_back(self) -> None:
        """Give up a place."""
        with self._lock:
            while self._waiting:
                waiting = self._waiting.popleft()
                waiting.is_served = True
                try:
                    waiting.wake()
                except RuntimeError:  # its event loop is closed: nobody waits there any more
                    continue
                return
            self._free += 1

    def _enter(self, wake: Callable[[], object]) -> _Waiting | None:
        """Take a place, or else queue up for one."""
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            waiting = _Waiting(wake)
            self._waiting.append(waiting)
            return waiting

    def _leave(self, waiting: _Waiting) -> None:
        """Wait no longer. A place that came at that very moment goes to the next."""
        with self._lock:
            if not waiting.is_served:
                self._waiting.remove(waiting)
                return
        self.give_back()


def _resolve(served: asyncio.Future[None]) -> None:
    if not served.done():
        served.set_result(None)
