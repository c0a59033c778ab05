"""JSON logs: one line a record, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from socketspec.logs import MAX_LENGTH, JsonFormatter, about


def line(message: str, *arguments: object, **options: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {"name": "app", "levelno": 20, "levelname": "INFO", "msg": message, "args": arguments, **options}
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert text.isprintable()
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_a_record_has_its_time_level_logger_and_message() -> None:
    logged = line("%s of %s", 1, 2, created=0.25)
    assert logged == {"time": "1970-01-01T00:00:00.250+00:00", "level": "info", "logger": "app", "message": "1 of 2"}


def test_line_ends_and_terminal_codes_cannot_leave_the_line() -> None:
    assert line("a\r\nERROR forged \x1b[31m\u2028")["message"] == "a\r\nERROR forged \x1b[31m\u2028"


def test_what_is_being_handled_and_extra_fields_are_in_it() -> None:
    before = about.set(("c1", "/chat", "say"))
    try:
        logged = line("hello", request="r-1", cost=object)
    finally:
        about.reset(before)
    assert (logged["connection"], logged["namespace"], logged["event"]) == ("c1", "/chat", "say")
    assert logged["request"] == "r-1"
    assert "object" in logged["cost"]
    assert "connection" not in line("later")


def test_an_exception_is_one_field_of_bounded_length() -> None:
    try:
        raise ValueError("x" * 3 * MAX_LENGTH)
    except ValueError:
        logged = line("failed", exc_info=sys.exc_info())
    assert len(logged["exception"]) == MAX_LENGTH
    assert logged["exception"].endswith("xxx")
    assert len(line("y" * 3 * MAX_LENGTH)["message"]) == MAX_LENGTH
