"""What the log keeps of URLs and of credentials, whoever logs them, and how long that takes."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.exceptions import AuthenticationError
from uvicorn.logging import AccessFormatter

from socketspec.adapters.uvicorn import redact
from socketspec.adapters.uvicorn.redact import RedactQuery, redacted
from socketspec.adapters.uvicorn.upgrade import read
from socketspec.cluster.options import Address
from socketspec.cluster.servers.shard import LinkOptions, explain
from socketspec.errors import ConfigurationError
from socketspec.logs import JsonFormatter
from socketspec.protocol.handshake import Headers, QueryParams
from socketspec.security import secret_names
from socketspec.security.auth import APIKeyAuth
from socketspec.security.secret_names import hide_in_logs


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


NEEDED = {
    "a query": ("GET %s", ("/ws?a=SECRET",)),
    "a bearer token": ("it sent %s", ("Bearer SECRET",)),
    "an offered subprotocol": ("offers %s", (["socketspec.bearer.SECRET"],)),
    "authorization": ("%s: %s", ("authorization", "SECRET")),
    "cookie": ("%s", ([(b"cookie", b"SECRET")],)),
    "api key": ("%s", ([{"x-api-key": "SECRET"}],)),
    "subprotocols": ("%s: %s", ("sec-websocket-protocol", "SECRET")),
    "token": ("headers %s", ([{"X-Service-Token": "SECRET", "x-auth_token": "SECRET"}],)),
    "secret": ("%s: %s", ("X-Client-Secret", "SECRET")),
    "password": ("%s: %s", ("X-Password", "SECRET")),
    "a long name": ("%s: %s", ("x-" * 60 + "token", "SECRET")),
    "what APIKeyAuth reads": ("%s", ([(b"x-strange-one", b"SECRET")],)),
    "its parameter": ("%s=%s", ("strange_parameter", "SECRET")),
    "what a backend reads": ("%s: %s", ("X-Tenant-Pin", "SECRET")),
}


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """These names, and none that other tests' backends read."""
    monkeypatch.setattr(secret_names, "_names", frozenset())
    APIKeyAuth({"key"}, header="X-Strange-One", query_param="strange_parameter")
    hide_in_logs("x-tenant-pin")


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("what", NEEDED)
def test_every_kind_of_credentials_is_hidden(what: str) -> None:
    message, arguments = NEEDED[what]
    assert "SECRET" not in record_of(message, *arguments).getMessage()


RULES = {
    "_QUERY": ["a query"],
    "_BEARER": ["a bearer token", "an offered subprotocol"],
    "_CREDENTIALS": [
        "authorization",
        "cookie",
        "api key",
        "subprotocols",
        "token",
        "secret",
        "password",
        "a long name",
    ],
    "hidden_in_logs": ["what APIKeyAuth reads", "its parameter", "what a backend reads"],
}


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_needed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without: dict[str, Any] = {"_CREDENTIALS": "(?!)", "hidden_in_logs": frozenset}
    monkeypatch.setattr(redact, rule, without.get(rule, re.compile("(?!)()")))
    redact.header_rule.cache_clear()
    shown = [what for what, (message, given) in NEEDED.items() if "SECRET" in record_of(message, *given).getMessage()]
    redact.header_rule.cache_clear()
    assert shown == RULES[rule]


@pytest.mark.parametrize("name", ["", "\n", "x" * 201])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="hide_in_logs"):
        hide_in_logs(name)


@pytest.mark.parametrize(
    "target", ["foo?t=SECRET", "*?t=SECRET", "?t=SECRET", "x:y?t=SECRET", "\\ws?t=SECRET", "a b?SECRET"]
)
def test_the_access_log_shows_no_query_whatever_is_asked_for(target: str) -> None:
    made = record_of('%s - "%s %s HTTP/%s" %d', "a:5", "GET", target, "1.1", 404, name="uvicorn.access")
    shown = AccessFormatter("%(client_addr)s %(request_line)s %(status_code)s", use_colors=False).format(made)
    assert shown == f"a:5 GET {target.partition('?')[0]}?[redacted] HTTP/1.1 404 Not Found"


@pytest.mark.parametrize("mark", [";", "#", "%3F", "%3f", "%3B", "%23", "%253F", "%25253b"])
@pytest.mark.parametrize("path", ["/ws", "foo", "/a%25"])
def test_a_query_is_none_the_more_shown_where_its_mark_is_another_or_encoded(path: str, mark: str) -> None:
    target = f"{path}{mark}token=SECRET?x=SECRET"
    made = record_of('%s - "%s %s HTTP/%s" %d', "a:5", "GET", target, "1.1", 404, name="uvicorn.access")
    assert made.getMessage() == f'a:5 - "GET {path}{mark}[redacted] HTTP/1.1" 404'
    for answer in ("[accepted]", "403"):
        made = record_of('%s - "WebSocket %s" %s', "a:5", target, answer)
        assert made.getMessage() == f'a:5 - "WebSocket {path}{mark}[redacted]" {answer}'
    made = record_of('%s - "WebSocket %s" [accepted]', "a:5", target)  # as uvicorn's protocols write it
    assert made.getMessage() == f'a:5 - "WebSocket {path}{mark}[redacted]" [accepted]'


def test_a_mark_that_nothing_follows_hides_nothing() -> None:
    for path in ("/c%23", "/what%3F", "/plain"):
        made = record_of('%s - "%s %s HTTP/%s" %d', "a:5", "GET", path, "1.1", 200, name="uvicorn.access")
        assert made.getMessage() == f'a:5 - "GET {path} HTTP/1.1" 200'


@pytest.mark.parametrize("shown", [str, repr, "{}".format, "%s".__mod__])
def test_headers_and_parameters_show_no_values(shown: Callable[[object], str]) -> None:
    for made in (Headers([("X-Odd", "SECRET")]), QueryParams([("x-odd", "SECRET")])):
        assert "SECRET" not in shown(made)
        assert "odd" in shown(made).lower()


def test_headers_that_are_logged_show_their_names_only() -> None:
    made = record_of("came %s", Headers([("x-odd", "SECRET"), ("host", "SECRET"), ("cookie", "SECRET")]))
    assert "SECRET" not in made.getMessage()
    assert "x-odd" in made.getMessage()


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


@pytest.mark.parametrize("password", [None, "pw"])
@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("Authentication required."),
        AuthenticationError("invalid username-password pair or user is disabled."),
        AuthenticationError("AUTH <password> called without any password configured for the default user."),
    ],
)
def test_what_to_do_about_a_login_is_not_taken_for_a_password(password: str | None, error: Exception) -> None:
    text = str(explain(Address("redis", 6379), error, LinkOptions(password=password)))
    assert redacted(text) == text
