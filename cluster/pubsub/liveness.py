"""How long to wait for something that time alone does not disprove."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from socketspec.cluster.pubsub.link import Link

__all__ = ("Patience",)

SLICE: Final = 0.2
"""Seconds of waiting at once; of each, at most twice as much counts, however long the event loop was away."""


class Patience:
    """Waits for something to become true, for `left` seconds in which it could have."""

    def __init__(self, link: Link, news: asyncio.Event, left: float) -> None:
        self._link = link
        self._news = news
        self._left = left

    def at_least(self, seconds: float) -> None:
        """Have that much left."""
        self._left = max(self._left, seconds)

    async def until(self, is_true: Callable[[], bool]) -> bool:
        """Whether it became true in time, before the link was lost."""
        loop = asyncio.get_running_loop()
        while not is_true():
            if self._left <= 0 or self._link.closed.done():
                return False
            self._news.clear()
            began, was_paused = loop.time(), self._link.is_paused
            try:
                async with asyncio.timeout(min(SLICE, self._left)):
                    await self._news.wait()
            except TimeoutError:
                pass
            if not (was_paused or self._link.is_paused):
                self._left -= min(loop.time() - began, 2 * SLICE)
        return True
