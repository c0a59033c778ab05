"""What a class of errors says of itself, looked at when it is made: its code, and the type of its details."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Collection, Mapping
from datetime import date, time
from decimal import Decimal
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError

__all__ = ("check_attributes", "is_object", "validated", "well_formed")

_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def well_formed(code: object) -> str:
    """`code`, if it may be one. Raises `ValueError`."""
    if not isinstance(code, str) or _CODE.fullmatch(code) is None:
        raise ValueError(f"an error's code is up to 64 capital letters, digits and _, such as 'SOLD_OUT', not {code!r}")
    return code


def check_attributes(cls: type[Any], base: type[Any]) -> None:
    """Raise `ValueError` for what `cls`, a subclass of `base`, says of its details or message where nobody reads it."""
    own = vars(cls)
    if "details" in own and not hasattr(own["details"], "__get__"):
        shown = getattr(own["details"], "__name__", "SoldOutDetails")
        raise ValueError(f"`details = …` declares nothing. Write the type of the details: `details: {shown}`.")
    for name in {*own, *inspect.get_annotations(cls)} - set(dir(base)) - {"details"}:
        near = difflib.get_close_matches(name, ("code", "message", "details"), n=1, cutoff=0.85)
        if near and not callable(own.get(name)) and not hasattr(own.get(name), "__get__"):
            raise ValueError(f"nobody reads {name!r}. Did you mean {near[0]!r}?")


def is_object(annotation: Any) -> bool:
    """Whether its values are objects of JSON; None may be among them."""
    annotation = getattr(annotation, "__value__", annotation)  # of `type` aliases
    origin = get_origin(annotation) or annotation
    if origin is Annotated:
        return is_object(annotation.__origin__)
    if origin in (Union, UnionType):
        options = [option for option in get_args(annotation) if option is not NoneType]
        return bool(options) and all(map(is_object, options))
    if not isinstance(origin, type):
        return True  # what cannot be told is let pass
    if issubclass(origin, RootModel):
        return is_object(origin.model_fields["root"].annotation)
    return issubclass(origin, BaseModel | Mapping) or dataclasses.is_dataclass(origin) or not _is_simple(origin)


def _is_simple(cls: type[Any]) -> bool:
    return issubclass(cls, str | bytes | int | float | complex | Collection | NoneType | date | time | UUID | Decimal)


def validated(adapter: TypeAdapter[Any], details: object) -> Any:
    """`details` as their declared type has them; None is none or an empty object. Raises `ValueError`."""
    if details is None:
        try:
            return adapter.validate_python(None)
        except ValidationError:
            details = {}
    try:
        return adapter.validate_python(details, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:5]
        differences = (f"{'.'.join(map(str, item['loc'])) or 'details'}: {item['msg']}" for item in found)
        raise ValueError("; ".join(differences)) from error
