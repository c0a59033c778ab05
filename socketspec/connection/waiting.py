"""What waits for all clients of a node together: counted, bounded, and taken from those for whom most waits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from socketspec.protocol.encoding import OVERHEAD
from socketspec.telemetry.log_pace import OnceAMinute
from socketspec.text import get_logger

__all__ = ("Waiting", "Waits")

logger: logging.Logger = get_logger("socketspec.connection")

FREED: Final = 8
"""Where it is too much, so many parts of the limit are freed at once, one of them: not one client for each message."""


class Waits(Protocol):
    """What waits for one client."""

    size: int

    def give_up(self) -> None:
        """Forget what waits, and close the connection as one that reads too slowly."""
        ...


class Waiting:
    """The account of all outboxes of a node. A message that waits for many clients counts once, as it is in memory."""

    def __init__(self, limit: int, now: Callable[[], float]) -> None:
        self.limit: int = limit
        """Bytes that may wait."""
        self.size: int = 0
        """Bytes that wait, `OVERHEAD` included for each client that a message waits for."""
        self.closed: int = 0
        """Connections that were closed because it was too much."""
        self._line = OnceAMinute(now)
        # By what the messages are in memory: as long as one waits, no other object has its id.
        self._times: dict[int, int] = {}
        self._filled: dict[Waits, None] = {}

    def add(self, outbox: Waits, data: bytes) -> None:
        """A message of so many bytes waits in `outbox`."""
        times = self._times.get(id(data), 0)
        self._times[id(data)] = times + 1
        self.size += OVERHEAD if times else OVERHEAD + len(data)
        self._filled[outbox] = None

    def remove(self, data: bytes) -> None:
        """It waits there no longer."""
        times = self._times.pop(id(data)) - 1
        if times:
            self._times[id(data)] = times
        self.size -= OVERHEAD if times else OVERHEAD + len(data)

    def emptied(self, outbox: Waits) -> None:
        """Nothing waits in `outbox` any more."""
        self._filled.pop(outbox, None)

    def keep_to_limit(self) -> None:
        """Where too much waits, close those for whom most does, until there is some room. Not while one is changed."""
        if self.size <= self.limit:
            return
        before = self.closed
        for outbox in sorted(self._filled, key=lambda each: each.size, reverse=True):
            if self.size <= self.limit - self.limit // FREED:
                break
            self.closed += 1
            outbox.give_up()
        self._say(self.closed - before)

    def _say(self, closed: int) -> None:
        if self._line.is_due():
            logger.warning(
                "More than %d bytes waited for clients that read too slowly: closed %d of them, those for whom most "
                "waited. Allow more with Backpressure(max_node_buffer=…), or less for each with max_buffer.",
                self.limit,
                closed,
            )
