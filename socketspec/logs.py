"""Log records as JSON, one line each, with the connection and the request that they are about.

    handler.setFormatter(JsonFormatter())

Whatever a handler logs, through whichever logger, carries ``connection``, ``namespace``, ``event`` and ``request``, the
id that the client gets in an error. Hooks and room guards have the connection, and the event and request as well if an
event of the same connection caused them. Within a trace, lines carry ``trace_id`` and ``span_id``.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from socketspec.telemetry.context import current_request
from socketspec.telemetry.tracing import installed

__all__ = ("JsonFormatter",)


_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
MAX_LENGTH: Final = 8192
"""Characters of a message, of a traceback or of an extra field that are logged; the rest is cut off."""
MAX_EXTRAS: Final = 32
"""Extra fields of one record that are logged; the rest is left out."""

_encode = json.JSONEncoder(default=str, ensure_ascii=True, allow_nan=False).encode


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, what the record is about, the ids of
    the trace, ``exception`` and ``stack``. What was passed as ``extra`` follows, as ``extra_NAME`` if the line has a
    NAME already. What JSON cannot express is written as Python shows it. Line ends and control characters are escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record)[:MAX_LENGTH],
            **_ids(),
        }
        if record.exc_info or record.exc_text:
            text = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
            line["exception"] = text[-MAX_LENGTH:]
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)[-MAX_LENGTH:]
        encoded = {name: _encode(value) for name, value in line.items()}
        extras = [(name, value) for name, value in vars(record).items() if name not in _STANDARD and value is not None]
        for given, value in extras[:MAX_EXTRAS]:
            name, text = str(given)[:MAX_LENGTH], _bounded(value)
            if encoded.get(name) != text:
                encoded[f"extra_{name}" if name in encoded else name] = text
        return "{" + ", ".join(f"{_encode(name)}: {text}" for name, text in encoded.items()) + "}"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the arguments do not fit the text: show both
        return f"{_shown(record.msg)} {_shown(record.args)}"


def _ids() -> dict[str, str]:
    ids: dict[str, str] = {}
    found = current_request.get()
    if found is not None:
        ids["connection"], requests, event, number = found
        ids["namespace"] = requests.namespace
        if event is not None:
            ids["event"] = event
        if number:
            ids["request"] = requests.id(number)
    tracing = installed()
    trace = None if tracing is None else tracing.current()
    if trace is not None:
        ids["trace_id"], ids["span_id"] = trace
    return ids


def _bounded(value: Any) -> str:
    """`value` as JSON of bounded length; what is too long or cannot be encoded, as a string."""
    if isinstance(value, str):
        return _encode(value[:MAX_LENGTH])
    try:
        text = _encode(value)
    except Exception:  # keys that are no strings, cycles, NaN, a __str__ that fails
        return _encode(_shown(value)[:MAX_LENGTH])
    return text if len(text) <= MAX_LENGTH else _encode(text[:MAX_LENGTH])


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"
