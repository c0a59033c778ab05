"""What an engine counts while it works: plain numbers, which cost next to nothing.

`socketspec.adapters.prometheus` turns them into metrics. Nothing here is locked: an engine has one event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from socketspec.errors import CLOSE_CODES, CloseCode

__all__ = ("RECIPIENTS", "SECONDS", "Counters", "Histogram")

SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets for durations."""
RECIPIENTS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000)
"""Upper bounds of the buckets for how many connections got a message."""

_REASONS: Final = frozenset(
    {info.reason for info in CLOSE_CODES.values()}
    | {"auth_expired", "client_closed", "client_going_away", "connection_lost", "message_too_big", "server_shutdown"}
)

_SLOW: Final = CLOSE_CODES[CloseCode.SLOW_CONSUMER].reason
_UNAUTHENTICATED: Final = CLOSE_CODES[CloseCode.AUTH_FAILED].reason


class Histogram:
    """How often a value fell into each bucket."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds: tuple[float, ...] = tuple(bounds)
        self.counts: list[int] = [0] * (len(self.bounds) + 1)
        """For each bound the values up to it and above the one before; last, those above all bounds."""
        self.sum: float = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Counters:
    """The figures of one engine since its start. Whoever has something to count adds to one, or calls a method."""

    __slots__ = (
        "auth_failures",
        "broadcasts",
        "closed",
        "dropped",
        "events",
        "fanout_recipients",
        "fanout_seconds",
        "handler_seconds",
        "joins",
        "leaves",
        "opened",
        "rate_limited",
        "received_bytes",
        "recoveries",
        "refused",
        "sent",
        "sent_bytes",
        "slow_consumers",
    )

    def __init__(self) -> None:
        self.opened: int = 0
        """Connections whose handshake was accepted."""
        self.closed: dict[str, int] = {}
        """By reason; see `count_closed`."""
        self.recoveries: dict[str, int] = {}
        """Rooms that clients resumed, by outcome: ``recovered``, or the reason why not, as in ``__resume__``."""
        self.refused: dict[int, int] = {}
        """Handshakes refused, by HTTP status."""
        self.auth_failures: int = 0
        """Connections closed because their credentials were missing or refused."""
        self.joins: int = 0
        self.leaves: int = 0
        self.events: dict[tuple[str, str], int] = {}
        """Messages from clients, by event and outcome; see `count_event`."""
        self.handler_seconds: dict[str, Histogram] = {}
        """By event."""
        self.broadcasts: int = 0
        """Messages published by this node's own code."""
        self.sent: int = 0
        """Messages written to connections, or queued for them."""
        self.fanout_recipients: Histogram = Histogram(RECIPIENTS)
        self.fanout_seconds: Histogram = Histogram(SECONDS)
        """How long it took to write to a topic's members, for each slice of them."""
        self.received_bytes: int = 0
        """Of messages, without frame headers."""
        self.sent_bytes: int = 0
        """Of messages, with frame headers where this process makes the frames."""
        self.slow_consumers: int = 0
        """Connections that were closed because they read too slowly."""
        self.dropped: int = 0
        """Messages dropped by a backpressure policy."""
        self.rate_limited: int = 0

    def count_closed(self, reason: str) -> None:
        """Count the end of a connection; a reason that the app or a client made up counts as ``client``."""
        known = reason if reason in _REASONS else "client"
        self.closed[known] = self.closed.get(known, 0) + 1

    def count_closing(self, reason: str) -> None:
        """Count a connection that this node closes, if the reason has a figure of its own."""
        if reason == _SLOW:
            self.slow_consumers += 1
        elif reason == _UNAUTHENTICATED:
            self.auth_failures += 1

    def count_recovery(self, outcome: str) -> None:
        """Count a room that a client resumed, or wanted to."""
        self.recoveries[outcome] = self.recoveries.get(outcome, 0) + 1

    def count_refused(self, status: int) -> None:
        """Count a handshake that was refused."""
        self.refused[status] = self.refused.get(status, 0) + 1

    def count_event(self, event: str, outcome: str) -> None:
        """Count a message. `event` is a registered or reserved name, else ``unknown``; `outcome` one of ``ok``,
        ``refused``, ``disconnected``, ``timeout``, ``error``, ``invalid``, ``unknown``, ``malformed``,
        ``too_large`` and ``rate_limited``.
        """
        key = event, outcome
        self.events[key] = self.events.get(key, 0) + 1

    def count_handled(self, event: str, outcome: str, seconds: float) -> None:
        """Count a message that its handler worked on for `seconds`."""
        self.count_event(event, outcome)
        histogram = self.handler_seconds.get(event)
        if histogram is None:
            histogram = self.handler_seconds[event] = Histogram(SECONDS)
        histogram.observe(seconds)
