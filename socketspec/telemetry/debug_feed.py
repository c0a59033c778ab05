"""The live event feed of ``debug=True``: the last events in and out, kept in memory."""

from __future__ import annotations

import json
import time
from collections import deque
from itertools import count
from typing import Any, Final

__all__ = ("DebugFeed",)

MAX_EVENTS: Final = 500
MAX_TEXT: Final = 2000
"""Characters of each payload that are kept."""
HIDDEN: Final = "[session]"
"""What is shown in the place of a session token."""
MAX_SECRET: Final = 1024
"""Characters beyond `MAX_TEXT` that are looked at, so that a token which begins before it is found."""


class DebugFeed:
    """The newest `MAX_EVENTS` events, oldest first."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._numbers = count(1)

    def add(
        self,
        direction: str,
        connection_id: str | None,
        event: str,
        data: str | bytes,
        room: str | None,
        *,
        session: str = "",
    ) -> None:
        """Keep one event. `direction` is ``in``, ``out`` or ``broadcast``; `session` is not shown where it stands."""
        looked_at = MAX_TEXT + MAX_SECRET
        text = data[:looked_at] if isinstance(data, str) else data[: looked_at * 4].decode(errors="replace")
        self._events.append(
            {
                "number": next(self._numbers),
                "time": time.time(),
                "direction": direction,
                "connection_id": connection_id,
                "room": room,
                "event": event,
                "data": _without(text, session)[:MAX_TEXT],
            }
        )

    def since(self, number: int) -> list[dict[str, Any]]:
        """Every kept event after event `number`."""
        return [event for event in self._events if event["number"] > number]


def _without(text: str, session: str) -> str:
    """`text` with the session's id hidden; a short id (some issuers' ``jti``) only as a whole quoted string."""
    if not session:
        return text
    for spelled in {session, json.dumps(session)[1:-1]}:
        mark = "" if len(spelled) >= 16 else '"'
        text = text.replace(f"{mark}{spelled}{mark}", f"{mark}{HIDDEN}{mark}")
    return text
