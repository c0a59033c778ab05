"""How long this process did not get the processor: a machine that is busy with others makes every deadline later."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final, Self

__all__ = ("Stalls",)

STEP: Final = 0.05
ORDINARY: Final = 0.02
"""Seconds that a turn of the event loop may come late without being one."""


class Stalls:
    """Adds up how much later than asked the event loop came back to a task that only sleeps."""

    def __init__(self) -> None:
        self.seconds: float = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch(), name="stalls")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(STEP)
            late = time.monotonic() - began - STEP
            if late > ORDINARY:
                self.seconds += late
