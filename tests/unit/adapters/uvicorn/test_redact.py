"""What the log keeps of URLs and of credentials, whoever logs them, and how long that takes."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.logging import AccessFormatter

from socketspec.adapters.uvicorn.redact import RedactQuery, redacted
from socketspec.adapters.uvicorn.upgrade import read
from socketspec.logs import JsonFormatter


def record_of(message: str, *arguments: Any, name: str = "app", **options: Any) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.INFO, "", 0, message, arguments, None)
    for attribute, value in options.items():
        setattr(made, attribute, value)
    assert RedactQuery().filter(made) is True
    return made


@pytest.mark.parametrize(
    ("message", "arguments", "logged"),
    [
        (
            '%s - "%s %s HTTP/%s" %d',
            ("127.0.0.1:5", "GET", "/ws?token=SECRET&x=1", "1.1", 200),
            '127.0.0.1:5 - "GET /ws?[redacted] HTTP/1.1" 200',
        ),
        ('%s - "WebSocket %s" [accepted]', ("a:1", '/ws?a="SECRET'), 'a:1 - "WebSocket /ws?[redacted]" [accepted]'),
        ("%s", ("http://x/a/b?api_key=SECRET and /c?session=SECRET",), "http://x/a/b?[redacted] and /c?[redacted]"),
        ("failed at /ws?token=SECRET", (), "failed at /ws?[redacted]"),
        ("%s", ("/ws?SECRET?SECRET",), "/ws?[redacted]"),
        ("what?/ws?SECRET", (), "what?/ws?[redacted]"),
        ("what now? %s %r", ("/plain", 5), "what now? /plain 5"),
        ("%(path)s", ({"path": "/plain"},), "/plain"),
        ("%(path)s %(n)d", ({"path": "/a?token=SECRET", "n": 1},), "/a?[redacted] 1"),
        ("%s", (PurePosixPath("/ws?token=SECRET"),), "/ws?[redacted]"),
        ("failed: %s", (OSError("http://x/a?key=SECRET is away"),), "failed: http://x/a?[redacted] is away"),
    ],
)
def test_queries_are_removed_from_log_records(message: str, arguments: Any, logged: str) -> None:
    assert record_of(message, *arguments).getMessage() == logged


@pytest.mark.parametrize(
    ("message", "arguments", "logged"),
    [
        ("< %s: %s", ("authorization", "Bearer SECRET"), "< authorization: [redacted]"),
        ("< %s: %s", ("X-API-Key", "SECRET"), "< X-API-Key: [redacted]"),
        ("Cookie: sid=SECRET; b=SECRET\r\nHost: x", (), "Cookie: [redacted]\r\nHost: x"),
        ("Sec-WebSocket-Protocol: a, SECRET", (), "Sec-WebSocket-Protocol: [redacted]"),
        ("%s", ([(b"set-cookie", b"a=SECRET"), (b"host", b"x")],), "[(b'set-cookie', [redacted]), (b'host', b'x')]"),
        ("%s", ({"proxy-authorization": 'Basic "SECRET', "n": 1},), "{'proxy-authorization': [redacted], 'n': 1}"),
        ("offers %s", (["json", "socketspec.bearer.SECRET"],), "offers ['json', 'socketspec.bearer.[redacted]']"),
        ("sent bearer SECRET to it", (), "sent bearer [redacted] to it"),
        ("the bearer token was refused", (), "the bearer token was refused"),
        ("api_key=SECRET", (), "api_key=[redacted]"),
        ("a cookie is a biscuit", (), "a cookie is a biscuit"),
    ],
)
def test_credentials_are_removed_however_they_are_shown(message: str, arguments: Any, logged: str) -> None:
    if isinstance(arguments, tuple) and len(arguments) == 1 and isinstance(arguments[0], dict):
        arguments = ([arguments[0]],)  # else it is taken for the names of the message
        logged = f"[{logged}]"
    assert record_of(message, *arguments).getMessage() == logged


def test_errors_and_extra_fields_have_no_secrets_either() -> None:
    try:
        raise ValueError("http://x/a?token=SECRET, Authorization: Bearer SECRET")
    except ValueError:
        made = record_of("failed", exc_info=sys.exc_info(), headers={"Cookie": "SECRET"}, url="/a?SECRET", n=1)
    for shown in (JsonFormatter().format(made), logging.Formatter().format(made)):
        assert "ValueError: http://x/a?[redacted] Authorization: [redacted]" in shown
        assert "SECRET" not in shown
    assert '"n": 1' in JsonFormatter().format(made)


def test_the_access_log_keeps_its_form_whatever_path_a_client_asks_for() -> None:
    path = "/cookie:SECRET?token=SECRET"
    made = record_of('%s - "%s %s HTTP/%s" %d', "a:5", "GET", path, "1.1", 200, name="uvicorn.access")
    shown = AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s", use_colors=False).format(made)
    assert shown == "a:5 GET /cookie:[redacted] HTTP/1.1 200 OK"


def test_arguments_that_do_not_fit_are_cleaned_all_the_same() -> None:
    made = record_of("%s %s", "/a?SECRET")
    assert (made.msg, made.args) == ("%s %s", ("/a?[redacted]",))


def test_no_configuration_of_logging_makes_websockets_log_the_headers_of_a_handshake(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for found in list(logging.root.manager.loggerDict.values()):
        if isinstance(found, logging.Logger) and found.name.startswith(("socketspec", "websockets", "uvicorn")):
            found.disabled = False
    with caplog.at_level(logging.DEBUG):
        request, _ = read(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\nCookie: sid=SECRET\r\n\r\n"
        )
    assert request is not None
    assert "SECRET" not in caplog.text


PIECES = st.sampled_from(
    ["/", "?", " ", "a", "-", "_", ":", "=", "'", '"', "\\", ", ", "bearer ", "cookie", "api-key", "socketspec.bearer."]
)


def cost(text: str) -> float:
    """The least of several times, so that other work of the machine counts little."""

    def once() -> float:
        began = time.thread_time()
        redacted(text)
        return time.thread_time() - began

    return min(once() for _ in range(3))


@settings(max_examples=40, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=4).map("".join), st.sampled_from(["", " ?", "?", "?x", "\n", "'"]))
@example("/", " ?")
@example("cookie:'", "")
@example("-", "api-key")
@example("cookie:'\\", "")
def test_the_time_is_linear_in_a_text_that_a_client_chose(piece: str, end: str) -> None:
    short = piece * (4000 // len(piece)) + end
    long = piece * (64_000 // len(piece)) + end
    # 16 times the text: 256 times the time if it were quadratic.
    assert cost(long) < 100 * cost(short) + 0.001
