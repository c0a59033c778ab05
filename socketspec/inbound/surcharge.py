"""What a resume costs beyond its one token: each room that the client names without a right to it costs one more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from socketspec.connection.connection import Connection
from socketspec.errors import CloseCode, ErrorCode, RateLimited
from socketspec.inbound.limiter import Limiter
from socketspec.telemetry.counters import Counters

__all__ = ("Surcharge",)

CREDIT: Final = 10
"""Rooms without a right that are looked at in one resume when there is no token left.

Rights are known only after the look, so looking stops late: rooms with a right, wherever they stand in the list, must
not be lost.
"""


class Surcharge:
    """The costs of one resume. Without a `limiter` there are none."""

    def __init__(self, conn: Connection, limiter: Limiter | None, counters: Counters, now: Callable[[], float]) -> None:
        self._conn = conn
        self._limiter = limiter
        self._counters = counters
        self._now = now
        self._wait = 0.0
        self._refused = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether no room is looked at any more to find out if there is a right to it."""
        return self._refused >= CREDIT

    async def take(self) -> dict[str, Any] | None:
        """Pay for a room without a right. Returns the room's row where there is no token left, else None."""
        if self._limiter is None:
            return None
        if not self._wait:
            self._wait = await self._limiter.wait(self._conn, self._now())
        return self.refuse() if self._wait else None

    def refuse(self) -> dict[str, Any]:
        """The row of a room that there is no token for. Like every refusal it counts, and closes in the end."""
        self._refused += 1
        self._counters.rate_limited += 1
        retry_after = round(self._wait, 3)
        if self._limiter is not None and self._limiter.is_abuse(self._conn, self._now()):
            error = RateLimited("Too many rooms without a right to them.", details={"retry_after": retry_after})
            self._conn.close(CloseCode.RATE_LIMITED, error=error)
        return {"recovered": False, "reason": ErrorCode.RATE_LIMIT_ERROR, "retry_after": retry_after}
