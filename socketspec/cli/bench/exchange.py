"""What the processes of a run tell each other, over a pipe each."""

from __future__ import annotations

from typing import NamedTuple

from socketspec.cli.bench.counting import Counts, Histogram

__all__ = ("Beat", "Done", "Expect", "Go", "Published", "Ready", "Stop")


class Ready(NamedTuple):
    """A worker has opened what it could."""

    joined: int
    streams: int
    """Publishers it can play."""
    failed: dict[str, int]
    example: str
    """The last refusal, for people."""


class Go(NamedTuple):
    """To a worker: publish."""

    start: float
    """time.monotonic() of the first message."""
    rate: float
    """Of this worker."""


class Beat(NamedTuple):
    """What changed since the last beat."""

    number: int
    open: int
    """Connections now, no change."""
    tried: int
    """Connections so far that got open or failed, no change."""
    failed: int
    """So far, no change."""
    published: int
    delivered: int
    latency: Histogram


class Published(NamedTuple):
    """How many messages each of a worker's publishers has sent."""

    by_stream: dict[int, int]


class Expect(NamedTuple):
    """To a worker: what all publishers have sent; wait for it, then report."""

    by_stream: dict[int, int]


class Stop(NamedTuple):
    """To a worker: end early, in order."""


class Done(NamedTuple):
    """Everything a worker has counted."""

    counts: Counts
    cpu: float
    """Of one core, while publishing: 1.0 is a whole core."""
    behind: float
    """Seconds that publishing was late at most."""
    lasted: float
    """Seconds from the first message to the last arrival."""
