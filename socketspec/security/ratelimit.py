"""How many events a client may send."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from types import UnionType
from typing import Any, Final, Literal, TypeAlias, get_args

from socketspec.errors import ConfigurationError
from socketspec.text import did_you_mean

__all__ = ("RateLimit", "ScopeName", "given_rate_limit")


ScopeName: TypeAlias = Literal["connection", "user", "ip"]
"""The scopes that have a name."""
_LARGEST = 1e15
_TEXT: Final = re.compile(r"\s*([0-9]{1,15})\s*(?:/|per)\s*(s|second|m|min|minute|h|hour)\s*")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Allow `rate` events a second, after bursts of up to `capacity`. Raises `ConfigurationError` for a bad value."""

    rate: float
    """Events a second in the long run; may be a fraction."""
    capacity: float
    """How many events may come at once; at least 1."""
    _: KW_ONLY
    scope: ScopeName | Callable[[Any], str] | None = None
    """Who shares a bucket: one connection, one user, one client address, or all for whom a function returns one key.

    None: the user where the backend is shared between nodes and the user is authenticated, else the connection.
    """
    max_violations: int = 100
    """Close with 4007 ``rate_limited`` once this many events were refused; 0: never.

    Refused events are forgotten at `rate` a second, so only a client that keeps sending more than twice its rate, or
    one that floods, is closed.
    """

    def __post_init__(self) -> None:
        if not _is_number(self.rate) or not 0 < self.rate <= _LARGEST:
            raise ConfigurationError(
                f"RateLimit(rate={self.rate!r}): rate must be a finite number of events a second greater than 0, "
                "for example 10, or 0.5 for one event every two seconds."
            )
        if not _is_number(self.capacity) or not 1 <= self.capacity <= _LARGEST:
            raise ConfigurationError(
                f"RateLimit(capacity={self.capacity!r}): capacity must be a finite number of events, at least 1: "
                "with less, no event could ever pass."
            )
        if not _is_number(self.max_violations, int) or self.max_violations < 0:
            raise ConfigurationError(
                f"RateLimit(max_violations={self.max_violations!r}): max_violations must be a whole number of refused "
                "events, or 0 to never close a connection for them."
            )
        _check_scope(self.scope)


def given_rate_limit(where: str, given: RateLimit | str | None) -> RateLimit | None:
    """What ``rate_limit=`` was given: a `RateLimit`, or a text such as ``"5/s"``, ``"100/minute"``, ``"1000/h"``, which
    allows as many at once.

    `where` begins errors, up to the equals sign: ``"on('act', rate_limit"``. Raises `ConfigurationError`.
    """
    if given is None or isinstance(given, RateLimit):
        return given
    text: Any = given  # untyped code passes anything
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if found is None or int(found[1]) == 0:
        raise ConfigurationError(
            f'{where}={given!r}): must be RateLimit(rate=10, capacity=20), a text such as "5/s", "100/minute" or '
            '"1000/h", or None.'
        )
    number = int(found[1])
    return RateLimit(number / _SECONDS[found[2][0]], number)


def _is_number(value: object, kind: type[int] | UnionType = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_scope(scope: object) -> None:
    names = get_args(ScopeName)
    if scope is None or (isinstance(scope, str) and scope in names):
        return
    if not callable(scope):
        raise ConfigurationError(
            f"RateLimit(scope={scope!r}): scope must be one of {', '.join(map(repr, names))}, a function that takes "
            "the connection and returns the bucket's key as a str, or None to have it chosen. "
            f"{did_you_mean(str(scope), names)}".rstrip()
        )
    if inspect.iscoroutinefunction(scope):
        raise ConfigurationError(
            f"RateLimit(scope={scope!r}): the scope function is called for every event and must be a plain `def`, not "
            "`async def`. Look things up in `on_connect` and keep them in `conn.metadata`."
        )
