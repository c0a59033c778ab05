"""What is counted: times in buckets, sequence numbers, and totals that can be added up over processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Final, NamedTuple

__all__ = ("Counts", "Histogram", "Missing", "Seen", "Sequences", "count_in")

_BITS: Final = 6
"""Each power of two is cut into 64 buckets: a percentile is less than 1.6 % off."""
_HALF: Final = 1 << _BITS
MAX_MISSING: Final = 4096
"""Missing numbers that one connection remembers; further ones count as lost at once."""
MAX_KEYS: Final = 64
"""Kinds of failures, closes or errors that are told apart."""


class Histogram:
    """How often which time was measured, in buckets; of bounded size, and exact at its ends."""

    __slots__ = ("buckets", "count", "highest", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count: int = 0
        self.total: int = 0
        self.highest: int = 0

    def add(self, nanoseconds: int) -> None:
        """Note one time; a negative one counts as none at all."""
        value = nanoseconds if nanoseconds > 0 else 0
        shift = value.bit_length() - _BITS - 1
        bucket = value if shift <= 0 else (shift << _BITS) + (value >> shift)
        buckets = self.buckets
        buckets[bucket] = buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += value
        if value > self.highest:
            self.highest = value

    def merge(self, other: Histogram) -> None:
        """Add what another one has."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.total += other.total
        self.highest = max(self.highest, other.highest)

    def copy(self) -> Histogram:
        """One of its own with the same content."""
        made = Histogram()
        made.merge(self)
        return made

    def since(self, earlier: Histogram) -> Histogram:
        """What was added after `earlier`, a copy, was made. Its highest is that of the highest bucket."""
        made = Histogram()
        had = earlier.buckets
        made.buckets = {key: count - had.get(key, 0) for key, count in self.buckets.items() if count > had.get(key, 0)}
        made.count = self.count - earlier.count
        made.total = self.total - earlier.total
        made.highest = min(_top(max(made.buckets, default=0)), self.highest)
        return made

    def percentile(self, part: float) -> float:
        """Nanoseconds within which `part` (0 to 1) of the times are; 0 where there are none."""
        wanted, seen = part * self.count, 0
        if not self.count:
            return 0.0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return float(min(_top(bucket), self.highest))
        return float(self.highest)

    @property
    def mean(self) -> float:
        """Nanoseconds; 0 where there are none."""
        return self.total / self.count if self.count else 0.0


def _top(bucket: int) -> int:
    """The largest value of a bucket."""
    if bucket < 2 * _HALF:
        return bucket
    shift = (bucket >> _BITS) - 1
    return ((bucket - (shift << _BITS) + 1) << shift) - 1


class Seen(IntEnum):
    """What a number that arrives is."""

    NEW = 0
    LATE = 1
    """It comes after a higher one of its stream."""
    DUPLICATE = 2
    STRANGE = 3
    """Of a room that the connection is not in, or of a publisher that nobody plays."""


class Missing(NamedTuple):
    """What did not arrive."""

    messages: int
    gaps: int
    """Runs of consecutive numbers; a stream whose last messages are missing has one more."""


class Sequences:
    """The numbers that one connection has got, by stream. Each stream counts from 1."""

    __slots__ = ("_gone", "_last", "_missing")

    def __init__(self, streams: Iterable[int]) -> None:
        self._last = dict.fromkeys(streams, 0)
        self._missing: set[tuple[int, int]] | None = None
        self._gone = 0

    def see(self, stream: int, number: int) -> Seen:
        """Note that a number has come."""
        last = self._last.get(stream)
        if last is None or number < 1:
            return Seen.STRANGE
        if number == last + 1:
            self._last[stream] = number
            return Seen.NEW
        if number > last:
            self._last[stream] = number
            self._skip(stream, last + 1, number)
            return Seen.NEW
        missing = self._missing
        if missing is not None and (stream, number) in missing:
            missing.discard((stream, number))
            return Seen.LATE
        return Seen.DUPLICATE

    def _skip(self, stream: int, first: int, end: int) -> None:
        if self._missing is None:
            self._missing = set()
        room = max(MAX_MISSING - len(self._missing), 0)
        kept = min(first + room, end)
        self._missing.update((stream, number) for number in range(first, kept))
        self._gone += end - kept

    def missing(self, published: Mapping[int, int]) -> Missing:
        """What has not come of what was published."""
        messages, gaps = self._gone, int(self._gone > 0)
        skipped = self._missing or set()
        messages += len(skipped)
        gaps += sum((stream, number - 1) not in skipped for stream, number in skipped)
        for stream, last in self._last.items():
            behind = published.get(stream, 0) - last
            if behind > 0:
                messages += behind
                gaps += 1
        return Missing(messages, gaps)

    def expected(self, published: Mapping[int, int]) -> int:
        """How many messages had to come."""
        return sum(published.get(stream, 0) for stream in self._last)


def count_in(counter: Counter[str], key: str) -> None:
    """Count a kind; beyond `MAX_KEYS` of them, under "other"."""
    counter[key if key in counter or len(counter) < MAX_KEYS else "other"] += 1


@dataclass(slots=True)
class Counts:
    """Everything one process has counted; the sum of several is that of all."""

    opened: int = 0
    joined: int = 0
    failed: Counter[str] = field(default_factory=Counter[str])
    """Connections that did not get open or into their rooms, by reason."""
    closed: Counter[str] = field(default_factory=Counter[str])
    """Connections that the server closed while the run went on, by code."""
    published: int = 0
    skipped: int = 0
    """Messages that were due while their publisher's connection took nothing."""
    failed_publishes: Counter[str] = field(default_factory=Counter[str])
    """Messages that the backend did not take, by error."""
    delivered: int = 0
    """Each message once for each connection."""
    late: int = 0
    duplicates: int = 0
    misdelivered: int = 0
    received_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    """``__error__`` events, by code."""
    expected: int = 0
    lost: int = 0
    gaps: int = 0
    missed: int = 0
    """What did not reach connections that had been closed meanwhile."""
    latency: Histogram = field(default_factory=Histogram)
    connecting: Histogram = field(default_factory=Histogram)
    joining: Histogram = field(default_factory=Histogram)

    def add(self, other: Counts) -> None:
        """Add what another process has counted."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Histogram):
                mine.merge(theirs)
            elif isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, each.name, mine + theirs)
