"""Notices a client that takes nothing of what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ("StallWatch",)

CHECKS: Final = 4
"""How often within the timeout to check whether the client has taken anything."""


class StallWatch:
    """Calls `stalled` when the number of `waiting` bytes has not gone down for `timeout` seconds, or a quarter more."""

    __slots__ = ("_in_vain", "_left", "_loop", "_pause", "_stalled", "_timer", "_waiting")

    def __init__(self, timeout: float, waiting: Callable[[], int], stalled: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pause = timeout / CHECKS
        self._waiting = waiting
        self._stalled = stalled
        self._left = waiting()
        self._in_vain = 0
        self._timer = self._loop.call_later(self._pause, self._check)

    def cancel(self) -> None:
        """Stop watching: the client has taken everything, or is gone."""
        self._timer.cancel()

    def _check(self) -> None:
        waiting = self._waiting()
        self._in_vain = 0 if waiting < self._left else self._in_vain + 1
        self._left = waiting
        if self._in_vain < CHECKS:
            self._timer = self._loop.call_later(self._pause, self._check)
        else:
            self._stalled()
