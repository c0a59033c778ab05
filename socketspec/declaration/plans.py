"""Compiles handlers and hooks into plans: what to call, in which order, with what.

So nothing is inspected when an event arrives.

An `async` function that asks for nothing beside its arguments has no steps: what is called is the function itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from types import MappingProxyType
from typing import Any

from socketspec.declaration.compiler import ROOT, Bound, Compiler, Stage, Step, bind
from socketspec.declaration.dependencies import Dependency
from socketspec.declaration.foreign import refuse_fastapi, view_of
from socketspec.declaration.markers import dependency_of
from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.parameters import is_body
from socketspec.declaration.payload_parameter import HANDLER, misplaced, payload_of
from socketspec.declaration.payloads import PayloadType
from socketspec.declaration.replies import reply_type, settled
from socketspec.declaration.running import in_thread, runner, with_untimed_clean_up
from socketspec.declaration.shapes import Shape, check_answer
from socketspec.declaration.signatures import (
    EMPTY,
    Argument,
    Kind,
    Scope,
    Signature,
    bare,
    describe,
    innermost,
    kind_of,
    means,
    resolve,
)
from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import Handshake

__all__ = (
    "HandlerPlan",
    "HookPlan",
    "Replaced",
    "Scoped",
    "compile_handler",
    "compile_handshake",
    "compile_hook",
)

Replaced = Mapping[Callable[..., Any], Callable[..., Any]]
Scoped = tuple[Dependency, Scope]
"""A dependency, with the local names around its declaration."""
_Call = Callable[[Any, Any], Coroutine[Any, Any, Any]]

_PAYLOAD = 1
_NO_OVERRIDES: Replaced = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HandlerPlan:
    """A handler, ready to be called."""

    name: str
    """``module.qualname`` of the handler."""
    payload: PayloadType | None
    """What to validate the payload with; None: the handler takes none."""
    returns: Any
    """The resolved return annotation: `NoneType` for ``-> None``, `Any` where none is written."""
    reply: OutboundType | None
    """What a reply is held to; None: anything."""
    call: _Call
    """``await plan.call(conn, payload)``: run dependencies, handler and clean-up. `payload` is validated already."""
    is_provided: bool = False
    """Whether it asks for anything beside the connection and the payload."""
    wants_scope: bool = False
    """Whether a dependency looks at the handshake as FastAPI's `WebSocket` or `HTTPConnection`."""
    path_variables: Mapping[str, str]
    """The variables that a path has to have, each with who asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HookPlan:
    """A hook, guard, middleware or auth backend, ready to be called."""

    call: Callable[..., Awaitable[Any]]
    """Takes the `names` of its `Shape`, by position; in other stages than an event's, the `Arrival` before them."""
    annotations: Mapping[str, Any]
    """How it annotates what it is passed."""
    is_provided: bool
    """Whether it asks for anything beside that."""
    wants_scope: bool
    path_variables: Mapping[str, str]
    """As in a `HandlerPlan`."""


def compile_handler(
    func: Callable[..., Any],
    *,
    connection_type: type[Any],
    caller_locals: Mapping[str, Any] | None = None,
    overrides: Replaced = _NO_OVERRIDES,
    dependencies: Sequence[Scoped] = (),
    response_model: Any = EMPTY,
) -> HandlerPlan:
    """Compile `func`, whose first parameter takes a `connection_type`.

    `caller_locals` are the names around the registration (`enclosing_locals` finds them). `overrides` replaces
    dependencies, key by value, wherever they occur; the replacement's own parameters count. `dependencies` run before
    those of `func`. `response_model` takes the place of the return annotation.
    Raises `ConfigurationError` for whatever could not work later.
    """
    _refuse_unfit(func)
    scope = Scope(caller_locals or {}, getattr(innermost(func), "__module__", None))
    signature = resolve(func, scope=scope, returns=True)
    compiler = Compiler(connection_type, scope, overrides, inputs=2)
    for dependency, compiler.scope in dependencies:
        compiler.dependency(dependency, signature.owner)
    compiler.scope = scope
    payload, sources = _handler(compiler, signature)
    steps = tuple(compiler.steps)
    is_async = kind_of(func) is Kind.ASYNC
    reply = reply_type(signature, response_model)
    return HandlerPlan(
        name=signature.owner,
        payload=payload,
        returns=Any if signature.returns is EMPTY else signature.returns,
        reply=reply,
        call=_handler_call(func, signature, sources, steps, reply, is_async=is_async),
        is_provided=bool(steps),
        wants_scope=compiler.wants_scope,
        path_variables=compiler.path_variables,
    )


