"""`Backoff`: how long to wait between tries."""

from __future__ import annotations

import random

__all__ = ("Backoff",)


class Backoff:
    """Growing pauses: 50 ms, doubled up to a second, each up to a quarter longer by chance."""

    def __init__(self) -> None:
        self._next = 0.05

    def next(self) -> float:
        """The next pause in seconds."""
        pause, self._next = self._next, min(2 * self._next, 1.0)
        return pause * (1 + random.random() / 4)  # noqa: S311 # this spreads nodes out and keeps no secret

    def reset(self) -> None:
        """Begin anew."""
        self._next = 0.05
