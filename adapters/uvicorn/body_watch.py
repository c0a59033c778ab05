"""Notices a request whose body comes too slowly, or is not wanted any more: a byte now and then keeps nothing open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ("BODY_PERIOD", "LEAST_BYTES", "BodyWatch")

BODY_PERIOD: Final = 10.0
"""Seconds in which `LEAST_BYTES` of a body have to come, or its end."""
LEAST_BYTES: Final = 5_000


class BodyWatch:
    """Watches one body from its first byte on, and calls `late` once if it comes too slowly."""

    def __init__(self, loop: asyncio.AbstractEventLoop, is_held: Callable[[], bool], late: Callable[[], None]) -> None:
        self._loop = loop
        self._is_held = is_held
        self._late = late
        self._came = 0
        self._is_wanted = True
        self._timer = loop.call_later(BODY_PERIOD, self._check)

    def came(self, size: int) -> None:
        """So many bytes were received."""
        self._came += size

    def is_answered(self) -> None:
        """The answer is out: what is left of the body has until the next check."""
        self._is_wanted = False

    def stop(self) -> None:
        """The body is complete, or the connection is gone."""
        self._timer.cancel()

    def _check(self) -> None:
        # While the application does not take what has come, nothing is read: that is not the client's fault.
        if self._is_wanted and (self._came >= LEAST_BYTES or self._is_held()):
            self._came = 0
            self._timer = self._loop.call_later(BODY_PERIOD, self._check)
        else:
            self._late()
