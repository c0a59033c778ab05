"""Values of the opening handshake, read and validated as FastAPI does for ``Query()``, ``Header()`` and their like.

One parameter is one validator, made when the callable is registered. Sources of the rules: FastAPI's pages "Query
Parameters and String Validations", "Header Parameters" and "Query Parameter Models".
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic import AliasChoices, BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, SchemaError

from socketspec.declaration.foreign import Place, parameter_of
from socketspec.declaration.signatures import EMPTY, Argument, bare, is_union
from socketspec.errors import ConfigurationError, ValidationFailed
from socketspec.protocol.handshake import Handshake, QueryParams
from socketspec.text import cut

__all__ = ("Parameter", "explicit", "implicit", "is_body")

_MISSING: Final = object()
_MOST_ERRORS: Final = 20
_MAX_TEXT: Final = 300
"""Characters of a message that are sent: it may quote what the client brought."""


class Parameter:
    """One value of a handshake. Raises `ConfigurationError` for a type that Pydantic cannot validate."""

    def __init__(self, argument: Argument, place: Place, info: FieldInfo | None, owner: str) -> None:
        inner, _ = bare(argument.annotation)
        annotation = Any if argument.annotation is EMPTY else argument.annotation
        if info is not None and info is argument.default:
            annotation = Annotated[annotation, info]
        self._place = place
        self._is_implicit = info is None
        self._converts = info is not None and getattr(info, "convert_underscores", False) is True
        self._default = _default(argument, info)
        self._model = _model(inner)
        self._is_list = _is_sequence(inner)
        self._aliases = _aliases(argument.name, info, dashes=place == "header" and self._converts)
        self._adapter = _adapter(annotation, f"{owner}: parameter {argument.name!r}")

    @property
    def path_variable(self) -> str | None:
        """The variable that the path has to have for this; None: none has to be there."""
        is_needed = self._place == "path" and not self._is_implicit and self._model is None and self._default is EMPTY
        return self._aliases[0] if is_needed else None

    def read(self, handshake: Handshake) -> Any:
        """The value in this handshake. Raises `ValidationFailed`."""
        place, values = self._values(handshake)
        loc: tuple[str, ...]
        if self._model is not None:
            loc, value = (place,), self._fields(self._model, values)
        else:
            alias = next((alias for alias in self._aliases if alias in values), self._aliases[0])
            loc, value = (place, alias), _take(values, alias, several=self._is_list)
            if value is _MISSING:
                return self._absent(loc)
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            raise _refused(loc, error) from error

    def _values(self, handshake: Handshake) -> tuple[Place, Mapping[str, Any]]:
        if self._is_implicit:  # the path is known only where it is mounted
            variables = handshake.path_params
            return ("path", variables) if self._aliases[0] in variables else ("query", handshake.query_params)
        if self._place == "query":
            return "query", handshake.query_params
        if self._place == "header":
            return "header", handshake.headers
        if self._place == "cookie":
            return "cookie", handshake.cookies
        return "path", handshake.path_params

    def _absent(self, loc: tuple[str, ...]) -> Any:
        if self._default is not EMPTY:
            return self._default() if callable(self._default) else copy.deepcopy(self._default)
        error = {"loc": list(loc), "msg": "Field required", "type": "missing"}
        raise ValidationFailed(f"The {loc[0]} parameter {loc[1]!r} is missing.", details={"errors": [error]})

    def _fields(self, model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
        """What a model is made of: a value for each of its fields, and all that is left, as its `extra` decides."""
        found: dict[str, Any] = {}
        known: set[str] = set()
        for name, info in model.model_fields.items():
            converts = getattr(info, "convert_underscores", self._converts)
            key = _aliases(name, info, dashes=False)[0]
            aliases = _aliases(name, info, dashes=self._place == "header" and converts is True)
            known.update(alias.lower() if self._place == "header" else alias for alias in (*aliases, key))
            alias = next((alias for alias in aliases if alias in values), aliases[0])
            value = _take(values, alias, several=_is_sequence(bare(info.annotation)[0]))
            if value is not _MISSING:
                found[key] = value
        for name in values:
            if name not in known:
                left = values.getlist(name) if isinstance(values, QueryParams) else [values[name]]
                found[name] = left[0] if len(left) == 1 else left
        return found


def explicit(argument: Argument, owner: str) -> Parameter | None:
    """The parameter that ``Query()``, ``Header()``, ``Cookie()`` or ``Path()`` declares; None where there is none."""
    marked = parameter_of(argument)
    return None if marked is None else Parameter(argument, *marked, owner)


def implicit(argument: Argument, owner: str) -> Parameter | None:
    """The path variable or query parameter that a dependency's plain argument stands for; None where it is none."""
    annotation = argument.annotation
    if annotation is EMPTY:
        simple = argument.default is None or argument.default is EMPTY
        if not simple and not isinstance(argument.default, str | int | float):
            return None  # an object of the program's own: nothing that a client may replace
    elif is_body(annotation):
        return None
    try:
        return Parameter(argument, "query", None, owner)
    except ConfigurationError:
        return None


