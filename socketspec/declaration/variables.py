"""The variables of a room's pattern, converted to what a guard or hook annotates them with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import SchemaError

from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.signatures import EMPTY, bare
from socketspec.errors import ConfigurationError

__all__ = ("RoomVariables",)


class RoomVariables:
    """Reads a room's name by `pattern`. `annotations`: the variables' types, by name; text where there is none.

    Raises `ConfigurationError` for a type that text cannot be converted to.
    """

    def __init__(self, pattern: RoomPattern, annotations: Mapping[str, Any]) -> None:
        self.pattern: RoomPattern = pattern
        self._adapters: list[TypeAdapter[Any] | None] = [
            _adapter(annotations.get(name, EMPTY), name, pattern) for name in pattern.variables
        ]

    def values(self, room: str) -> list[Any] | None:
        """The variables' values, in the pattern's order; None where the name does not fit the pattern or the types."""
        texts = self.pattern.match(room)
        return None if texts is None else self.converted(texts)

    def converted(self, texts: Mapping[str, str]) -> list[Any] | None:
        """As `values`, of what the pattern found."""
        found: list[Any] = []
        for text, adapter in zip(texts.values(), self._adapters, strict=True):
            value: Any = text
            if adapter is not None:
                try:
                    value = adapter.validate_strings(text)
                except ValidationError:
                    return None
                # "orders:007" is another room than "orders:7", so it must not pass for it.
                if isinstance(value, int | UUID) and not isinstance(value, bool) and str(value) != text:
                    return None
            found.append(value)
        return found


def _adapter(annotation: Any, name: str, pattern: RoomPattern) -> TypeAdapter[Any] | None:
    if bare(annotation)[0] in (EMPTY, Any, object) or annotation is str:
        return None
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError, SchemaError, TypeError) as error:
        raise ConfigurationError(
            f"the variable {name!r} of {pattern.source!r} cannot become {annotation!r}, Pydantic says: {error}"
        ) from error
    if not _reads_text(adapter.core_schema):
        shown = getattr(annotation, "__name__", None) or str(annotation)
        raise ConfigurationError(
            f"the variable {name!r} of {pattern.source!r} is text, which never becomes {shown}. "
            "Annotate it as str, int, UUID or an Enum"
        )
    return adapter


_MADE_OF_MORE: Final = frozenset(
    {"dict", "list", "set", "frozenset", "tuple", "dataclass", "typed-dict", "model-fields", "none", "arguments"}
)
"""The kinds of Pydantic's schemas that no text validates against."""


def _reads_text(schema: Any) -> bool:
    """Whether text may be valid; True where that cannot be told, as before a validator of the user's own."""
    match schema["type"]:
        case "definitions" | "default" | "nullable":
            return _reads_text(schema["schema"])
        case "union":
            choices = [choice[0] if isinstance(choice, tuple) else choice for choice in schema["choices"]]
            return any(map(_reads_text, choices))
        case "model":
            return bool(schema.get("root_model")) or _reads_text(schema["schema"])
        case kind:
            return kind not in _MADE_OF_MORE
