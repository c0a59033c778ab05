"""`Backoff`: how long to wait between tries."""

from __future__ import annotations

import random
from typing import Final

__all__ = ("QUICK", "Backoff")

QUICK: Final = 40
"""Pauses that stay short for what others wait for: so many take about ten seconds."""
SHORT: Final = 0.3
"""Seconds of such a pause, at most a quarter longer."""


class Backoff:
    """Growing pauses: 50 ms, doubled up to a second, each up to a quarter longer by chance.

    The first `quick` are short, so that what was away for a moment is found back soon.
    """

    def __init__(self, quick: int = 0) -> None:
        self._quick = quick
        self._next = 0.05
        self._count = 0

    def next(self) -> float:
        """The next pause in seconds."""
        self._count += 1
        pause, self._next = self._next, min(2 * self._next, SHORT if self._count < self._quick else 1.0)
        return pause * (1 + random.random() / 4)  # noqa: S311 # this spreads nodes out and keeps no secret

    def reset(self) -> None:
        """Begin anew."""
        self._next = 0.05
        self._count = 0
