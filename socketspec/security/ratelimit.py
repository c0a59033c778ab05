"""How many events a client may send: token buckets, and the table that holds many of them in bounded memory."""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from types import UnionType
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from socketspec.errors import ConfigurationError

if TYPE_CHECKING:
    from socketspec.connection import Connection

__all__ = ("BucketTable", "RateLimit", "ScopeName", "TokenBucket")

ScopeName: TypeAlias = Literal["connection", "user", "ip"]
"""The scopes that have a name."""

# Summing many refills in floats may end this far below a whole token that is there.
_ROUNDING = 1e-9
_LARGEST = 1e15


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Allow `rate` events a second, after bursts of up to `capacity`. Raises `ConfigurationError` for a bad value."""

    rate: float
    """Events a second in the long run; may be a fraction."""
    capacity: float
    """How many events may come at once; at least 1."""
    _: KW_ONLY
    scope: ScopeName | Callable[[Connection], str] | None = None
    """Who shares a bucket: one connection, one user, one client address, or all for whom a function returns one key.

    None: the user where the backend is shared between nodes and the user is authenticated, else the connection.
    """
    max_violations: int = 100
    """Close with 4007 ``rate_limited`` once this many events were refused; 0: never.

    Refused events are forgotten at `rate` a second, so only a client that keeps sending more than twice its rate, or
    one that floods, is closed.
    """

    def __post_init__(self) -> None:
        if not _is_number(self.rate) or not 0 < self.rate <= _LARGEST:
            raise ConfigurationError(
                f"RateLimit(rate={self.rate!r}): rate must be a finite number of events a second greater than 0, "
                "for example 10, or 0.5 for one event every two seconds."
            )
        if not _is_number(self.capacity) or not 1 <= self.capacity <= _LARGEST:
            raise ConfigurationError(
                f"RateLimit(capacity={self.capacity!r}): capacity must be a finite number of events, at least 1: "
                "with less, no event could ever pass."
            )
        if not _is_number(self.max_violations, int) or self.max_violations < 0:
            raise ConfigurationError(
                f"RateLimit(max_violations={self.max_violations!r}): max_violations must be a whole number of refused "
                "events, or 0 to never close a connection for them."
            )
        _check_scope(self.scope)

    def bucket(self, now: float) -> TokenBucket:
        """A full bucket for events."""
        return TokenBucket(self.rate, self.capacity, now)

    def violations_bucket(self, now: float) -> TokenBucket | None:
        """A bucket to take from for each refused event: close when it is empty. None: never close."""
        return TokenBucket(self.rate, self.max_violations, now) if self.max_violations else None


def _is_number(value: object, kind: type[int] | UnionType = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_scope(scope: object) -> None:
    names = get_args(ScopeName)
    if scope is None or (isinstance(scope, str) and scope in names):
        return
    if not callable(scope):
        raise ConfigurationError(
            f"RateLimit(scope={scope!r}): scope must be one of {', '.join(map(repr, names))}, a function that takes "
            "the connection and returns the bucket's key as a str, or None to have it chosen."
        )
    if inspect.iscoroutinefunction(scope):
        raise ConfigurationError(
            f"RateLimit(scope={scope!r}): the scope function is called for every event and must be a plain `def`, not "
            "`async def`. Look things up in `on_connect` and keep them in `conn.metadata`."
        )


class TokenBucket:
    """Holds up to `capacity` tokens, starts full, gains `rate` a second. Times are seconds on a monotonic clock."""

    __slots__ = ("_tokens", "_updated", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate: float = rate
        self.capacity: float = capacity
        self._tokens: float = capacity
        self._updated = now

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take `cost` tokens and return 0.0; else take nothing and return the seconds until there are enough.

        Returns `math.inf` where `cost` is more than `capacity`. A `now` that lies before an earlier one refills
        nothing. Raises `ValueError` for a negative `cost`.
        """
        if cost < 0:
            raise ValueError(f"cost is {cost!r}; taking less than nothing would fill the bucket")
        tokens = self._tokens
        if now > self._updated:
            tokens = min(self.capacity, tokens + (now - self._updated) * self.rate)
            self._tokens = tokens
            self._updated = now
        if tokens + _ROUNDING >= cost:
            self._tokens = tokens - cost  # may fall below 0 by the rounding: as a debt, so that it does not add up
            return 0.0
        if cost > self.capacity:
            return math.inf
        return self._updated - now + (cost - tokens) / self.rate

    def is_full(self, now: float) -> bool:
        """Whether it holds `capacity` tokens at `now`, as a new bucket would."""
        return self._tokens + (now - self._updated) * self.rate >= self.capacity


class BucketTable:
    """Token buckets by key, for limits that connections of one node share. Holds at most `max_keys` buckets.

    A bucket that is full again equals a new one and is dropped as others are used: a key costs memory for about
    ``capacity / rate`` seconds after its last event. Where `max_keys` buckets are in use, the least recently used one
    makes room; whoever it belonged to is then allowed at most one burst too many. Takes constant time.
    """

    __slots__ = ("_buckets", "capacity", "max_keys", "rate")

    def __init__(self, rate: float, capacity: float, *, max_keys: int = 100_000) -> None:
        if max_keys < 1:
            raise ConfigurationError(f"BucketTable(max_keys={max_keys!r}): max_keys must be at least 1.")
        self.rate: float = rate
        self.capacity: float = capacity
        self.max_keys: int = max_keys
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._buckets)

    def __contains__(self, key: str) -> bool:
        return key in self._buckets

    def take(self, key: str, now: float, cost: float = 1.0) -> float:
        """`TokenBucket.take` on the bucket of `key`."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            self._buckets.move_to_end(key)
        else:
            if len(self._buckets) >= self.max_keys:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = TokenBucket(self.rate, self.capacity, now)
        wait = bucket.take(now, cost)
        self._drop_full(now)  # after the take: before it, the bucket in use may itself be full
        return wait

    def _drop_full(self, now: float) -> None:
        # Two a call against one that may be added: the table shrinks faster than it can grow.
        for _ in range(2):
            key = next(iter(self._buckets), None)
            if key is None or not self._buckets[key].is_full(now):
                return
            del self._buckets[key]
