"""What hooks, guards, middleware and auth backends look like: what they are passed, and how they may annotate it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, Never, NewType, NoReturn, TypeVar, get_args, get_origin

from socketspec.declaration.compiler import Stage
from socketspec.declaration.signatures import EMPTY, bare, is_union, means
from socketspec.errors import ConfigurationError, Disconnected, EventError, TimedOut
from socketspec.protocol.handshake import Handshake

__all__ = ("Shape", "check_answer", "error_kinds")

_PASSED: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {"reason": str, "room": str, "event": str, "error": Exception, "handshake": Handshake, "key": str, "claims": dict}
)
"""The types of what is passed by position under these names; ``conn`` is the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a hook, guard, middleware or auth backend is called."""

    what: str
    """For messages: "a room guard"."""
    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Those of `keywords` that it need not take."""
    stage: Stage = Stage.EVENT
    decides: bool = False
    """Whether it has to return True."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is passed, in order."""
        return (*self.positional, *self.keywords)

    def shown(self, func: object) -> str:
        """The signature to write."""
        named = [name for name in self.keywords if name not in self.optional]
        expected = ", ".join([*self.positional, *(["*", *named] if named else [])])
        return f"{self.what} looks like this: async def {getattr(func, '__name__', 'hook')}({expected})"

    def check(self, name: str, given: str, annotation: Any, connection_type: type[Any]) -> None:
        """Raise `ConfigurationError` where the parameter `given`, which gets `name`, is annotated as something else."""
        wanted = connection_type if name == "conn" else _PASSED.get(name)
        if wanted is not None and not _takes(annotation, wanted):
            shown = getattr(annotation, "__name__", None) or str(annotation)
            raise ConfigurationError(
                f"parameter {given!r} gets {name!r}, which is of type {wanted.__name__}, but is annotated as {shown}; "
                f"write {given}: {wanted.__name__}"
            )


def _takes(annotation: Any, wanted: type[Any]) -> bool:
    inner, _ = bare(annotation)
    if inner in (EMPTY, Any, *wanted.__mro__):
        return True
    if is_union(inner):
        return any(_takes(option, wanted) for option in get_args(inner))
    if isinstance(inner, NewType):
        return _takes(inner.__supertype__, wanted)
    if isinstance(inner, TypeVar):
        return inner.__bound__ is None or _takes(inner.__bound__, wanted)
    if get_origin(inner) is Literal:
        return any(isinstance(value, wanted) for value in get_args(inner))
    origin = get_origin(inner) or inner
    if not isinstance(origin, type) or getattr(origin, "_is_protocol", False):
        return True
    # A `TypedDict` is a dict, and an abstract base class, such as Mapping, may count `wanted` as its own.
    return means(inner, wanted) or (wanted is dict and hasattr(origin, "__total__")) or _counts(origin, wanted)


def _counts(base: type[Any], wanted: type[Any]) -> bool:
    try:
        return issubclass(wanted, base)
    except TypeError:  # a base that does not tell
        return True


def error_kinds(annotation: Any) -> tuple[type[BaseException], ...]:
    """The exceptions that an `on_error` hook is for, as its second parameter says; none named: all of them.

    Raises `ConfigurationError` for those that no such hook hears of.
    """
    inner, _ = bare(annotation)
    options = get_args(inner) if is_union(inner) else (inner,)
    kinds = tuple(option for option in options if isinstance(option, type) and issubclass(option, BaseException))
    if len(kinds) < len(options) or any(issubclass(Exception, kind) for kind in kinds):
        return ()
    for kind in kinds:
        if issubclass(kind, Disconnected) or (
            issubclass(kind, EventError) and not issubclass(TimedOut, kind) and not issubclass(kind, TimedOut)
        ):
            raise ConfigurationError(
                f"on_error never gets a {kind.__name__}: that is an answer or an end, and no failure. "
                "Annotate the failures that it is for, or Exception for all of them"
            )
    return kinds


def check_answer(returns: Any) -> None:
    """Raise `ConfigurationError` where a room guard says that it returns what is never True, and so lets nobody in."""
    inner, _ = bare(returns)
    options = get_args(inner) if is_union(inner) else (inner,)
    for option in options:
        origin = get_origin(option) or option
        if option in (EMPTY, Any, object, bool, NoReturn, Never) or not isinstance(origin, type):
            return  # what cannot be told is let pass
        if issubclass(origin, Awaitable) or issubclass(origin, bool):
            return
    shown = getattr(inner, "__name__", None) or str(inner)
    raise ConfigurationError(
        f"it says that it returns {'None' if inner is type(None) else shown}, but only True lets anybody in; "
        "write -> bool"
    )
