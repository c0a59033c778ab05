"""Text that somebody else chose: it stays on its line, in its bounds, and shows what it was."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec import SocketApp
from socketspec.connection.connection import Connection
from socketspec.testing import TestClient
from socketspec.text import MAX_CHAIN, MAX_LINE, OneLine, close_reason, cut, get_logger, one_line, traceback_text

FORGED = "x\r\nERROR:    forged \x1b[2K\x9b1A\u2028\u202e\ud800\x00"
"""Line ends of every kind, terminal codes, text from right to left, half a character, and NUL."""


@given(st.text(max_size=50))
def test_a_line_is_printable_whatever_it_is_made_of_and_plain_text_stays_as_it_is(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert line.encode() or not text
    if text.isprintable():
        assert line == text


def test_what_cannot_be_shown_is_named_by_its_type() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise LookupError("no")

    assert one_line(Rude()) == "<Rude that cannot be shown>"


def test_a_line_is_bounded() -> None:
    assert one_line("x" * 9000) == "x" * (MAX_LINE - 1) + "…"
    assert len(one_line("\n" * 9000, 10)) < 30
    assert [cut("abcd", 4), cut("abcde", 4)] == ["abcd", "abc…"]


@given(st.text(max_size=200))
def test_a_close_reason_fits_a_close_frame_and_is_cut_between_characters(text: str) -> None:
    reason = close_reason(text)
    assert len(reason.encode()) <= 123
    encoded = text.encode(errors="replace")
    assert encoded.startswith(reason.encode())
    assert len(reason.encode()) > min(len(encoded), 123) - 4, "no more is cut off than has to be"


def lines_of(record: logging.LogRecord) -> list[str]:
    """The lines of a text log that show `record`."""
    return logging.Formatter("%(levelname)s %(message)s").format(record).splitlines()


def record_of(error: BaseException | None = None, message: str = "it failed", *arguments: object) -> logging.LogRecord:
    info: Any = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("app", logging.ERROR, "app.py", 1, message, arguments, info)
    assert OneLine().filter(record)
    return record


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def test_a_message_stays_on_its_line() -> None:
    (line,) = lines_of(record_of(None, "refused: %s, %d times", FORGED, 3))
    assert line.startswith("ERROR refused: x\\r\\nERROR:    forged \\x1b[2K")
    assert line.endswith(", 3 times")
    assert line.isprintable()


def test_an_ordinary_message_is_left_alone() -> None:
    record = record_of(None, "%s of %s", 1, 2)
    assert (record.msg, record.args) == ("%s of %s", (1, 2))
    assert lines_of(record_of(None, "it ends here\n")) == ["ERROR it ends here"]


class Rude:
    """Cannot be shown, and says so in lines of its own."""

    def __str__(self) -> str:
        raise ValueError(FORGED)


@pytest.mark.parametrize(
    ("message", "arguments", "shown"),
    [
        ("%d", ("x",), "ERROR %d ('x',)"),
        ("plain " + FORGED, (1,), "ERROR plain x\\r\\nERROR:"),
        ("%d", (FORGED,), "ERROR %d ('x\\r\\n"),
        ("%s", (Rude(),), "ERROR %s (<"),
    ],
)
def test_a_message_whose_arguments_do_not_fit_is_shown_with_them_on_one_line(
    message: str, arguments: tuple[Any, ...], shown: str
) -> None:
    (line,) = lines_of(record_of(None, message, *arguments))
    assert line.startswith(shown)


def test_arguments_of_an_access_log_are_cleaned_one_by_one() -> None:
    arguments = ("a\nb", "GET", OSError("/\nx"), "1.1", 200)
    record = logging.LogRecord("uvicorn.access", 20, "x", 1, '%s - "%s %s HTTP/%s" %d', arguments, None)
    OneLine().filter(record)
    assert record.args == ("a\\nb", "GET", "/\\nx", "1.1", 200)


@pytest.mark.parametrize("name", ["shop.access", "uvicorn.access", ".access", "access", "gunicorn.access"])
@pytest.mark.parametrize("arguments", [(), (ValueError("x\nERROR forged"),), ("x\nERROR forged", 1)])
def test_no_name_of_a_logger_lets_a_message_leave_its_line(name: str, arguments: tuple[Any, ...]) -> None:
    message = "x\nERROR forged" + " %s" * len(arguments)
    record = logging.LogRecord(name, logging.ERROR, "x", 1, message, arguments, None)
    OneLine().filter(record)
    assert len(lines_of(record)) == 1


def test_the_text_for_terminals_is_that_of_uvicorn_alone() -> None:
    for name, kept in (("uvicorn.error", True), ("shop", False)):
        record = logging.LogRecord(name, logging.ERROR, "x", 1, "plain", (), None)
        record.color_message = "x\nERROR forged"
        OneLine().filter(record)
        assert hasattr(record, "color_message") is kept


def test_a_traceback_that_another_handler_has_written_out_is_written_anew() -> None:
    for error in (raised(ValueError(FORGED)), raised(ValueError("plain"))):
        record = logging.LogRecord(
            "app", logging.ERROR, "x", 1, "failed", (), (type(error), error, error.__traceback__)
        )
        record.exc_text = "whatever\nERROR forged"
        OneLine().filter(record)
        assert record.exc_text == traceback_text(error)


def test_a_traceback_without_its_exception_stays_within_a_margin() -> None:
    record = logging.LogRecord("app", logging.ERROR, "x", 1, "failed", (), None)
    record.exc_text = "Traceback\n  File\nValueError: x\r\nERROR forged \x1b[2K"
    for _ in range(2):
        OneLine().filter(record)
        assert record.exc_text == "  | Traceback\n  |   File\n  | ValueError: x\n  | ERROR forged \\x1b[2K"


def grouped() -> BaseException:
    return BaseExceptionGroup(FORGED, [raised(ValueError(FORGED)), raised(KeyError("k"), raised(OSError(FORGED)))])


def noted() -> BaseException:
    error = ValueError("plain")
    error.add_note(FORGED)
    return error


@pytest.mark.parametrize(
    "error",
    [
        raised(ValueError(FORGED)),
        raised(ValueError("plain"), raised(OSError(FORGED))),
        raised(noted()),
        raised(grouped()),
        ValueError(FORGED),
        raised(SyntaxError("bad", ("file.py", 1, 1, FORGED))),
    ],
    ids=["itself", "its cause", "a note", "a group", "never raised", "a syntax error"],
)
def test_no_line_of_a_traceback_is_chosen_by_an_exception(error: BaseException) -> None:
    shown = lines_of(record_of(error))
    starts = ("ERROR it failed", "Traceback ", "  ", "The above exception ", "ValueError: ", "OSError: ", "Exception")
    assert [line for line in shown if line and not line.startswith((*starts, "SyntaxError: "))] == []
    assert all(line.isprintable() for line in shown)


def while_handling_another(*, hide: bool) -> BaseException:
    try:
        raise KeyError("first")
    except KeyError as first:
        error = raised(ValueError("second\n"))
        error.__context__, error.__suppress_context__ = first, hide
        return error


def test_an_exception_in_the_handling_of_another_is_shown_with_it() -> None:
    text = traceback_text(while_handling_another(hide=False))
    assert text.index("KeyError: 'first'") < text.index("During handling of") < text.index("ValueError: second\\n")
    assert "first" not in traceback_text(while_handling_another(hide=True))


def test_chains_and_groups_are_bounded_and_circles_end() -> None:
    error = ValueError("0")
    for number in range(1, 30):
        link, error = error, ValueError(str(number))
        error.__cause__ = link
    assert traceback_text(error).count("ValueError") <= MAX_CHAIN + 1
    assert traceback_text(ExceptionGroup("g", [ValueError("x")] * 99)).count("ValueError: x") == MAX_CHAIN
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert traceback_text(one).count("two") == 1


def test_a_traceback_without_anything_odd_is_pythons_own() -> None:
    assert record_of(raised(ValueError("plain"))).exc_text is None


def test_the_same_logger_filters_once() -> None:
    for _ in range(2):
        logger = get_logger("socketspec.events")
    assert sum(isinstance(each, OneLine) for each in logger.filters) == 1


async def test_what_a_handler_raises_forges_no_line_whatever_formatter_an_app_has() -> None:
    app = SocketApp()

    @app.on("fail")
    async def fail(conn: Connection) -> None:
        raise ValueError("x\nERROR socketspec.events: forged")

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        async with TestClient(app) as client:
            conn = await client.connect()
            await conn.send("fail")
            assert (await conn.receive())["event"] == "__error__"
    finally:
        logging.getLogger().removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert sum(line.startswith("ERROR") for line in lines) == 1
    assert lines[-1] == r"ValueError: x\nERROR socketspec.events: forged"


def test_every_logger_of_the_core_and_the_cluster_keeps_to_its_line() -> None:
    import socketspec.cluster  # noqa: F401 - makes its logger

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "socketspec"]
    ours = {name for name in names if isinstance(logging.root.manager.loggerDict[name], logging.Logger)}
    assert {"socketspec", "socketspec.events", "socketspec.cluster"} <= ours
    unguarded = {name for name in ours if not any(isinstance(x, OneLine) for x in logging.getLogger(name).filters)}
    assert not {name for name in unguarded if not name.startswith(("socketspec.asgi", "socketspec.adapters"))}
