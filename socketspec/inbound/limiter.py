"""Applies the app's `RateLimit`: which bucket an event draws from, and when a client has gone too far."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from socketspec.backend.protocols import Limits
from socketspec.backend.rate_buckets import BucketTable
from socketspec.connection.connection import Connection
from socketspec.declaration.groups import Limit

__all__ = ("Limiter",)


class Limiter:
    """Finds an event's bucket. A connection's own bucket is this node's; others are shared by nodes, if they can be.

    `name` tells the buckets of a limit from those of others; the app's has none.
    """

    def __init__(self, limit: Limit, limits: Limits, *, shared: bool, name: str = "") -> None:
        self._limit = limit
        self._name = f"{name}\n" if name else ""  # no name of an event has a line break
        self._limits = limits
        self._shared = shared
        self._buckets = BucketTable(limit.rate, limit.capacity)
        self._violations = BucketTable(limit.rate, limit.max_violations) if limit.max_violations else None

    def check(self, conn: Connection, now: float) -> float | Coroutine[Any, Any, float]:
        """0.0 when the event may pass, else the seconds until one may; to be awaited where other nodes are asked."""
        key = self._key(conn)
        if key is None:
            return self._buckets.take(f"connection:{conn.id}", now)
        if self._shared:
            return self._limits.take(self._name + key, rate=self._limit.rate, capacity=self._limit.capacity)
        return self._buckets.take(key, now)

    async def wait(self, conn: Connection, now: float) -> float:
        """What `check` says, after waiting for other nodes where they are asked."""
        verdict = self.check(conn, now)
        return verdict if isinstance(verdict, float | int) else await verdict

    def is_abuse(self, conn: Connection, now: float) -> bool:
        """Count one refusal; True when the connection has had more than `max_violations` of them.

        They are forgotten at `rate` a second.
        """
        return self._violations is not None and self._violations.take(conn.id, now) > 0

    def _key(self, conn: Connection) -> str | None:
        """The shared bucket's key; None for the connection's own bucket."""
        scope = self._limit.scope
        user = conn.identity.user_id
        if scope is None:
            return f"user:{user}" if self._shared and user is not None else None
        if scope == "connection":
            return None
        if scope == "user":
            return f"user:{user}" if user is not None else None
        if scope == "ip":
            client = conn.handshake.client
            return f"ip:{client[0]}" if client is not None else None
        return _custom(scope, conn)


def _custom(scope: Callable[[Connection], str], conn: Connection) -> str:
    key: object = scope(conn)
    if not isinstance(key, str):
        raise TypeError(f"RateLimit's scope function must return the bucket's name as a str, not {type(key).__name__}")
    return f"custom:{key}"
