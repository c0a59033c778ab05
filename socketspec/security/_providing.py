"""How the callables of auth backends get their dependencies, of which this package knows nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ("provided", "provider")

Provide = Callable[[object, Callable[..., Any]], Callable[..., Any]]

provider: ContextVar[Provide | None] = ContextVar("socketspec_auth_provider", default=None)
"""Set while an app that declares dependencies in its auth backends authenticates somebody."""


def provided(owner: object, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of `owner`, to be called with its arguments alone: what else it asks for is provided."""
    provide = provider.get()
    return function if provide is None else provide(owner, function)
