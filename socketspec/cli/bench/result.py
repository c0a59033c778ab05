"""What came of a run: numbers for programs, a table for people, and what they should make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from socketspec import __version__
from socketspec.cli.bench.counting import Counts, Histogram
from socketspec.cli.bench.load import Load, Target
from socketspec.errors import CLOSE_CODES

__all__ = ("PERCENTILES", "Point", "Result", "close_name")

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
BUSY: Final = 0.85
"""Part of a core from which on a load process may itself be what is slow."""
LATE: Final = 0.1
"""Seconds that publishing may be late before it is said."""


@dataclass(slots=True)
class Point:
    """What happened in one interval of the run, all processes together."""

    open: int = 0
    published: int = 0
    delivered: int = 0
    latency: Histogram = field(default_factory=Histogram)


@dataclass(slots=True, kw_only=True)
class Result:
    """A run that was made."""

    load: Load
    started: str
    """When, in UTC, as ISO 8601."""
    interval: float
    """Seconds of a point."""
    ramp: float
    """Seconds that opening the connections took."""
    start: float
    """Seconds from the beginning to the first message."""
    counts: Counts = field(default_factory=Counts)
    points: dict[int, Point] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    """Of each load process, of one core."""
    behind: float = 0.0
    lasted: float = 0.0
    """Seconds from the first message to the last arrival."""
    is_interrupted: bool = False

    @property
    def delivered_rate(self) -> float:
        """Deliveries a second, from the first message to the last arrival or the end of the publishing."""
        return self.counts.delivered / max(self.lasted, self._published_for, 1e-9)

    @property
    def published_rate(self) -> float:
        """Messages published a second."""
        return self.counts.published / max(self._published_for, 1e-9)

    @property
    def _published_for(self) -> float:
        return self.lasted if self.is_interrupted else self.load.duration

    @property
    def is_complete(self) -> bool:
        """Whether everybody was let in and everything arrived, once."""
        counts = self.counts
        wrong = counts.lost + counts.missed + counts.duplicates + counts.misdelivered + counts.skipped
        return not (wrong or counts.failed or counts.closed or counts.failed_publishes)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; times in milliseconds."""
        load, counts = self.load, self.counts
        return {
            "socketspec": __version__,
            "started": self.started,
            "interrupted": self.is_interrupted,
            "options": options_of(load),
            "connections": {
                "asked": load.connections,
                "opened": counts.opened,
                "joined": counts.joined,
                "failed": dict(counts.failed),
                "closed": dict(counts.closed),
                "ramp_seconds": round(self.ramp, 3),
                "connect_ms": times(counts.connecting),
                "join_ms": times(counts.joining),
            },
            "messages": {
                "published": counts.published,
                "published_per_second": round(self.published_rate, 1),
                "skipped": counts.skipped,
                "failed_publishes": dict(counts.failed_publishes),
                "expected": counts.expected,
                "delivered": counts.delivered,
                "delivered_per_second": round(self.delivered_rate, 1),
                "lost": counts.lost,
                "gaps": counts.gaps,
                "duplicates": counts.duplicates,
                "late": counts.late,
                "misdelivered": counts.misdelivered,
                "missed_by_closed": counts.missed,
                "received_bytes": counts.received_bytes,
                "errors": dict(counts.errors),
            },
            "latency_ms": times(counts.latency),
            "generator": {
                "cpu": [round(part, 3) for part in self.cpu],
                "behind_ms": round(self.behind * 1e3, 3),
            },
            "series": [
                {
                    "at": round(number * self.interval - self.start, 3),
                    "open": point.open,
                    "published_per_second": round(point.published / self.interval, 1),
                    "delivered_per_second": round(point.delivered / self.interval, 1),
                    "p50_ms": _milliseconds(point.latency.percentile(0.5)),
                    "p99_ms": _milliseconds(point.latency.percentile(0.99)),
                }
                for number, point in sorted(self.points.items())
            ],
            "remarks": self.remarks(),
        }

    def rows(self) -> list[tuple[str, str]]:
        """The table of the summary."""
        counts = self.counts
        connect = times(counts.connecting)
        latency = times(counts.latency)
        rows = [
            ("connections", f"{counts.joined:,} of {self.load.connections:,}, within {self.ramp:.1f} s"),
            ("  time to connect", f"p50 {connect['p50']:,} ms, p99 {connect['p99']:,} ms, max {connect['max']:,} ms"),
            ("  failed", _listed(counts.failed)),
            ("  closed by the server", _listed({close_name(code): number for code, number in counts.closed.items()})),
            ("published", f"{counts.published:,}, {self.published_rate:,.0f} a second"),
            ("delivered", f"{counts.delivered:,} of {counts.expected:,}, {self.delivered_rate:,.0f} a second"),
            ("latency", ", ".join(f"{name} {latency[name]:,} ms" for name in ("p50", "p90", "p99", "max"))),
            ("lost", f"{counts.lost:,} in {counts.gaps:,} gaps"),
            ("duplicates", f"{counts.duplicates:,}"),
            ("out of order", f"{counts.late:,}"),
        ]
        for name, value in (("misdelivered", counts.misdelivered), ("missed by closed", counts.missed)):
            if value:
                rows.append((name, f"{value:,}"))
        if counts.errors:
            rows.append(("errors answered", _listed(counts.errors)))
        return rows

    def remarks(self) -> list[str]:
        """What to make of it, in sentences."""
        counts, found = self.counts, []
        if self.is_interrupted:
            found.append("The run was interrupted: the figures are of what had been done by then.")
        if (busiest := max(self.cpu, default=0.0)) > BUSY:
            found.append(
                f"The load generator was busy ({busiest:.0%} of a core): part of the latency may be its own. "
                "Use more --processes, or other machines."
            )
        elif self.behind > LATE:
            found.append(
                f"Messages were published up to {self.behind * 1e3:.0f} ms late, though the load generator was not "
                "busy: this machine has too little CPU for all that runs on it, and latency includes that."
            )
        if counts.errors.get("RATE_LIMIT_ERROR"):
            found.append(
                "The app's rate limit refused messages: they count as lost. Use more --publishers, or --token-file."
            )
        if counts.skipped:
            found.append(f"{counts.skipped:,} messages were due and not published: they were not taken fast enough.")
        for reason, number in counts.failed_publishes.items():
            found.append(
                f"{number:,} times the backend did not take messages, which may have been sent or not: {reason}"
            )
        if counts.misdelivered:
            found.append("Messages came to connections that are not in their room.")
        return found


