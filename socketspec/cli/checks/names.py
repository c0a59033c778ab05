"""How functions, types and options are named on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from socketspec.declaration.markers import dependency_of
from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.payloads import PayloadType
from socketspec.declaration.signatures import Scope, describe, innermost, resolve
from socketspec.errors import ConfigurationError
from socketspec.text import cut

__all__ = ("called", "covers", "dependencies_of", "function_name", "type_name")

_MOST: Final = 64
"""Dependencies of dependencies that are followed."""


def function_name(function: Any) -> str:
    """``module.qualname``, without what a decorator put around it."""
    return describe(innermost(function) if callable(function) else function)


def type_name(model: PayloadType | OutboundType | None) -> str | None:
    """A payload's or a reply's type as one would write it; None where there is none, or it is nothing."""
    if model is None or (isinstance(model, OutboundType) and model.is_nothing):
        return None
    return cut(model.name, 80)


def called(dependencies: Iterable[Any]) -> list[str]:
    """The names of what is called."""
    return [function_name(each) for each in dependencies if each is not None]


def dependencies_of(function: Callable[..., Any], names: Scope | None = None) -> list[str]:
    """What `function` depends on, and what that does, each once, in the order in which it is written."""
    found: dict[str, None] = {}
    waiting: list[Any] = [function]
    while waiting and len(found) < _MOST:
        each = waiting.pop(0)
        for dependency in _asked_for(each, names):
            name = function_name(dependency)
            if name not in found:
                found[name] = None
                waiting.append(dependency)
    return list(found)


def _asked_for(function: Any, names: Scope | None) -> list[Any]:
    target = innermost(function)
    if not callable(target):
        return []
    try:
        signature = resolve(target if hasattr(function, "__wrapped__") else function, scope=names)
        markers = [dependency_of(argument, signature.owner) for argument in signature.arguments]
    except ConfigurationError:  # local to a function that has ended; it was looked at when it was registered
        return []
    return [marker.dependency for marker in markers if marker is not None and marker.dependency is not None]


def covers(pattern: RoomPattern, room: RoomPattern) -> bool:
    """Whether `pattern` matches every room of the pattern `room`, as far as one of them shows."""
    if room.is_static:
        return pattern.match(room.source) is not None
    sample = room.format({name: f"zq7{number}" for number, name in enumerate(room.variables)})
    return pattern.match(sample) is not None
