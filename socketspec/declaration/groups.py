"""What belongs to all events of a router: said once by the router or by including it, and as one app then has it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, NamedTuple, Protocol

from socketspec.declaration.declared_errors import DeclaredError
from socketspec.declaration.plans import Scoped
from socketspec.declaration.signatures import describe, enclosing_locals
from socketspec.errors import ConfigurationError

__all__ = (
    "Bucket",
    "Given",
    "Group",
    "Hook",
    "Limit",
    "Middleware",
    "NextHandler",
    "Path",
    "RouterOptions",
    "check_middleware",
    "given_middleware",
    "given_tags",
    "given_timeout",
)

Hook = Callable[..., Awaitable[Any]]
NextHandler = Callable[[Any, str, Any], Awaitable[Any]]
Middleware = Callable[[Any, str, Any, NextHandler], Awaitable[Any]]


class Limit(Protocol):
    """How many events may come, and who shares that: a `RateLimit`."""

    @property
    def rate(self) -> float: ...

    @property
    def capacity(self) -> float: ...

    @property
    def scope(self) -> Literal["connection", "user", "ip"] | Callable[[Any], str] | None: ...

    @property
    def max_violations(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """A limit of an event, or of the events of a router together."""

    name: str
    """Tells its tokens from those of other limits; the same on every node that runs the same code."""
    limit: Limit


class Given(NamedTuple):
    """A function as it was declared, with the local names around its declaration."""

    function: Callable[..., Any]
    caller_locals: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RouterOptions:
    """What a router, or including it somewhere, says of each of its events."""

    prefix: str = ""
    tags: tuple[str, ...] = ()
    dependencies: tuple[Scoped, ...] = ()
    middleware: tuple[Given, ...] = ()
    errors: tuple[DeclaredError, ...] = ()
    rate_limit: Limit | None = None
    timeout: float | None = None
    """Seconds; None: as what it is included in says."""

    @property
    def is_empty(self) -> bool:
        """Whether it adds nothing."""
        return not (self.prefix or self.tags or self.dependencies)


Path = tuple[RouterOptions, ...]
"""By what an event came to an app, outermost first; empty for what is declared on the app itself."""


@dataclass(slots=True, eq=False)
class Group:
    """The events that came to an app by one path. What is added to the lists later counts for all of them."""

    options: RouterOptions
    bucket: Bucket | None
    middleware: list[Middleware] = field(default_factory=list)
    on_error: list[Hook] = field(default_factory=list)


def given_tags(where: str, tags: Sequence[str]) -> tuple[str, ...]:
    """What ``tags=`` was given. `where` begins errors, up to the equals sign: ``"on('act', tags"``."""
    if isinstance(tags, str) or not isinstance(tags, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance] - what untyped code passes
        raise ConfigurationError(f"{where}={tags!r}): tags must be a list, such as tags=['chat'].")
    for tag in tags:
        if not isinstance(tag, str):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
            raise ConfigurationError(f"{where}={tags!r}): a tag is a text, such as 'chat', and {tag!r} is none.")
    return tuple(tags)


def given_timeout(where: str, timeout: float | timedelta | None) -> float | None:
    """What ``timeout=`` was given, in seconds. `where` begins errors, as for `given_tags`."""
    seconds: Any = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ConfigurationError(
            f"{where}={timeout!r}): timeout must be a number of seconds greater than 0, such as 5, or a timedelta; "
            "math.inf for no limit; None for what holds around it."
        )
    return math.inf if seconds >= 2**31 else float(seconds)  # an event loop has no timer for longer


def given_middleware(where: str, middleware: Sequence[Callable[..., Any]]) -> tuple[Given, ...]:
    """What ``middleware=`` was given. `where` begins errors, as for `given_tags`."""
    given: Any = middleware  # untyped code passes anything
    if isinstance(given, str) or not isinstance(given, Sequence):
        shown = getattr(given, "__name__", "audit")
        raise ConfigurationError(f"{where}={given!r}): middleware must be a list, such as middleware=[{shown}].")
    for function in middleware:
        check_middleware(function)
    return tuple(Given(function, enclosing_locals(function)) for function in middleware)


def check_middleware(function: object) -> None:
    """Raise `ConfigurationError` for middleware that could not await the next handler."""
    if not inspect.iscoroutinefunction(function):
        name = getattr(function, "__qualname__", None) or (describe(function) if callable(function) else repr(function))
        raise ConfigurationError(
            f"Middleware {name!r} must be async def m(conn, event, payload, next_handler), to await next_handler."
        )
