"""The errors that an event may be answered with, as ``errors=[…]`` lists them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.payloads import without_none
from socketspec.errors import ConfigurationError, EventError

__all__ = ("DeclaredError", "DeclaredErrors", "compile_errors")


class DeclaredError(NamedTuple):
    """One kind of error, compiled."""

    kind: type[EventError]
    details: OutboundType | None
    """None: a dict of anything."""

    @property
    def code(self) -> str:
        """What clients tell it by."""
        return str(self.kind.code)

    @property
    def description(self) -> str:
        """Its docstring, else its message."""
        return inspect.cleandoc(self.kind.__doc__ or "") or self.kind.message


class DeclaredErrors:
    """Every error that an app declares, by code."""

    def __init__(self) -> None:
        self.by_code: dict[str, DeclaredError] = {}

    def add(self, declared: Iterable[DeclaredError]) -> None:
        """Take more. Raises `ConfigurationError` where clients could not tell two kinds apart."""
        for error in declared:
            known = self.by_code.setdefault(error.code, error)
            if known.kind is not error.kind and known.kind.details_type is not error.kind.details_type:
                raise ConfigurationError(
                    f"{known.kind.__qualname__} and {error.kind.__qualname__} have the code {error.code!r} and "
                    "different details; give each a code of its own."
                )


def compile_errors(option: str, given: object) -> tuple[DeclaredError, ...]:
    """Compile what ``errors=`` was given. `option` begins errors, up to the equals sign: ``"on('act', errors"``.

    Raises `ConfigurationError` where it cannot be what was meant.
    """
    if isinstance(given, str | type) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{option}={given!r}): must be a list of error classes, such as [SoldOut].")
    found: list[DeclaredError] = []
    items: Iterable[Any] = given
    for item in items:
        if not isinstance(item, type) or not issubclass(item, EventError):
            shown = type(item).__name__ if isinstance(item, EventError) else "SoldOut"
            raise ConfigurationError(
                f"{option}=[{item!r}]): list classes, such as {shown}, which are subclasses of EventError."
            )
        where = f"{option}=[{item.__name__}]): the type of the details"
        details = None if item.details_type is None else OutboundType(without_none(item.details_type), what=where)
        found.append(DeclaredError(item, details))
    own = DeclaredErrors()
    own.add(found)
    return tuple(found)
