"""The type that something is sent as, compiled: whatever is given, what it declares goes out, and nothing else."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, SchemaSerializer, SchemaValidator, from_json, to_json

from socketspec.declaration.models import (
    ACCEPTED,
    compile_model,
    is_object,
    is_plain,
    json_schema,
    name_of,
    settings_in,
)
from socketspec.declaration.payloads import misfit
from socketspec.declaration.signatures import bare, is_union
from socketspec.errors import ConfigurationError, ContractError
from socketspec.protocol.encoding import check_encoded, encode_payload

__all__ = ("OutboundType",)

_CANNOT: Final = (PydanticSerializationError, UnicodeError, RecursionError, ValueError)
"""What the serializer raises for values that it cannot write."""

# The serializer warns of a value that is not of its field's type, and names the line of `encode` that calls it as the
# place. There, and nowhere else in the process, that is an error. (Its option ``warnings="error"`` says the same, and
# costs four times what the serializing of a small model does.)
warnings.filterwarnings(
    "error", message="Pydantic serializer warnings", category=UserWarning, module=f"{re.escape(__name__)}$"
)


class OutboundType:
    """A declared type of what is sent: encodes a value as that type, as FastAPI does with a response model.

    A value is validated unless it is an instance of the declared class already; fields that the declared type does not
    have stay here, also those of its subclasses. `what` begins errors ("The reply of shop.order"). With `optional`,
    None may be declared, and is sent as an empty object. `namespace` resolves names that the models left open.

    Raises `ConfigurationError` for a type that is no object on the wire or that Pydantic cannot handle.
    """

    __slots__ = ("_adapter", "_classes", "_serializer", "_to_json", "_validator", "_what", "annotation", "is_plain",
                 "name", "optional")  # fmt: skip

    def __init__(
        self, annotation: Any, *, what: str, optional: bool = False, namespace: Mapping[str, Any] | None = None
    ) -> None:
        self.annotation: Any = annotation
        self.name: str = name_of(annotation)
        """For people: the model's name."""
        self.optional: bool = optional and _admits_none(annotation)
        """Whether None may be sent."""
        self._what = what
        if not is_object(annotation) and not (self.optional and _is_object_or_none(annotation)):
            raise ConfigurationError(
                f"{what}: {self.name!r} cannot be a payload: a payload is always an object. "
                f"Use {ACCEPTED}{' or None' if optional else ''}, and put a single value or a list in a field of it."
            )
        self.is_plain: bool = is_plain(annotation)
        """Whether it is a dict of anything, without a model."""
        self._adapter = compile_model(dict[str, Any] if self.is_plain else annotation, self.name, namespace or {})
        self._validator: SchemaValidator = self._adapter.validator  # type: ignore[assignment] # it is complete
        self._serializer: SchemaSerializer = self._adapter.serializer
        settings = list(settings_in(self._adapter.core_schema))
        self._classes = _trusted(annotation, settings)
        self._to_json: Callable[..., bytes] = (
            self._finite_json if ("ser_json_inf_nan", "constants") in settings else self._serializer.to_json
        )

    def __repr__(self) -> str:
        return f"OutboundType({self.name})"

    @property
    def is_nothing(self) -> bool:
        """Whether nothing but None may be sent."""
        return bare(self.annotation)[0] in (None, NoneType)

    def encode(self, value: object) -> bytes:
        """`value` as JSON text of the declared type, by alias.

        Raises `ContractError` for a value that does not fit, and `TypeError` for one that cannot be written as JSON.
        """
        if not isinstance(value, self._classes):
            if value is None and self.optional:
                return b"{}"
            if self.is_plain and value is not None:
                return encode_payload(value)
            value = self.fit(value)
        try:
            encoded = self._to_json(value, by_alias=True)
        except (*_CANNOT, UserWarning):
            encoded = self._encode_again(value)
        return check_encoded(encoded, value)

    def fit(self, value: object) -> Any:
        """`value` as the declared type; an instance of it, or of a subclass, is returned as it is.

        Raises `ContractError`.
        """
        if isinstance(value, self._classes) or (value is None and self.optional):
            return value
        given = dict(value) if isinstance(value, Mapping) else value
        try:
            return self._validator.validate_python(given, from_attributes=True, by_alias=True, by_name=True)
        except ValidationError as error:
            try:
                # What it becomes on the wire may fit: JSON's strings for dates, an object of another class.
                return self._validator.validate_json(to_json(value), by_alias=True, by_name=True)
            except (ValidationError, *_CANNOT):
                raise self._misfit(value, misfit(error)) from None  # the cause would show, in logs, what was to be sent
        except RecursionError as error:
            raise self._misfit(value, f"it cannot be sent at all ({error})") from error

    def distance(self, value: object) -> int:
        """How far it is from the value's class to the declared one: 0 for the same; many for unrelated ones."""
        lineage = type(value).__mro__
        return next((lineage.index(cls) for cls in self._classes if cls in lineage), len(lineage))

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of what is sent. Raises `ConfigurationError` if a field has none."""
        return json_schema(self._adapter, self.name, "serialization")

    def _encode_again(self, value: Any) -> bytes:
        """Encode what has values that its own class would not take: changed, or never validated, since it was made."""
        try:
            dumped = self._serializer.to_python(value, by_alias=False, round_trip=True, warnings=False)
            fresh = self._validator.validate_python(dumped, by_alias=True, by_name=True)
            return self._to_json(fresh, by_alias=True, warnings=False)
        except ValidationError as error:
            raise self._misfit(value, misfit(error)) from None  # as above
        except _CANNOT as error:
            raise TypeError(f"Cannot send this payload: {error}") from error

    def _finite_json(self, value: Any, **options: Any) -> bytes:
        """For models whose configuration asks for NaN and Infinity, which are not JSON: they become null, as ever."""
        return to_json(from_json(self._serializer.to_json(value, **options)), inf_nan_mode="null")

    def _misfit(self, value: object, differences: str) -> ContractError:
        return ContractError(f"{self._what}: {type(value).__name__!r} does not fit {self.name!r}: {differences}")


def _trusted(annotation: Any, settings: list[tuple[str, Any]]) -> tuple[type[Any], ...]:
    """The classes whose instances need no validation: they were validated when they were made."""
    is_model = inspect.isclass(annotation) and get_origin(annotation) is None
    if not is_model or not (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return ()
    revalidates = any(name == "revalidate_instances" and value != "never" for name, value in settings)
    return () if revalidates else (annotation,)


def _admits_none(annotation: Any) -> bool:
    inner, _ = bare(annotation)
    return inner in (None, NoneType) or (is_union(inner) and any(map(_admits_none, get_args(inner))))


def _is_object_or_none(annotation: Any) -> bool:
    inner, _ = bare(annotation)
    if is_union(inner):
        return all(map(_is_object_or_none, get_args(inner)))
    return inner in (None, NoneType) or is_object(annotation)
