"""What the log keeps of a URL: everything but its query."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from typing import Any

import pytest

from socketspec.adapters.uvicorn.redact import RedactQuery


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
        ("what now? %s %r", ("/plain", 5), "what now? /plain 5"),
        ("%(path)s", ({"path": "/plain"},), "/plain"),
        ("%(path)s %(n)d", ({"path": "/a?token=SECRET", "n": 1},), "/a?[redacted] 1"),
        ("%s", (PurePosixPath("/ws?token=SECRET"),), "/ws?[redacted]"),
        ("failed: %s", (OSError("http://x/a?key=SECRET is away"),), "failed: http://x/a?[redacted] is away"),
    ],
)
def test_queries_are_removed_from_log_records(message: str, arguments: Any, logged: str) -> None:
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, message, arguments, None)
    assert RedactQuery().filter(record) is True
    assert record.getMessage() == logged
