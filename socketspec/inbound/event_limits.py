"""Applies the limits of events and routers, beside the app's: each has buckets of its own."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from socketspec.backend.protocols import Limits
from socketspec.connection.connection import Connection
from socketspec.declaration.groups import Bucket
from socketspec.errors import CloseCode, RateLimited
from socketspec.inbound.limiter import Limiter
from socketspec.telemetry.counters import Counters

__all__ = ("EventLimits", "Refused")


class Refused(NamedTuple):
    """An event that may not pass."""

    limiter: Limiter
    """What refuses it, and tells abuse."""
    wait: float
    """Seconds until one may pass."""


class EventLimits:
    """The limiters of an app's events and routers, each made when it is first needed."""

    def __init__(self, limits: Limits, counters: Counters, *, shared: bool) -> None:
        self._limits = limits
        self._counters = counters
        self._shared = shared
        self._limiters: dict[Bucket, Limiter] = {}

    def check(
        self, conn: Connection, buckets: Sequence[Bucket], now: float
    ) -> Refused | Coroutine[Any, Any, Refused | None] | None:
        """None when an event may pass all of `buckets`, else which refuses it; to be awaited where nodes are asked."""
        for position, bucket in enumerate(buckets):
            limiter = self._limiter(bucket)
            verdict = limiter.check(conn, now)
            if not isinstance(verdict, float | int):
                return self._waited(conn, limiter, verdict, buckets[position + 1 :], now)
            if verdict > 0:
                return Refused(limiter, verdict)
        return None

    def refuse(self, conn: Connection, event: str, id: str | int | None, refused: Refused, now: float) -> None:
        """Answer an event that may not pass; a client that goes on with those is closed."""
        self._counters.rate_limited += 1
        self._counters.count_event(event, "rate_limited")
        error = RateLimited(f"Too many events {event!r}.", details={"retry_after": round(refused.wait, 3)})
        if refused.limiter.is_abuse(conn, now):
            conn.close(CloseCode.RATE_LIMITED, error=error)
        else:
            conn.send_error(error, event=event, id=id)

    async def _waited(
        self,
        conn: Connection,
        limiter: Limiter,
        verdict: Coroutine[Any, Any, float],
        others: Sequence[Bucket],
        now: float,
    ) -> Refused | None:
        wait = await verdict
        for bucket in others:
            if wait > 0:
                break
            limiter = self._limiter(bucket)
            wait = await limiter.wait(conn, now)
        return Refused(limiter, wait) if wait > 0 else None

    def _limiter(self, bucket: Bucket) -> Limiter:
        limiter = self._limiters.get(bucket)
        if limiter is None:
            limiter = self._limiters[bucket] = Limiter(
                bucket.limit, self._limits, shared=self._shared, name=bucket.name
            )
        return limiter
