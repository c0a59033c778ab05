"""What the nodes and the run agree on: rooms, users, times, and how a line of a node's journal looks."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = (
    "COMMAND_TIMEOUT",
    "CONNECTIONS_PER_USER",
    "LEASE",
    "LOGS",
    "NODES",
    "PLAYERS",
    "ROOMS",
    "SECRET",
    "SESSION",
    "SMALL",
    "SMALLS",
    "Line",
)

SECRET: Final = "torture-secret-of-more-than-32-bytes"
NODES: Final = 3
PLAYERS: Final = 24
LEASE: Final = 2.0
COMMAND_TIMEOUT: Final = 2.5
SESSION: Final = 240.0
"""Seconds that a session may last, by `max_duration`."""
SMALL: Final = 4
"""Places in a small room."""
CONNECTIONS_PER_USER: Final = 4
TALKS: Final = ("talk:0", "talk:1")
LOGS: Final = ("log:0", "log:1")
"""Rooms with history."""
SMALLS: Final = ("small:0", "small:1")
"""Rooms with `SMALL` places."""
ROOMS: Final = (*TALKS, *LOGS, *SMALLS)


class Line(NamedTuple):
    """One line of a journal: what a hook of a node was called with. As JSON it is an array."""

    at: float
    """Seconds on the machine's monotonic clock, which all processes share."""
    what: str
    """``open``, ``close``, ``join`` or ``leave``."""
    connection: str
    room: str
    """The room; of ``close``, the reason."""
