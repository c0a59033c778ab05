"""Logs as JSON, a line for each record, with the connection and the request they are about.

    handler.setFormatter(JsonFormatter())

Whatever a handler of an event logs, through whichever logger, carries ``connection``, ``namespace`` and ``event``;
failures carry the ``request`` id that the client was sent.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

__all__ = ("JsonFormatter", "about")


about: ContextVar[tuple[str, str, str] | None] = ContextVar("socketspec_about", default=None)
"""What the current task handles: the connection's id, namespace and event. None outside of handlers."""
_ABOUT: Final = ("connection", "namespace", "event")

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
MAX_LENGTH: Final = 8192
"""Characters of a message or a traceback that are logged; the rest is cut off."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``exception``, what the record is
    about, and whatever was passed as ``extra``. Line ends and control characters are escaped, as JSON does.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_LENGTH],
        }
        found = about.get()
        if found is not None:
            line |= zip(_ABOUT, found, strict=True)
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-MAX_LENGTH:]
        return json.dumps(line, default=str, ensure_ascii=True)