def is_body(annotation: Any) -> bool:
    """Whether FastAPI would read it from the request's body: models, mappings, lists."""
    inner, _ = bare(annotation)
    if is_union(inner):
        return any(is_body(option) for option in get_args(inner))
    cls = get_origin(inner) or inner
    if not isinstance(cls, type) or cls is types.NoneType:
        return False
    return issubclass(cls, BaseModel | Mapping) or is_dataclass(cls) or _is_sequence(cls)


def _adapter(annotation: Any, what: str) -> TypeAdapter[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an alias means nothing to a lone value: it has been read here
            return TypeAdapter(annotation)
    except (PydanticSchemaGenerationError, PydanticUserError, SchemaError, TypeError) as error:
        raise ConfigurationError(f"{what} cannot be validated, Pydantic says: {error}") from error


def _default(argument: Argument, info: FieldInfo | None) -> Any:
    if info is not None and info is argument.default:
        if info.default_factory is not None:
            return info.default_factory
        return EMPTY if info.default is PydanticUndefined or info.default is Ellipsis else info.default
    if argument.default is EMPTY and info is not None and info.default_factory is not None:
        return info.default_factory
    return EMPTY if argument.default is Ellipsis else argument.default


def _aliases(name: str, info: FieldInfo | None, *, dashes: bool) -> tuple[str, ...]:
    alias: Any = None if info is None else info.validation_alias or info.alias
    if isinstance(alias, AliasChoices):
        return tuple(choice for choice in alias.choices if isinstance(choice, str)) or (name,)
    if isinstance(alias, str) and alias != name:
        return (alias,)
    return (name.replace("_", "-") if dashes else name,)


def _model(inner: Any) -> type[BaseModel] | None:
    return inner if isinstance(inner, type) and get_origin(inner) is None and issubclass(inner, BaseModel) else None


def _is_sequence(annotation: Any) -> bool:
    inner, _ = bare(annotation)
    if is_union(inner):
        return any(_is_sequence(option) for option in get_args(inner))
    cls = get_origin(inner) or inner
    if not isinstance(cls, type) or issubclass(cls, str | bytes | bytearray | Mapping | BaseModel):
        return False
    return issubclass(cls, Collection) and cls.__module__ in ("builtins", "collections", "collections.abc", "typing")


def _take(values: Mapping[str, Any], name: str, *, several: bool) -> Any:
    if name not in values:
        return _MISSING
    return values.getlist(name) if several and isinstance(values, QueryParams) else values[name]


def _refused(loc: Iterable[str], error: ValidationError) -> ValidationFailed:
    errors = [
        {"loc": [*loc, *item["loc"]], "msg": cut(item["msg"], _MAX_TEXT), "type": item["type"]}
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:_MOST_ERRORS]
    ]
    shown = cut(".".join(map(str, errors[0]["loc"])), _MAX_TEXT)
    return ValidationFailed(f"The handshake's {shown} does not fit: {errors[0]['msg']}", details={"errors": errors})
