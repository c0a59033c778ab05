"""Notices a client that takes nothing of what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ("StallWatch",)

LOOKS: Final = 4
"""How often, within the timeout, it is looked whether the client has taken anything."""


class StallWatch:
    """Calls `stalled` once nothing of `waiting` bytes was taken for `timeout` seconds, or a quarter more."""

    __slots__ = ("_in_vain", "_left", "_loop", "_pause", "_stalled", "_timer", "_waiting")

    def __init__(self, timeout: float, waiting: Callable[[], int], stalled: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pause = timeout / LOOKS
        self._waiting = waiting
        self._stalled = stalled
        self._left = waiting()
        self._in_vain = 0
        self._timer = self._loop.call_later(self._pause, self._look)

    def cancel(self) -> None:
        """It has taken all, or is gone."""
        self._timer.cancel()

    def _look(self) -> None:
        waiting = self._waiting()
        self._in_vain = 0 if waiting < self._left else self._in_vain + 1
        self._left = waiting
        if self._in_vain < LOOKS:
            self._timer = self._loop.call_later(self._pause, self._look)
        else:
            self._stalled()
