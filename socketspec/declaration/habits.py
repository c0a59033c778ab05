"""What people write who come from elsewhere, or in haste: refused with the line to write instead."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.savepoints import Restore, saved
from socketspec.errors import ConfigurationError

__all__ = ("Once", "refuse_as_router", "refuse_bare", "refuse_habit", "refuse_star")

_HABITS: Final[Mapping[str, str]] = {
    "connect": "@socket.on_connect",
    "connection": "@socket.on_connect",
    "disconnect": "@socket.on_disconnect",
    "disconnecting": "@socket.on_disconnect",
    "connect_error": "@socket.on_error",
}
"""Events of Socket.IO that are hooks here."""

_OF_FASTAPIS: Final = ("routes", "_contains_router")
"""What FastAPI's ``include_router`` asks of a router, by its version."""


def refuse_bare(given: object, decorator: str, example: str) -> None:
    """Raise `ConfigurationError` where `decorator`, such as ``"socket.on"``, stands without parentheses, and so gets
    the function.
    """
    if callable(given):
        name = getattr(given, "__name__", example)
        raise ConfigurationError(f"@{decorator} stands without parentheses over {name}(). Write {example}.")


class NoSuchAttribute(ConfigurationError, AttributeError):
    """For ``hasattr`` there is no such attribute; whoever needs it is told what to write."""


def refuse_as_router(attribute: str, instead: str) -> None:
    """Raise `ConfigurationError` for an attribute that FastAPI's ``include_router`` asks of a router."""
    if attribute in _OF_FASTAPIS:
        raise NoSuchAttribute(instead)


def refuse_habit(event: str) -> None:
    """Raise `ConfigurationError` for an event that other libraries send by themselves, and this one never would."""
    if event in _HABITS:
        raise ConfigurationError(
            f"No client sends an event {event!r} by itself: @socket.on({event!r}) would never be called. "
            f"Write {_HABITS[event]}, without parentheses."
        )
    if event == "*":
        raise ConfigurationError(
            "@socket.on('*') is no handler of all events. See every event in a @socket.middleware, and register a "
            "handler for each one that there is."
        )


def refuse_star(what: str, pattern: RoomPattern) -> None:
    """Raise `ConfigurationError` for a ``*`` in the pattern of `what`: it would be that character."""
    if "*" in pattern.source:
        instead = pattern.source.replace("*", "{room}", 1)
        raise ConfigurationError(f"{what}: `*` stands for nothing in a room's pattern. Write {instead!r}.")


class Once:
    """Remembers what was registered as what."""

    def __init__(self) -> None:
        self._registered: dict[Hashable, list[object]] = {}

    def save(self) -> Restore:
        """What puts it back as it is now."""
        return saved(self._registered, *self._registered.values())

    def add(self, function: Callable[..., Any], what: str, of: Hashable = None) -> None:
        """Raise `ConfigurationError` where `function` is `what` already, and `of` the same: it would run twice."""
        same = self._registered.setdefault((what, of), [])
        if function in same:
            name = getattr(function, "__qualname__", repr(function))
            raise ConfigurationError(f"{name} is {what} already and would run twice each time; register it once.")
        same.append(function)
