"""The live event feed of ``debug=True``: the last events in and out, kept in memory."""

from __future__ import annotations

import time
from collections import deque
from itertools import count
from typing import Any, Final

__all__ = ("DebugFeed",)

MAX_EVENTS: Final = 500
MAX_TEXT: Final = 2000
"""Characters of each payload that are kept."""


class DebugFeed:
    """The newest `MAX_EVENTS` events, oldest first."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._numbers = count(1)

    def add(self, direction: str, connection_id: str | None, event: str, data: str | bytes, room: str | None) -> None:
        """Keep one event. `direction` is ``in``, ``out`` or ``broadcast``."""
        text = data if isinstance(data, str) else data[: MAX_TEXT * 4].decode(errors="replace")
        self._events.append(
            {
                "number": next(self._numbers),
                "time": time.time(),
                "direction": direction,
                "connection_id": connection_id,
                "room": room,
                "event": event,
                "data": text[:MAX_TEXT],
            }
        )

    def since(self, number: int) -> list[dict[str, Any]]:
        """Every kept event after event `number`."""
        return [event for event in self._events if event["number"] > number]
