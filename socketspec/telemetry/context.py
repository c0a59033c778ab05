"""What a log record is about: the connection, and the request that is being handled."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ("Requests", "current_request", "log_context")


class Requests:
    """Numbers the requests of one app. A number is written out as an id only when somebody is shown it."""

    __slots__ = ("_prefix", "namespace", "numbers")

    def __init__(self, namespace: str) -> None:
        self.namespace: str = namespace
        self.numbers: Iterator[int] = itertools.count(1)
        self._prefix = secrets.token_hex(4)

    def id(self, number: int) -> str:
        """The id that stands in an error sent to a client and in the log."""
        return f"{self._prefix}-{number:x}"


CurrentRequest = tuple[str, Requests, str | None, int]

current_request: ContextVar[CurrentRequest | None] = ContextVar("socketspec_current_request", default=None)
"""What the current task works on: a connection's id, its app's `Requests`, an event and the request's number.

For a hook, there is no event and the number is 0, unless an event of its connection caused it. None: no connection.
"""


@contextmanager
def log_context(connection: str, requests: Requests, event: str | None = None, number: int = 0) -> Iterator[None]:
    """Log records made inside carry these ids."""
    before = current_request.set((connection, requests, event, number))
    try:
        yield
    finally:
        current_request.reset(before)
