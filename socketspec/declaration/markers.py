"""Finds the markers in a signature: ``Depends(…)`` and FastAPI's ``Query()`` and their like, where they are read.

One that stands where nobody reads it, or one of two, would declare what never happens: it is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from socketspec.declaration.dependencies import Dependency, Depends
from socketspec.declaration.signatures import EMPTY, Argument, bare, is_union
from socketspec.errors import ConfigurationError

__all__ = ("dependency_of",)

_CALLING = ("Depends", "Security")
_PARAMETERS = ("Query", "Header", "Cookie", "Path", "Body", "Form", "File")
_MARKERS = (*_CALLING, *_PARAMETERS)

_MOST_LEVELS = 32
"""How deep a marker is looked for within a type."""


def dependency_of(argument: Argument, owner: str) -> Dependency | None:
    """The dependency an argument declares by default or `Annotated`, with its callable filled in.

    Raises `ConfigurationError` for a marker that stands where nobody reads it: its value would be the marker itself.
    """
    if argument.bound:
        return None
    inner, metadata = bare(argument.annotation)
    if (name := _marker_name(inner)) is not None:
        raise ConfigurationError(
            f"{owner}: parameter {argument.name!r} has {name}() for its type, where nobody reads it. "
            f"Write {argument.name}: Annotated[the_type, {name}(…)]."
        )
    for value in (argument.default, *metadata):
        _check_called(value, argument.name, owner)
    marker = Dependency.read(argument.default)
    annotated = [found for found in map(Dependency.read, metadata) if found is not None]
    if annotated and marker is None and argument.default is not EMPTY:
        raise ConfigurationError(
            f"{owner}: parameter {argument.name!r} has both Depends in its Annotated type and a default value. "
            "Take the default away: the dependency always provides the value."
        )
    _refuse_several(argument, metadata, owner)
    marker = marker or (annotated[0] if annotated else None)
    if marker is None:
        _refuse_hidden(argument, inner, owner)
        _refuse_function(argument, inner, owner)
        return None
    if marker.dependency is not None:
        return marker
    if inner in (EMPTY, Any) or is_union(inner) or not isinstance(get_origin(inner) or inner, type):
        raise ConfigurationError(
            f"{owner}: parameter {argument.name!r} says Depends() without what to call, and its annotation "
            "is not a class that could be called. Write Depends(the_function)."
        )
    return replace(marker, dependency=inner)


def _check_called(value: object, name: str, owner: str) -> None:
    """Raise `ConfigurationError` for ``Depends``, ``Query`` and their like without parentheses."""
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return
    package = value.__module__.partition(".")[0]
    if (package in ("fastapi", "starlette") and value.__name__ in _MARKERS) or value is Depends:
        raise ConfigurationError(
            f"{owner}: parameter {name!r} has {value.__name__} without parentheses, which declares nothing. "
            f"Write {value.__name__}({'get_it' if value.__name__ in _CALLING else ''})."
        )


def _marker_name(value: object) -> str | None:
    """``"Depends"``, ``"Query"`` and so on, where `value` is what it returns."""
    if Dependency.read(value) is not None:
        return "Depends"
    if not isinstance(value, FieldInfo):
        return None
    ours = (cls for cls in type(value).__mro__ if cls.__module__.partition(".")[0] == "fastapi")
    return next((cls.__name__ for cls in ours if cls.__name__ in _PARAMETERS), None)


def _refuse_several(argument: Argument, metadata: Sequence[Any], owner: str) -> None:
    """Raise `ConfigurationError` for what only one of two markers, or of two defaults, could decide."""
    found = [name for value in (argument.default, *metadata) if (name := _marker_name(value)) is not None]
    if len(found) > 1:
        instead = "If each has to run, list the others in dependencies=[…]." if "Depends" in found else ""
        raise ConfigurationError(
            f"{owner}: parameter {argument.name!r} has {' and '.join(found)}, and only one of them could provide it. "
            f"Write only the one that is meant. {instead}".rstrip()
        )
    for value in metadata:
        default: Any = getattr(value, "default", None)
        name = None if Dependency.read(value) is not None else _marker_name(value)
        if name is not None and default is not PydanticUndefined and default is not Ellipsis:
            raise ConfigurationError(
                f"{owner}: parameter {argument.name!r} has a default value in the {name}() of its Annotated type, "
                f"where FastAPI takes none. Write Annotated[the_type, {name}()] = {default!r}."
            )


def _refuse_function(argument: Argument, inner: Any, owner: str) -> None:
    """Raise `ConfigurationError` for a function as the default of what is annotated as something else."""
    default: Any = argument.default
    if not inspect.isroutine(default) or inner in (EMPTY, Any):
        return
    options = [get_origin(option) or option for option in (get_args(inner) if is_union(inner) else (inner,))]
    if all(isinstance(option, type) and option is not object and "__call__" not in dir(option) for option in options):
        raise ConfigurationError(
            f"{owner}: parameter {argument.name!r} would get the function {default.__name__} itself. "
            f"Write {argument.name}=Depends({default.__name__}) to get what it returns."
        )


def _refuse_hidden(argument: Argument, inner: Any, owner: str) -> None:
    """Raise `ConfigurationError` for a ``Depends(…)`` or ``Query()`` within a union, a collection or a tuple."""
    default = argument.default
    found: object = None
    if isinstance(default, tuple | list):
        items: Sequence[Any] = default
        found = next((item for item in items if _marker_name(item) is not None), None)
    found = found or _within(inner, _MOST_LEVELS)
    name = _marker_name(found)
    if name is not None:
        shown = getattr(getattr(found, "dependency", None), "__name__", "get_it") if name == "Depends" else ""
        raise ConfigurationError(
            f"{owner}: parameter {argument.name!r} has {name} inside of something else, where it declares nothing. "
            f"Write it outermost: Annotated[the_type, {name}({shown})], or as the default itself."
        )


def _within(annotation: Any, depth: int) -> object:
    """The first marker in the arguments of a type, `depth` levels down at most."""
    for option in get_args(annotation) if depth else ():
        inner, metadata = bare(option)
        for value in metadata:
            if _marker_name(value) is not None:
                return value
        if (found := _within(inner, depth - 1)) is not None:
            return found
    return None
