"""The live event feed of ``debug=True``: the last events in and out, kept in memory."""

from __future__ import annotations

import json
import re
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


_GIVEN: Final = re.compile(r"[A-Za-z0-9_-]{32}[0-9a-f]{32}")
"""What a session token looks like that was given to somebody."""


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
                "room": None if room is None else _without(room, session),
                "event": _without(event, session),
                "data": _without(text, session)[:MAX_TEXT],
            }
        )

    def since(self, number: int) -> list[dict[str, Any]]:
        """Every kept event after event `number`."""
        return [event for event in self._events if event["number"] > number]


def _without(text: str, session: str) -> str:
    """`text` without session tokens, whosever they are, and without this session's id and the claim that names it.

    A short one (some issuers' ``jti``) is hidden only as a whole quoted string.
    """
    text = _GIVEN.sub(HIDDEN, text)
    name = session[:-33] if session[-33:-32] == "-" else ""
    for spelled in filter(None, (session, json.dumps(session)[1:-1], name, json.dumps(name)[1:-1])):
        mark = "" if len(spelled) >= 16 else '"'
        text = text.replace(f"{mark}{spelled}{mark}", f"{mark}{HIDDEN}{mark}")
    return text
