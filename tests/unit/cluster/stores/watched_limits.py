"""Shared limits that say how many buckets they remember: that this is bounded cannot be seen from outside."""

from __future__ import annotations

from socketspec.cluster.stores.limits import RedisLimits

__all__ = ("WatchedLimits",)


class WatchedLimits(RedisLimits):
    """Its length is the number of buckets that this node remembers."""

    def __len__(self) -> int:
        return len(self._locals)