def compile_hook(
    func: Callable[..., Any],
    shape: Shape,
    *,
    connection_type: type[Any],
    caller_locals: Mapping[str, Any] | None = None,
    overrides: Replaced = _NO_OVERRIDES,
) -> HookPlan:
    """Compile what is called as `shape` says. One that is not `async` runs in a worker thread, as handlers do.

    Raises `ConfigurationError` that shows the expected signature.
    """
    try:
        scope = Scope(caller_locals or {}, getattr(innermost(func), "__module__", None))
        signature, kind = resolve(func, scope=scope, returns=shape.decides), kind_of(func)
        if shape.decides:
            check_answer(signature.returns)
        compiler = Compiler(
            connection_type,
            scope,
            overrides,
            stage=shape.stage,
            inputs=len(shape.names) + (shape.stage is not Stage.EVENT),
        )
        bound, annotations, given = _inputs(func, signature, shape, compiler)
    except ConfigurationError as error:
        text = str(error).rstrip(".")
        raise ConfigurationError(f"{describe(func)} cannot be {shape.what}: {text}. {shape.shown(func)}") from error
    found = "a class" if isinstance(func, type) else kind.value
    if found in ("a class", Kind.GENERATOR.value, Kind.ASYNC_GENERATOR.value):
        raise ConfigurationError(f"{describe(func)} is {found} and cannot be {shape.what}. {shape.shown(func)}")
    steps = tuple(compiler.steps)
    is_plain = kind is Kind.ASYNC and not steps and given == shape.positional == shape.names
    runs = runner(steps, bound if kind is Kind.ASYNC else partial(in_thread, bound))

    @wraps(func)
    def call(*inputs: Any) -> Awaitable[Any]:
        return runs(list(inputs))

    return HookPlan(
        call=func if is_plain and shape.stage is Stage.EVENT else call,
        annotations=annotations,
        is_provided=bool(steps),
        wants_scope=compiler.wants_scope,
        path_variables=compiler.path_variables,
    )


def compile_handshake(
    dependencies: Sequence[Scoped], owner: str, *, connection_type: type[Any], overrides: Replaced
) -> HookPlan:
    """Compile what runs at the handshake: ``await plan.call(arrival)``. What it opens, the connection holds."""
    compiler = Compiler(connection_type, Scope(), overrides, stage=Stage.HANDSHAKE)
    for dependency, compiler.scope in dependencies:
        compiler.dependency(dependency, owner)
    steps = tuple(compiler.steps)

    async def call(arrival: Any) -> None:
        values = [arrival]
        for evaluate, _ in steps:
            values.append(await evaluate(values))

    return HookPlan(
        call=call,
        annotations={},
        is_provided=bool(steps),
        wants_scope=compiler.wants_scope,
        path_variables=compiler.path_variables,
    )


def _inputs(
    func: Any, signature: Signature, shape: Shape, compiler: Compiler
) -> tuple[Bound, dict[str, Any], tuple[str, ...]]:
    """Match parameters with what is passed and with what is provided; which names are passed by position."""
    first = 0 if shape.stage is Stage.EVENT else 1
    index = {name: first + position for position, name in enumerate(shape.names)}
    waiting, unnamed = list(shape.positional), dict.fromkeys(shape.keywords)
    annotations: dict[str, Any] = {}
    sources: list[int | None] = []
    given: list[str] = []
    takes_named = False
    for argument in signature.arguments:
        if argument.position is inspect.Parameter.VAR_POSITIONAL:
            rest, waiting = waiting, []
            given += rest
            sources.append(None)
        elif argument.is_variadic:
            takes_named = True
            sources.append(None)
        elif waiting and argument.is_positional and not argument.bound:
            name = waiting.pop(0)
            _check_passed(argument, name, signature.owner, compiler)
            shape.check(name, argument.name, argument.annotation, compiler.connection_type)
            given.append(name)
            annotations[name] = argument.annotation
            sources.append(index[name])
        elif argument.name in unnamed and not compiler.is_provided(argument, signature.owner):
            if argument.position is inspect.Parameter.POSITIONAL_ONLY:
                raise ConfigurationError(f"{argument.name!r} is passed by name, so it cannot stand before the `/`")
            del unnamed[argument.name]
            annotations[argument.name] = argument.annotation
            sources.append(index[argument.name])
        else:
            sources.append(compiler.source(argument, signature.owner))
    left = [name for name in (*waiting, *unnamed) if name not in shape.optional]
    if waiting or (left and not takes_named):
        raise ConfigurationError(f"it does not take {', '.join(map(repr, left))}")
    rest_of = [index[name] for name in given if name not in annotations]
    named_rest = [(name, index[name]) for name in unnamed]
    return bind(func, signature, sources, rest=rest_of, named_rest=named_rest), annotations, tuple(given)


