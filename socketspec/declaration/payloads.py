"""An event's model, compiled: one annotation becomes one validator when the handler is registered."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, Literal, Union, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, SchemaValidator, to_json

from socketspec.declaration.models import (
    ACCEPTED,
    compile_model,
    is_object,
    is_plain,
    json_schema,
    name_of,
    settings_in,
)
from socketspec.declaration.signatures import EMPTY, bare, is_union
from socketspec.errors import ConfigurationError, ValidationFailed
from socketspec.protocol.decoding import NoPayload
from socketspec.text import cut

__all__ = ("MAX_DEPTH", "MAX_ERRORS", "PayloadType", "misfit", "without_none")

MAX_ERRORS = 20
"""How many errors `ValidationFailed.details` lists."""

MAX_DEPTH = 64
"""How deep a payload without a model may be nested; the payload itself is level 1."""

_TOO_MANY = 1000
"""Beyond this many errors none is listed: Pydantic can only list all, which would block the event loop for long."""

_MAX_TEXT = 300
"""Messages and names of fields are cut to this many characters: both can quote what the client sent."""

_MAX_LOC = 1000
"""Characters of all names of fields on the way to one error."""

_MAX_LISTED = 4000
"""Characters of all errors listed: a name that the client sent once may stand in each."""

_LEAST, _MOST = -(2**63), 2**64 - 1
"""The integers MessagePack can carry."""


class PayloadType:
    """A payload's type, compiled: validates what clients send, and describes itself as JSON Schema.

    `namespace` resolves names that the annotation's own models left open (models local to a function). A copy of
    `default` is what a message without a payload brings; it is not validated. With one, the type may admit None.
    Raises `ConfigurationError` for a type that is not an object or that Pydantic cannot handle.
    """

    __slots__ = ("_adapter", "annotation", "is_plain", "name", "validate_python")

    annotation: Any
    name: str
    """For people: the model's name."""
    is_plain: bool
    """Whether it is a dict of anything, without a model."""
    validate_python: Callable[[Any], Any]
    """Validates a parsed object. Raises Pydantic's `ValidationError`; `validate` translates that."""

    def __init__(self, annotation: Any, *, namespace: Mapping[str, Any] | None = None, default: Any = EMPTY) -> None:
        if default is not EMPTY:
            annotation = without_none(annotation)
        self.annotation = annotation
        self.name = name_of(annotation)
        if not is_object(annotation):
            instead = "put a single value, a list or an optional value in a field of it."
            if is_object(without_none(annotation)):
                instead = "or give it a default, such as None, for messages without a payload."
            raise ConfigurationError(
                f"{self.name!r} cannot be a payload: a payload is always an object. Use {ACCEPTED}, "
                f"{'' if instead.startswith('or') else 'and '}{instead}"
            )
        self.is_plain = is_plain(annotation)
        self._adapter = compile_model(dict[str, Any] if self.is_plain else annotation, self.name, namespace or {})
        validate = _check_tree if self.is_plain else _validator(self._adapter)
        self.validate_python = validate if default is EMPTY else _or_default(validate, default)

    def __repr__(self) -> str:
        return f"PayloadType({self.name})"

    def validate(self, value: dict[str, Any]) -> Any:
        """Turn a received object into the declared type.

        Raises `ValidationFailed`, whose `details` list at most 20 errors and no values. What a validator of yours
        raises besides ValueError and AssertionError passes through: it is the handler's error. A payload without a
        model is returned as it is. It is refused if it holds anything but JSON values, is nested deeper than 64 levels,
        or has numbers that MessagePack or JSON cannot carry.
        """
        try:
            return self.validate_python(value)
        except ValidationError as error:
            details = _details(error)
            raise ValidationFailed(_summary(error, len(details)), details={"errors": details}) from error
        except RecursionError:
            # Not chained: a thousand frames say nothing.
            raise _refusal((), "The payload is nested too deeply", "recursion_loop") from None

    def json_schema(self, mode: Literal["validation", "serialization"] = "validation") -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of what is received ("validation") or sent ("serialization").

        Raises `ConfigurationError` if a field has no JSON Schema.
        """
        return json_schema(self._adapter, self.name, mode)


def without_none(annotation: Any) -> Any:
    """What is left of an optional type; any other as it is."""
    inner, _ = bare(annotation)
    options = tuple(option for option in get_args(inner) if option is not NoneType) if is_union(inner) else ()
    return Union[options] if options else annotation  # noqa: UP007 # the types are known at run time only


def _or_default(validate: Callable[[Any], Any], default: Any) -> Callable[[Any], Any]:
    def validate_or_default(value: Any) -> Any:
        return copy.deepcopy(default) if value.__class__ is NoPayload else validate(value)

    return validate_or_default


def _validator(adapter: TypeAdapter[Any]) -> Callable[[Any], Any]:
    """Validates a parsed object as Pydantic validates the JSON it came as."""
    validator: SchemaValidator = adapter.validator  # type: ignore[assignment] # a stand-in only until it is complete
    return (
        _AsJson(validator)
        if any(map(_tells_json_apart, settings_in(adapter.core_schema)))
        else (validator.validate_python)
    )


def _tells_json_apart(setting: tuple[str, Any]) -> bool:
    """Whether Pydantic may take a value from JSON otherwise than one from Python.

    In strict mode JSON's strings may become dates, enums and so on, and arrays sets and tuples:
    https://docs.pydantic.dev/latest/concepts/conversion_table/
    """
    match setting:
        case ("strict", True) | ("type", "json-or-python"):
            return True
        case ("val_json_bytes", how):
            return how not in (None, "utf8")
        case _:
            return False


class _AsJson:
    """Validates a parsed object as JSON. It is written once more for that: there is no other way to tell Pydantic."""

    __slots__ = ("_json", "_python")

    def __init__(self, validator: SchemaValidator) -> None:
        self._json = validator.validate_json
        self._python = validator.validate_python

    def __call__(self, value: Any) -> Any:
        try:
            text = to_json(value)
        except PydanticSerializationError:  # MessagePack's binary data may be no text
            return self._python(value)
        return self._json(text)


def misfit(error: ValidationError) -> str:
    """Up to five of the differences that Pydantic found, for the log: places and reasons, no values."""
    return "; ".join(f"{_path(item['loc'])}: {item['msg']}" for item in _details(error)[:5])


def _details(error: ValidationError) -> list[dict[str, Any]]:
    if error.error_count() > _TOO_MANY:
        return [{"loc": [], "msg": f"{error.error_count()} errors are too many to list", "type": "too_many_errors"}]
    found: list[ErrorDetails] = error.errors(include_url=False, include_context=False, include_input=False)
    listed: list[dict[str, Any]] = []
    left = _MAX_LISTED
    for item in found[:MAX_ERRORS]:
        loc, msg = _loc(item["loc"]), cut(item["msg"], _MAX_TEXT)
        left -= len(msg) + sum(len(str(part)) for part in loc)
        if listed and left < 0:
            break
        listed.append({"loc": loc, "msg": msg, "type": item["type"]})
    return listed


def _loc(parts: Iterable[int | str]) -> list[int | str]:
    """The way to an error; where it is too long, its beginning and an ellipsis."""
    shown: list[int | str] = []
    left = _MAX_LOC
    for part in parts:
        one = cut(part, _MAX_TEXT) if isinstance(part, str) else part
        left -= len(str(one))
        if left < 0:
            return [*shown, "…"]
        shown.append(one)
    return shown


def _summary(error: ValidationError, listed: int) -> str:
    count = error.error_count()
    if count == 1:
        return "The payload does not fit: 1 error"
    more = f", of which the first {listed} are listed" if 1 < listed < count else ""
    return f"The payload does not fit: {count} errors{more}"


def _path(loc: list[int | str]) -> str:
    return ".".join(map(str, loc)) or "the payload"


_Link = tuple[Any, int | str] | None
"""Where in a payload something is: the link to its container, and its key or index in that."""


def _check_tree(value: Any) -> Any:
    """Return `value` if it holds nothing but JSON values that can be sent on. Level by level: no recursion, O(n).

    Makes no object for what it passes: a payload of many small containers would have the garbage collector run.
    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        is_last = True
        for container in level:
            for item in _values(container):
                kind: object = item.__class__
                if kind is dict or kind is list:
                    is_last = False
                    if item:
                        below.append(item)
                elif not _is_leaf(item, kind):
                    return _locate(value)
        if is_last:
            return value
        level = below
    return _locate(value)


