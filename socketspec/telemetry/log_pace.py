"""`OnceAMinute`: the pace of a log line that the same trouble would make again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ("LOG_EVERY", "OnceAMinute")

LOG_EVERY: Final = 60.0
"""Seconds between two such lines."""


class OnceAMinute:
    """Says whether the line is due. `now` is a monotonic clock in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._said_at = float("-inf")

    def is_due(self) -> bool:
        """Whether it may be logged now; if so, not again for a minute."""
        now = self._now()
        if now - self._said_at < LOG_EVERY:
            return False
        self._said_at = now
        return True
