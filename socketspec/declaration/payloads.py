"""An event's model, compiled: one annotation becomes one validator when the handler is registered."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import is_dataclass
from typing import Any, Literal, NewType, get_args, get_origin

from pydantic import BaseModel, PydanticUserError, RootModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic_core import ErrorDetails, PydanticSerializationError, SchemaError, to_jsonable_python

from socketspec.declaration.signatures import bare, is_union
from socketspec.errors import ConfigurationError, ContractError, ValidationFailed

__all__ = ("MAX_DEPTH", "MAX_ERRORS", "PayloadType")

MAX_ERRORS = 20
"""How many errors `ValidationFailed.details` lists."""

MAX_DEPTH = 64
"""How deep a payload without a model may be nested; the payload itself is level 1."""

_TOO_MANY = 1000
"""Beyond this many errors none is listed: Pydantic can only list all, which would block the event loop for long."""

_MAX_TEXT = 300
"""Messages and names of fields are cut to this many characters: both can quote what the client sent."""

_LEAST, _MOST = -(2**63), 2**64 - 1
"""The integers MessagePack can carry."""

_PLAIN = (dict, Mapping, MutableMapping)
_ACCEPTED = "a Pydantic model, a dataclass, a TypedDict or a dict"


class PayloadType:
    """A payload's type, compiled: validates, describes itself as JSON Schema, and checks outgoing values.

    `namespace` resolves names that the annotation's own models left open (models local to a function).
    Raises `ConfigurationError` for a type that is not an object or that Pydantic cannot handle.
    """

    __slots__ = ("_adapter", "annotation", "is_plain", "name", "validate_python")

    annotation: Any
    name: str
    """For people: the model's name."""
    is_plain: bool
    """Whether it is a dict of anything, without a model."""
    validate_python: Callable[[Any], Any]
    """The compiled validator itself. Raises Pydantic's `ValidationError`; `validate` translates that."""

    def __init__(self, annotation: Any, *, namespace: Mapping[str, Any] | None = None) -> None:
        self.annotation = annotation
        self.name = _name(annotation)
        if not _is_object(annotation):
            raise ConfigurationError(
                f"{self.name!r} cannot be a payload: a payload is always an object. "
                f"Use {_ACCEPTED}, and put a single value, a list or an optional value in a field of it."
            )
        self.is_plain = _is_plain(annotation)
        self._adapter = _adapt(dict[str, Any] if self.is_plain else annotation, self.name, namespace or {})
        self.validate_python = _check_tree if self.is_plain else self._adapter.validator.validate_python

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
            raise ValidationFailed(_summary(error), details={"errors": _details(error)}) from error
        except RecursionError:
            # Not chained: a thousand frames say nothing.
            raise _refusal((), "The payload is nested too deeply", "recursion_loop") from None

    def json_schema(self, mode: Literal["validation", "serialization"] = "validation") -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of what is received ("validation") or sent ("serialization").

        Raises `ConfigurationError` if a field has no JSON Schema.
        """
        try:
            return self._adapter.json_schema(mode=mode)
        except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
            raise ConfigurationError(f"{self.name!r} has no JSON Schema: {error}") from error

    def check(self, value: object) -> None:
        """Raise `ContractError` unless `value`, as it will be sent, fits this type."""
        try:
            self._fit(value)
        except ValidationError as error:
            differences = "; ".join(f"{_path(item['loc'])}: {item['msg']}" for item in _details(error)[:5])
            raise ContractError(self._differs(value, differences)) from error
        except (RecursionError, PydanticSerializationError) as error:
            raise ContractError(self._differs(value, f"it cannot be sent at all ({error})")) from error

    def _fit(self, value: Any) -> None:
        validate = self._adapter.validator.validate_python
        if issubclass(type(value), Mapping):
            validate(dict(value))
            return
        try:
            validate(value)
        except ValidationError:
            if not isinstance(value, BaseModel) and not is_dataclass(value):
                raise
            # An object of another class counts as what it becomes on the wire.
            validate(to_jsonable_python(value, by_alias=True))

    def _differs(self, value: object, differences: str) -> str:
        return f"a payload of type {type(value).__name__!r} does not fit {self.name!r}: {differences}"


def _adapt(annotation: Any, name: str, namespace: Mapping[str, Any]) -> TypeAdapter[Any]:
    try:
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            # The model, too, not only its adapter: handlers make instances.
            annotation.model_rebuild(raise_errors=False, _types_namespace=namespace)
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        if not adapter.pydantic_complete:
            adapter.rebuild(raise_errors=True, _types_namespace=namespace)
    except PydanticUndefinedAnnotation as error:
        raise ConfigurationError(
            f"{name!r} has a field whose annotation needs {error.name!r}, which does not exist at run time. "
            "Import it at run time, not only under `if TYPE_CHECKING:`, or define it before the handler."
        ) from error
    except (PydanticSchemaGenerationError, PydanticUserError, SchemaError, TypeError) as error:
        raise ConfigurationError(f"{name!r} cannot be a payload, Pydantic says: {error}") from error
    if not adapter.pydantic_complete:
        raise ConfigurationError(f"{name!r} is not fully defined: define everything its fields name before the handler")
    return adapter


def _name(annotation: Any) -> str:
    inner, _ = bare(annotation)
    if inner is Any:
        return "Any"
    if is_union(inner):
        return " | ".join(_name(option) for option in get_args(inner))
    if isinstance(inner, type) and get_origin(inner) is None:
        return inner.__name__
    return repr(inner).replace("typing.", "")


def _is_plain(annotation: Any) -> bool:
    inner, metadata = bare(annotation)
    if metadata:
        return False
    if inner in (Any, object):
        return True
    origin, arguments = get_origin(inner) or inner, get_args(inner)
    return origin in _PLAIN and (not arguments or (arguments[0] is str and arguments[1] in (Any, object)))


def _is_object(annotation: Any) -> bool:
    """Whether every value of this type is an object on the wire."""
    inner, _ = bare(annotation)
    if inner in (Any, object):
        return True
    if is_union(inner):
        return all(_is_object(option) for option in get_args(inner))
    if isinstance(inner, NewType):
        return _is_object(inner.__supertype__)
    cls: Any = get_origin(inner) or inner
    if not inspect.isclass(cls):
        return False
    if issubclass(cls, RootModel):
        return _is_object(cls.model_fields["root"].annotation)
    return issubclass(cls, (BaseModel, Mapping)) or is_dataclass(cls)


def _details(error: ValidationError) -> list[dict[str, Any]]:
    if error.error_count() > _TOO_MANY:
        return [{"loc": [], "msg": f"{error.error_count()} errors are too many to list", "type": "too_many_errors"}]
    listed: list[ErrorDetails] = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"loc": [_cut(part) for part in item["loc"]], "msg": item["msg"][:_MAX_TEXT], "type": item["type"]}
        for item in listed[:MAX_ERRORS]
    ]


def _cut(part: int | str) -> int | str:
    return part[:_MAX_TEXT] if isinstance(part, str) else part


def _summary(error: ValidationError) -> str:
    count = error.error_count()
    if count == 1:
        return "The payload does not fit: 1 error"
    more = f", of which the first {MAX_ERRORS} are listed" if count > MAX_ERRORS else ""
    return f"The payload does not fit: {count} errors{more}"


def _path(loc: list[int | str]) -> str:
    return ".".join(map(str, loc)) or "the payload"


_Link = tuple[Any, int | str] | None
"""Where in a payload something is: the link to its container, and its key or index in that."""


def _check_tree(value: Any) -> Any:
    """Return `value` if it holds nothing but JSON values that can be sent on. Level by level: no recursion, O(n)."""
    level: list[tuple[Any, _Link]] = [(value, None)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[Any, _Link]] = []
        for container, link in level:
            for key, item in _entries(container, link):
                kind: object = item.__class__
                if kind is str or kind is bool or item is None or (kind is int and _LEAST <= item <= _MOST):
                    pass
                elif kind is dict or kind is list:
                    below.append((item, (link, key)))
                else:
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
        loc.append(_cut(part))
    return ValidationFailed(
        "The payload does not fit: 1 error", details={"errors": [{"loc": loc[::-1], "msg": message, "type": kind}]}
    )
