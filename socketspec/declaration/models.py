"""Types that payloads are made of: which can be one, what they are called, and what Pydantic compiles them to."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import is_dataclass
from typing import Any, Final, Literal, NewType, get_args, get_origin

from pydantic import BaseModel, PydanticUserError, RootModel, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind
from pydantic_core import SchemaError

from socketspec.declaration.signatures import bare, is_union
from socketspec.errors import ConfigurationError

__all__ = ("ACCEPTED", "compile_model", "is_object", "is_plain", "json_schema", "name_of", "settings_in")

ACCEPTED: Final = "a Pydantic model, a dataclass, a TypedDict or a dict"
_PLAIN = (dict, Mapping, MutableMapping)

_NOT_SCHEMAS: Final = frozenset({"metadata", "default", "expected", "members", "serialization", "strict_schema"})
"""What is passed over in a core schema: it may hold anything, or is for strict mode, which is told elsewhere."""


def compile_model(annotation: Any, name: str, namespace: Mapping[str, Any]) -> TypeAdapter[Any]:
    """What Pydantic makes of a type, complete.

    `namespace` resolves names that the type's own models left open (models local to a function). Raises
    `ConfigurationError` for one that Pydantic cannot handle.
    """
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


def name_of(annotation: Any) -> str:
    """A type's name, for people."""
    inner, _ = bare(annotation)
    if inner is Any:
        return "Any"
    if is_union(inner):
        return " | ".join(name_of(option) for option in get_args(inner))
    if inner is type(None):
        return "None"
    if isinstance(inner, type) and get_origin(inner) is None:
        return inner.__name__
    return repr(inner).replace("typing.", "")


def is_plain(annotation: Any) -> bool:
    """Whether it is a dict of anything, without a model."""
    inner, metadata = bare(annotation)
    if metadata:
        return False
    if inner in (Any, object):
        return True
    origin, arguments = get_origin(inner) or inner, get_args(inner)
    return origin in _PLAIN and (not arguments or (arguments[0] is str and arguments[1] in (Any, object)))


def is_object(annotation: Any) -> bool:
    """Whether every value of this type is an object on the wire."""
    inner, _ = bare(annotation)
    if inner in (Any, object):
        return True
    if is_union(inner):
        return all(is_object(option) for option in get_args(inner))
    if isinstance(inner, NewType):
        return is_object(inner.__supertype__)
    cls: Any = get_origin(inner) or inner
    if not inspect.isclass(cls):
        return False
    if issubclass(cls, RootModel):
        return is_object(cls.model_fields["root"].annotation)
    return issubclass(cls, (BaseModel, Mapping)) or is_dataclass(cls)


def json_schema(adapter: TypeAdapter[Any], name: str, mode: Literal["validation", "serialization"]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what is received ("validation") or sent ("serialization").

    Raises `ConfigurationError` for a type that has none: a model's own methods take part, so whatever they raise.
    """
    try:
        return adapter.json_schema(mode=mode, schema_generator=_Generator)
    except Exception as error:
        raise ConfigurationError(f"{name!r} has no JSON Schema: {error}") from error


class _Generator(GenerateJsonSchema):
    """Leaves a default out that JSON does not have, without a warning."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """None: what is left out is not the user's mistake."""


def settings_in(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every setting in a core schema and the schemas inside it, such as ``("strict", True)``."""
    waiting: list[Any] = [schema]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            for key, value in item.items():
                if key in ("fields", "choices", "arguments_schema") and isinstance(value, dict):
                    waiting.extend(value.values())  # by names that the user chose
                elif isinstance(value, dict | list | tuple):
                    if key not in _NOT_SCHEMAS:
                        waiting.append(value)
                else:
                    yield key, value
        elif isinstance(item, list | tuple):
            waiting.extend(item)
