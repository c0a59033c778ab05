"""Text that clients and exceptions chose, made safe to show: one line, no control characters, of bounded length."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Final

__all__ = ("OneLine", "close_reason", "cut", "did_you_mean", "get_logger", "one_line", "sendable", "traceback_text")

MAX_LINE: Final = 8192
"""Characters of one line of a log; the rest is cut off."""
MAX_CHAIN: Final = 10
"""Exceptions behind an exception, and exceptions of a group, that are shown."""
MAX_DEPTH: Final = 3
"""Groups within groups that are shown."""
MAX_REASON: Final = 123
"""Bytes of a close frame's reason (RFC 6455 section 5.5)."""
MAX_NAME: Final = 80
"""Characters of a name for which a similar one is looked for."""
MAX_KNOWN: Final = 500
"""Names that are compared with it."""


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of `text`; what was cut off shows as an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def one_line(value: object, limit: int = MAX_LINE) -> str:
    """`value` as text on one line: line ends, escapes and other control characters as Python would write them."""
    text = cut(_shown(value), limit)
    return text if text.isprintable() else _ODD.sub(_escaped, text)


_ODD: Final = re.compile(r"[^ -~]")
"""What may be a control character: everything but printable ASCII."""


def _escaped(match: re.Match[str]) -> str:
    letter = match[0]
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")


def sendable(value: object) -> str:
    """The text of `value`, which may be anybody's, as UTF-8 can hold it."""
    return _shown(value).encode(errors="backslashreplace").decode()


def close_reason(reason: str) -> str:
    """What of `reason` a close frame can hold: 123 bytes of UTF-8, cut between characters."""
    return reason.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore")


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # the text of an exception, or of anything else, may be anybody's code
        return f"<{type(value).__name__} that cannot be shown>"


def traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it, but with the text of every exception on one line, so no exception can forge a
    line of the log.
    """
    parts = [_traceback(error)]
    for link, how in _behind(error):
        parts.append(f"\n{how}\n\n")
        parts.append(_traceback(link))
    return "".join(reversed(parts)).rstrip("\n")


def _behind(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """The exceptions that led to `error`, the nearest first, and how each did."""
    seen = {id(error)}
    link: BaseException | None = error
    while link is not None and len(seen) <= MAX_CHAIN:
        how = "The above exception was the direct cause of the following exception:"
        behind = link.__cause__
        if behind is None and not link.__suppress_context__:
            how = "During handling of the above exception, another exception occurred:"
            behind = link.__context__
        if behind is None or id(behind) in seen:
            return
        seen.add(id(behind))
        yield behind, how
        link = behind


def _traceback(error: BaseException, depth: int = 0) -> str:
    """One exception of a chain, with its notes and, of a group, its exceptions."""
    head = "Traceback (most recent call last):\n" if error.__traceback__ is not None else ""
    lines = [head, *traceback.format_tb(error.__traceback__), f"{_name(error)}: {one_line(error)}\n"]
    notes: object = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        lines += [f"  note: {one_line(note)}\n" for note in notes[:MAX_CHAIN]]
    if isinstance(error, BaseExceptionGroup) and depth < MAX_DEPTH:
        for each in error.exceptions[:MAX_CHAIN]:
            lines += [f"  | {line}\n" for line in _traceback(each, depth + 1).splitlines()]
    return "".join(lines)


def _name(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _is_harmless(error: BaseException) -> bool:
    """Whether Python's own traceback of `error` cannot contain a forged line."""
    return all(
        _shown(each).isprintable()
        and not hasattr(each, "__notes__")
        and not isinstance(each, BaseExceptionGroup | SyntaxError)
        for each in (error, *(link for link, _ in _behind(error)))
    )


class OneLine(logging.Filter):
    """Keeps a log record to one line, and its traceback to lines that look like those of a traceback.

    What clients and exceptions say is in both. With a line end in it, a text log would show a line that nobody logged;
    with an escape, a terminal would do as it says.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, escaped to one line."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is None:
            if record.exc_text:  # from another process, or written out by whoever logs
                record.exc_text = _indented(record.exc_text)
        elif record.exc_text or not _is_harmless(error):
            # What stands there may be what the formatter of another handler has made of it.
            record.exc_text = traceback_text(error)
        message = _message(record)
        if len(message) > MAX_LINE or not message.isprintable():
            self._set(record, one_line(message.rstrip()))
        if not record.name.startswith("uvicorn"):
            vars(record).pop("color_message", None)  # the message once more, for terminals
        return True

    def _set(self, record: logging.LogRecord, message: str) -> None:
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
            # Its formatter takes the arguments apart.
            record.msg = one_line(record.msg)
            record.args = tuple(value if isinstance(value, int) else one_line(value) for value in record.args)
            return
        record.msg, record.args = message, ()
        vars(record).pop("color_message", None)


def _message(record: logging.LogRecord) -> str:
    """The message; where its arguments do not fit, both, on one line: logging would print them and the error anyhow."""
    try:
        return record.getMessage()
    except Exception:
        shown = one_line(f"{_shown(record.msg)} {_represented(record.args)}")
        record.msg, record.args = "%s", (shown,)
        return shown


def _represented(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def _indented(text: str) -> str:
    """`text` with every line within a margin, so that none looks like the first of a record."""
    return "\n".join(
        line if line.startswith(_MARGIN) and line.isprintable() else _MARGIN + one_line(line)
        for line in text.splitlines()
    )


_MARGIN: Final = "  | "


def get_logger(name: str) -> logging.Logger:
    """The logger `name`; its records stay on one line under every formatter."""
    logger = logging.getLogger(name)
    if not any(isinstance(each, OneLine) for each in logger.filters):
        logger.addFilter(OneLine())
    return logger


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the one of `known` that `name` is a slip of; empty where none is close.

    Bounded: of the names only so many are looked at, and none that is long.
    """
    if len(name) > MAX_NAME:
        return ""
    looked_at = [each for each in islice(known, MAX_KNOWN) if len(each) <= MAX_NAME]
    close = get_close_matches(name, looked_at, n=1, cutoff=0.7)
    return f"Did you mean {close[0]!r}?" if close else ""