_ODD = (object(),)
"""What `_values` says of a container in which something has to be looked at more closely."""


def _values(container: Any) -> Iterable[Any]:
    values: Iterable[Any] = _ODD
    if container.__class__ is list:
        values = container
    elif container.__class__ is dict and set(map(type, container)) <= {str}:
        values = container.values()
    return values


def _is_leaf(item: Any, kind: object) -> bool:
    if kind is str or kind is bool or item is None:
        return True
    return (kind is int and _LEAST <= item <= _MOST) or (kind is float and math.isfinite(item))


def _locate(value: Any) -> Any:
    """Find what is wrong with `value` and where; return it if nothing is."""
    if not value:  # no payload
        return {}
    level: list[tuple[Any, _Link]] = [(value, None)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[Any, _Link]] = []
        for container, link in level:
            for key, item in _entries(container, link):
                if item.__class__ in (dict, list):
                    below.append((item, (link, key)))
                elif not _is_leaf(item, item.__class__):
                    _check_leaf(item, (link, key))
        if not below:
            return value
        level = below
    raise _refusal(level[0][1], f"The payload is nested deeper than {MAX_DEPTH} levels", "too_deep")


def _entries(container: Any, link: _Link) -> Iterable[tuple[Any, Any]]:
    items: list[Any] | None = None if hasattr(container, "items") else container
    if items is not None:
        return enumerate(items)
    if not set(map(type, container)) <= {str}:
        raise _refusal(link, "The keys of an object must be strings", "not_json")
    entries: Iterable[tuple[Any, Any]] = container.items()
    return entries


def _check_leaf(item: Any, link: _Link) -> None:
    if isinstance(item, int):
        if not _LEAST <= item <= _MOST:
            raise _refusal(link, "Integers must be between -2**63 and 2**64-1", "int_out_of_range")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise _refusal(link, "Numbers must be finite", "finite_number")
    else:
        raise _refusal(link, f"A value of type {type(item).__name__!r} is not a JSON value", "not_json")


def _refusal(link: Any, message: str, kind: str) -> ValidationFailed:
    loc: list[int | str] = []
    while link:
        link, part = link
        loc.append(part)
    error = {"loc": _loc(loc[::-1]), "msg": message, "type": kind}
    return ValidationFailed("The payload does not fit: 1 error", details={"errors": [error]})
