"""Reads signatures, with every annotation resolved, when a callable is registered.

An annotation that cannot be resolved is an error, never a reason to go without validation.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from socketspec.declaration.dependencies import Dependency
from socketspec.errors import ConfigurationError

__all__ = (
    "EMPTY",
    "Argument",
    "Kind",
    "Scope",
    "Signature",
    "bare",
    "describe",
    "enclosing_locals",
    "innermost",
    "is_union",
    "kind_of",
    "listed",
    "means",
    "read_parameters",
    "resolve",
)

EMPTY: Any = inspect.Parameter.empty
"""Stands for an annotation or default that was not written."""

_CALLING = ("Depends", "Security")
_MARKERS = (*_CALLING, "Query", "Header", "Cookie", "Path", "Body", "Form", "File")

_MOST_WRAPPERS = 32
"""How many aliases around a type, partials around a function or frames around a decorator are looked through."""


class Kind(Enum):
    """How a callable is run."""

    ASYNC = "an async function"
    SYNC = "a function"
    ASYNC_GENERATOR = "an async generator"
    GENERATOR = "a generator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One parameter, its annotation resolved."""

    name: str
    position: int
    """Its `inspect.Parameter.kind`."""
    annotation: Any = EMPTY
    default: Any = EMPTY
    bound: bool = False
    """Whether a `functools.partial` already provides it."""

    @property
    def is_variadic(self) -> bool:
        """Whether it is ``*args`` or ``**kwargs``."""
        return self.position in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

    @property
    def is_positional(self) -> bool:
        """Whether it can be given by position."""
        return self.position in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a callable takes and returns."""

    owner: str
    """``module.qualname``, for messages."""
    arguments: tuple[Argument, ...]
    returns: Any
    """`EMPTY` where nothing was written or nobody asked."""
    namespace: Mapping[str, Any] = field(repr=False)
    """The names its annotations were resolved with."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The local names around a registration, and the module whose functions may use them."""

    names: Mapping[str, Any] = field(default_factory=dict[str, Any])
    module: str | None = None


def describe(call: object) -> str:
    """Name a callable for messages: ``module.qualname``."""
    call = _without_partials(call)
    if not (inspect.isroutine(call) or inspect.isclass(call)):
        call = type(call)
    return f"{getattr(call, '__module__', None) or 'builtins'}.{getattr(call, '__qualname__', None) or repr(call)}"


def innermost(call: Any) -> Any:
    """Unwraps `call` down to the plain function that has the annotations, or as far as it goes."""
    for _ in range(_MOST_WRAPPERS):
        if isinstance(call, functools.partial):
            call = call.func
        elif inspect.ismethod(call):
            call = call.__func__
        elif inspect.isclass(call):
            call = call.__init__ if inspect.isfunction(call.__init__) else call.__new__
        elif hasattr(call, "__wrapped__"):
            call = call.__wrapped__
        elif inspect.isroutine(call):
            break
        else:
            call = type(call).__call__
    return call


def kind_of(call: Any) -> Kind:
    """Tell how `call` is run. Raises `ConfigurationError` for a generator hidden behind a plain wrapper."""
    target = _without_partials(call)
    if inspect.isclass(target):
        return Kind.SYNC
    kind = _kind(target)
    if kind is Kind.SYNC and not inspect.isroutine(target):
        target = type(target).__call__
        kind = _kind(target)
    if kind is Kind.SYNC and _kind(inspect.unwrap(target)) in (Kind.GENERATOR, Kind.ASYNC_GENERATOR):
        raise ConfigurationError(
            f"{describe(call)} wraps a generator in something that is none, for example @contextmanager. "
            "Use the generator function itself: `yield` dependencies need no decorator."
        )
    return kind


def _kind(call: Any) -> Kind:
    if inspect.isasyncgenfunction(call):
        return Kind.ASYNC_GENERATOR
    if inspect.isgeneratorfunction(call):
        return Kind.GENERATOR
    return Kind.ASYNC if inspect.iscoroutinefunction(call) else Kind.SYNC


def enclosing_locals(func: Any) -> dict[str, Any]:
    """The local names of the functions and class bodies that lexically enclose `func` and are running now.

    For decorators: under ``from __future__ import annotations`` a model local to a function is in no closure. Looks at
    the caller's frame and at most 31 frames further out.
    """
    target = innermost(func)
    qualname: str = getattr(target, "__qualname__", "")
    names: dict[str, Any] = {}
    frame = inspect.currentframe()
    for _ in range(_MOST_WRAPPERS):
        if frame is None:
            break
        if qualname.startswith(f"{frame.f_code.co_qualname}.") and frame.f_globals is target.__globals__:
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names


def listed(owner: str, dependencies: Sequence[Any]) -> tuple[tuple[Dependency, Scope], ...]:
    """What ``dependencies=`` of `owner` was given, each with the local names around it.

    Raises `ConfigurationError` for what is no list of ``Depends(…)``.
    """
    given: Any = dependencies  # untyped code passes anything
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigurationError(f"{owner}(dependencies={given!r}) must be a list such as [Depends(signed_in)].")
    found: list[tuple[Dependency, Scope]] = []
    for item in given:
        dependency = Dependency.read(item)
        call = None if dependency is None else dependency.dependency
        if dependency is None or call is None:
            name = getattr(item, "__name__", "signed_in")
            raise ConfigurationError(f"{owner}(dependencies=[{item!r}]) must be a list such as [Depends({name})].")
        target = innermost(call)
        names = enclosing_locals(call) if hasattr(target, "__globals__") else {}
        found.append((dependency, Scope(names, getattr(target, "__module__", None))))
    return tuple(found)