def options_of(load: Load) -> dict[str, Any]:
    """What was asked, without secrets."""
    return {
        "url": Target.parse(load.url).shown,
        "connections": load.connections,
        "rooms": load.rooms,
        "rooms_per_connection": load.rooms_per_connection,
        "publishers": load.publishers_per_room,
        "through": "backend" if load.backend is not None else "connections",
        "rate": load.rate,
        "duration": load.duration,
        "size": load.size,
        "processes": load.processes,
        "connect_rate": load.connect_rate,
        "subprotocol": load.subprotocol,
        "tokens": len(load.tokens),
        "headers": [name for name, _ in load.headers],
    }


def times(histogram: Histogram) -> dict[str, float]:
    """Percentiles, mean and highest in milliseconds, and how many there were."""
    found = {name: _milliseconds(histogram.percentile(part)) for name, part in PERCENTILES.items()}
    highest = _milliseconds(histogram.highest)
    return {**found, "max": highest, "mean": _milliseconds(histogram.mean), "count": histogram.count}


def close_name(code: str) -> str:
    """A close code with the reason it stands for."""
    known = {int(each): info.reason for each, info in CLOSE_CODES.items()} | {1006: "no close frame"}
    return f"{code} {known[int(code)]}" if int(code) in known else code


def _milliseconds(nanoseconds: float) -> float:
    return round(nanoseconds / 1e6, 3)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items())) or "0"
