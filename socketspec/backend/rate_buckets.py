"""Token buckets, and a table that holds many of them in bounded memory."""

from __future__ import annotations

from collections import OrderedDict

from socketspec.errors import ConfigurationError

__all__ = ("BucketTable", "TokenBucket")


# Summing many refills in floats may end this far below a whole token that is there.
_ROUNDING = 1e-9


class TokenBucket:
    """Holds up to `capacity` tokens, starts full, gains `rate` a second. Times are seconds on a monotonic clock."""

    __slots__ = ("_tokens", "_updated", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate: float = rate
        self.capacity: float = capacity
        self._tokens: float = capacity
        self._updated = now

    def take(self, now: float) -> float:
        """Take a token and return 0.0; else take nothing and return the seconds until there is one.

        A `now` that lies before an earlier one refills nothing.
        """
        tokens = self._tokens
        if now > self._updated:
            tokens = min(self.capacity, tokens + (now - self._updated) * self.rate)
            self._tokens = tokens
            self._updated = now
        if tokens + _ROUNDING >= 1:
            self._tokens = tokens - 1  # may fall below 0 by the rounding: as a debt, so that it does not add up
            return 0.0
        return self._updated - now + (1 - tokens) / self.rate

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

    def take(self, key: str, now: float) -> float:
        """`TokenBucket.take` on the bucket of `key`."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            self._buckets.move_to_end(key)
        else:
            if len(self._buckets) >= self.max_keys:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = TokenBucket(self.rate, self.capacity, now)
        wait = bucket.take(now)
        self._drop_full(now)  # after the take: before it, the bucket in use may itself be full
        return wait

    def _drop_full(self, now: float) -> None:
        # Two a call against one that may be added: the table shrinks faster than it can grow.
        for _ in range(2):
            key = next(iter(self._buckets), None)
            if key is None or not self._buckets[key].is_full(now):
                return
            del self._buckets[key]