def _check_passed(argument: Argument, name: str, owner: str, compiler: Compiler) -> None:
    is_meant = name == "handshake" and means(argument.annotation, Handshake)
    if not is_meant and compiler.is_provided(argument, owner):
        raise ConfigurationError(
            f"parameter {argument.name!r} gets {name!r} by its position, but asks for something else; put it behind"
        )


def _refuse_unfit(func: Any) -> None:
    if not callable(func):
        raise ConfigurationError(f"{func!r} is not a function. {HANDLER}")
    if inspect.isclass(func):
        raise ConfigurationError(f"{describe(func)} is a class. Register a bound method of an instance. {HANDLER}")
    kind = kind_of(func)
    if kind in (Kind.GENERATOR, Kind.ASYNC_GENERATOR):
        raise ConfigurationError(
            f"{describe(func)} is {kind.value}: a handler has one reply and returns it; send more with conn.emit(). "
            f"{HANDLER}"
        )


def _handler(compiler: Compiler, signature: Signature) -> tuple[PayloadType | None, list[int | None]]:
    """Compile a handler's parameters: the connection first, then at most one payload, then whatever is provided."""
    owner = signature.owner
    if not signature.arguments:
        raise ConfigurationError(f"{owner} takes no parameters, but gets the connection. {HANDLER}")
    _first(compiler, signature.arguments[0], owner)
    payload: PayloadType | None = None
    name: str | None = None
    sources: list[int | None] = [ROOT]
    for argument in signature.arguments[1:]:
        if argument.is_variadic:
            stars = "*" if argument.position is inspect.Parameter.VAR_POSITIONAL else "**"
            raise ConfigurationError(f"{owner}: {stars}{argument.name} would stay empty; take it away. {HANDLER}")
        if payload is None and _is_payload(compiler, argument, owner):
            payload, name = payload_of(argument, signature), argument.name
            sources.append(_PAYLOAD)
        elif not (compiler.is_provided(argument, owner)) and is_body(argument.annotation):
            raise ConfigurationError(misplaced(argument, owner, name))
        else:
            sources.append(compiler.source(argument, owner))
    return payload, sources


def _first(compiler: Compiler, argument: Argument, owner: str) -> None:
    name = argument.name
    if argument.is_variadic:
        raise ConfigurationError(
            f"{owner} begins with *{name}, which does not tell what it takes. "
            f"If a decorator of yours wraps it, use functools.wraps there. {HANDLER}"
        )
    if not argument.is_positional:
        raise ConfigurationError(f"{owner}: the connection is given by position, but {name!r} cannot be. {HANDLER}")
    if name in ("self", "cls") and argument.annotation is EMPTY:
        raise ConfigurationError(
            f"{owner} is a method without its object: register the bound method of an instance. {HANDLER}"
        )
    inner, _ = bare(argument.annotation)
    if view_of(argument) is not None:
        raise ConfigurationError(
            f"{owner}: the first parameter gets the connection. FastAPI's {inner.__name__} is not available on a "
            "WebSocket event; write `conn: Connection` first. "
            f"Behind it, {name}: {inner.__name__} is a view of the handshake."
        )
    refuse_fastapi(argument, owner)
    # The connection's own base classes take it, too: `object`, for one.
    wanted = compiler.connection_type
    fits = inner in (EMPTY, Any, *wanted.__mro__) or means(inner, wanted)
    if not fits or dependency_of(argument, owner):
        raise ConfigurationError(
            f"{owner}: the first parameter gets the connection, but {name!r} is something else. {HANDLER}"
        )


def _is_payload(compiler: Compiler, argument: Argument, owner: str) -> bool:
    if not argument.is_positional or compiler.is_provided(argument, owner):
        return False
    return not means(argument.annotation, compiler.connection_type)


def _handler_call(
    func: Callable[..., Any],
    signature: Signature,
    sources: Sequence[int | None],
    steps: tuple[Step, ...],
    reply: OutboundType | None,
    *,
    is_async: bool,
) -> _Call:
    bound = bind(func, signature, sources)
    if is_async and not steps:
        provided = [source for source in sources if source is not None]
        if provided == sources[:2] == [ROOT, _PAYLOAD]:
            return func
        if provided == [ROOT]:
            return lambda conn, payload: func(conn)
        return lambda conn, payload: bound([conn, payload])
    if any(managed for _, managed in steps):
        bound = settled(bound, reply, is_async=is_async)
    last = bound if is_async else partial(in_thread, bound)
    if any(managed for _, managed in steps):
        return lambda conn, payload: with_untimed_clean_up(steps, last, [conn, payload])
    runs = runner(steps, last)
    return lambda conn, payload: runs([conn, payload])
