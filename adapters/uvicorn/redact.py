"""No secrets in the log: a filter that removes the queries of URLs, and credentials, whichever logger shows them.

Clients choose what is logged, so every expression here takes time linear in the text: each can begin only at few
places, and gives nothing back of what it has read (`*+`).
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any, Final

from socketspec.protocol.handshake import BEARER_SUBPROTOCOL
from socketspec.security.secret_names import hidden_in_logs

__all__ = ("RedactQuery", "header_rule", "redacted")

_QUERY: Final = re.compile(r"""(?<!\S)([^\s/]*+/[^\s?]*+\?)(?!\[redacted\](?:[\s"')\],]|$))\S++""")
"""The query of the first URL within what spaces enclose, and all that follows it there."""
_MARKS: Final = re.compile(r"[?;#]|%(?:25)*+(?:3[FB]|23)", re.IGNORECASE)
"""What may be meant to begin a query in a path that a client asks for: also encoded, once or more often."""
_HANDSHAKE: Final = '%s - "WebSocket %s" '
"""How the line of a WebSocket's handshake begins, whoever writes it: uvicorn or we."""
_CREDENTIALS: Final = (
    r"authorization|cookie|api[-_]?key|sec-websocket-protocol|[-_]token|[-_]secret|password|passwd|credentials?"
)
"""What the names of headers, parameters and cookies with credentials end in, besides those that apps have named."""


@lru_cache(maxsize=4)
def header_rule(names: frozenset[str]) -> re.Pattern[str]:
    """A header that carries credentials, as it was sent or as Python shows it in a list or a dictionary."""
    ends = "|".join((_CREDENTIALS, *map(re.escape, sorted(names, key=len, reverse=True))))
    return re.compile(
        rf"(?<![a-z0-9_-])([a-z0-9_-]*?(?:{ends}))"
        r"""(["']?[ \t]{0,8}[:=][ \t]{0,8}|["'][ \t]{0,8},[ \t]{0,8})"""
        r"""(?:\[redacted\]|b?'(?:[^'\\\r\n]|\\.)*+'|b?"(?:[^"\\\r\n]|\\.)*+"|[^\r\n]++)""",
        re.IGNORECASE,
    )


_BEARER: Final = re.compile(
    rf"(\bbearer[ \t]{{1,8}}(?!tokens?\b)|{re.escape(BEARER_SUBPROTOCOL)})[^\s\"',;\\]++", re.IGNORECASE
)
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({})))
_SHOWS_ERRORS: Final = logging.Formatter()


def redacted(text: str) -> str:
    """`text` without the queries of URLs and without credentials."""
    if "?" in text:
        text = _QUERY.sub(r"\1[redacted]", text)
    return _BEARER.sub(r"\1[redacted]", header_rule(hidden_in_logs()).sub(r"\1\2[redacted]", text))


class RedactQuery(logging.Filter):
    """Removes the queries of URLs and credentials from log records: from text, arguments, errors and extra fields."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, without secrets."""
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
            record.args = (*record.args[:2], _path(record.args[2]), *record.args[3:])
        elif isinstance(record.args, tuple) and len(record.args) >= 2 and _is_handshake(record.msg):
            record.args = (record.args[0], _path(record.args[1]), *record.args[2:])
        self._clean_message(record)
        if record.exc_info and not record.exc_text:
            record.exc_text = _SHOWS_ERRORS.formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redacted(record.exc_text)
        for name, value in vars(record).items():
            if name not in _STANDARD:
                setattr(record, name, _clean(value))
        return True

    def _clean_message(self, record: logging.LogRecord) -> None:
        if _secretless(record) is None:
            return
        if isinstance(record.args, tuple):
            record.args = tuple(map(_clean, record.args))
        elif type(record.args) is dict:  # another mapping shows itself as it wants to: headers show their names only
            record.args = {name: _clean(value) for name, value in record.args.items()}
        if isinstance(record.msg, str):
            record.msg = redacted(record.msg)
        # "%s: %s" names a header and brings its value. The access log does not, and its formatter needs the arguments.
        whole = _secretless(record)
        if whole and record.name != "uvicorn.access":
            record.msg, record.args = whole, None


def _path(target: object) -> object:
    """What was asked for, without its query: a request may ask for anything, also without a slash."""
    text = str(target)
    mark = _MARKS.search(text)
    return target if mark is None or mark.end() == len(text) else f"{text[: mark.end()]}[redacted]"


def _is_handshake(message: object) -> bool:
    return isinstance(message, str) and message.startswith(_HANDSHAKE)


def _secretless(record: logging.LogRecord) -> str | None:
    """The whole message without secrets; None where it has none, empty where its arguments do not fit its text."""
    try:
        whole = record.getMessage()
    except Exception:  # whoever formats it says so, and shows both
        return ""
    without = redacted(whole)
    return None if without == whole else without


def _clean(value: Any) -> Any:
    """A value without secrets. An object that shows one, such as httpx's URLs, becomes text."""
    if isinstance(value, str):
        return redacted(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        text = str(value)
    except Exception:
        return value
    without = redacted(text)
    return value if without == text else without