def read_parameters(call: Any) -> inspect.Signature:
    """`inspect.signature` with annotations as written, or `ConfigurationError`."""
    if not callable(call):
        raise ConfigurationError(f"{call!r} cannot be called.")
    try:
        if sys.version_info >= (3, 14):
            from annotationlib import Format  # exists from 3.14 on

            return inspect.signature(call, annotation_format=Format.FORWARDREF)
        return inspect.signature(call)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{describe(call)} does not tell its parameters ({error}). Wrap it in a function of your own."
        ) from error


def resolve(call: Any, *, scope: Scope | None = None, returns: bool = False) -> Signature:
    """Read the signature of `call` and resolve its annotations; the return annotation only if `returns`.

    Raises `ConfigurationError` that names the callable, the parameter and the name that does not exist at run time.
    """
    owner = describe(call)
    raw = read_parameters(call)
    global_names, local_names = _namespaces(call, scope or Scope())

    def evaluate(annotation: Any, where: str) -> Any:
        if annotation is EMPTY:
            return EMPTY
        return _evaluate(annotation, f"{owner}: the annotation of {where}", global_names, local_names)

    bound = _bound_names(call)
    arguments = tuple(
        Argument(
            name=parameter.name,
            position=parameter.kind,
            annotation=evaluate(parameter.annotation, f"parameter {parameter.name!r}"),
            default=parameter.default,
            bound=parameter.name in bound,
        )
        for parameter in raw.parameters.values()
    )
    result = evaluate(raw.return_annotation, "the return value") if returns else EMPTY
    return Signature(owner=owner, arguments=arguments, returns=result, namespace={**global_names, **local_names})


def _evaluate(annotation: Any, where: str, global_names: dict[str, Any], local_names: dict[str, Any]) -> Any:
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, global_names, local_names, include_extras=True)["it"]
    except NameError as error:
        raise ConfigurationError(
            f"{where} needs {error.name!r}, which does not exist at run time. Import it at run time, not only under "
            "`if TYPE_CHECKING:`; if it is local to a function, register the handler in that function."
        ) from error
    except Exception as error:
        raise ConfigurationError(f"{where} is {annotation!r}, which cannot be resolved: {error}") from error


def _namespaces(call: Any, scope: Scope) -> tuple[dict[str, Any], dict[str, Any]]:
    target = innermost(call)
    global_names: dict[str, Any] = dict(getattr(target, "__globals__", {}))
    if inspect.isclass(call):
        # A dataclass or model has an __init__ that a library made: names are looked up in the class's module as well.
        global_names = {**global_names, **vars(sys.modules.get(call.__module__, types.ModuleType("")))}
    local_names: dict[str, Any] = {}
    if scope.module is not None and getattr(target, "__module__", None) == scope.module:
        # In a function inside a function, local names hide the module's; elsewhere they only add to them.
        nested = "<locals>" in getattr(target, "__qualname__", "")
        local_names.update((k, v) for k, v in scope.names.items() if nested or k not in global_names)
    local_names.update(_closure(target))
    local_names.update((parameter.__name__, parameter) for parameter in getattr(target, "__type_params__", ()))
    return global_names, local_names


def _closure(target: Any) -> dict[str, Any]:
    names: dict[str, Any] = {}
    code = getattr(target, "__code__", None)
    for name, cell in zip(code.co_freevars if code else (), getattr(target, "__closure__", None) or (), strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # a name that is bound later, for example a recursive local function
            continue
    return names


def _without_partials(call: Any) -> Any:
    while isinstance(call, functools.partial):
        call = call.func
    return call


def _bound_names(call: Any) -> set[str]:
    names: set[str] = set()
    while isinstance(call, functools.partial):
        names.update(call.keywords)
        call = call.func
    return names


def bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type inside `Annotated` and ``type`` aliases, and all metadata met on the way, innermost first."""
    metadata: tuple[Any, ...] = ()
    for _ in range(_MOST_WRAPPERS):
        if get_origin(annotation) is Annotated:
            metadata = (*annotation.__metadata__, *metadata)
            annotation = annotation.__origin__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            break
    return annotation, metadata


def is_union(annotation: Any) -> bool:
    """Whether it is ``A | B`` or ``Union[A, B]``, `Optional` included."""
    return get_origin(annotation) in (Union, types.UnionType)


def means(annotation: Any, wanted: type[Any]) -> bool:
    """Whether the annotation admits a `wanted`: as the class, a subclass, in a union, or as a type variable's bound."""
    if annotation is EMPTY:
        return False
    inner, _ = bare(annotation)
    if is_union(inner):
        return any(means(option, wanted) for option in get_args(inner))
    if isinstance(inner, TypeVar):
        return inner.__bound__ is not None and means(inner.__bound__, wanted)
    origin = get_origin(inner) or inner
    return isinstance(origin, type) and issubclass(origin, wanted)
