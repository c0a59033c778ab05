"""Compiles handlers into plans: what to call, in which order, with what. So nothing is inspected when an event arrives.

A plan is a flat, topologically ordered tuple of steps. Every step appends its result to one list of values, whose
first two are the connection and the payload; the handler is the last step. An `async` handler without dependencies
has no steps: its plan's `call` is the handler itself.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial, wraps
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from socketspec.declaration.dependencies import Dependency, enter, enter_in_thread, run_in_thread
from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.payloads import PayloadType
from socketspec.declaration.replies import reply_type, settled
from socketspec.declaration.signatures import (
    EMPTY,
    Argument,
    Kind,
    Scope,
    Signature,
    bare,
    dependency_of,
    describe,
    innermost,
    kind_of,
    means,
    read_parameters,
    refuse_fastapi,
    resolve,
)
from socketspec.errors import ConfigurationError

__all__ = ("HandlerPlan", "check_hook", "compile_handler")

_Values = list[Any]
_Bound = Callable[[_Values], Any]
_Call = Callable[[Any, Any], Coroutine[Any, Any, Any]]
_Step = tuple[Callable[[_Values], Awaitable[Any]], Callable[[_Values, AsyncExitStack], Awaitable[Any]] | None]
"""How to get a dependency's value. The second function, if there is one, replaces the first and leaves a clean-up on
the stack."""

_CONNECTION, _PAYLOAD = 0, 1
_SHAPE = "A handler looks like this: async def handler(conn: Connection, payload: Model) -> Reply | None"
_NO_OVERRIDES: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType({})


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


def compile_handler(
    func: Callable[..., Any],
    *,
    connection_type: type[Any],
    caller_locals: Mapping[str, Any] | None = None,
    overrides: Mapping[Callable[..., Any], Callable[..., Any]] = _NO_OVERRIDES,
    response_model: Any = EMPTY,
) -> HandlerPlan:
    """Compile `func`, whose first parameter takes a `connection_type`.

    `caller_locals` are the names around the registration (`enclosing_locals` finds them). `overrides` replaces
    dependencies, key by value, wherever they occur; the replacement's own parameters count. `response_model` takes the
    place of the return annotation.
    Raises `ConfigurationError` for whatever could not work later.
    """
    _refuse_unfit(func)
    scope = Scope(caller_locals or {}, getattr(innermost(func), "__module__", None))
    signature = resolve(func, scope=scope, returns=True)
    compiler = _Compiler(connection_type, scope, overrides)
    payload, sources = compiler.handler(signature)
    steps = tuple(compiler.steps)
    is_async = kind_of(func) is Kind.ASYNC
    reply = reply_type(signature, response_model)
    return HandlerPlan(
        name=signature.owner,
        payload=payload,
        returns=Any if signature.returns is EMPTY else signature.returns,
        reply=reply,
        call=_runner(func, signature, sources, steps, reply, is_async=is_async),
    )


def check_hook(
    func: Callable[..., Any], *, what: str, arguments: tuple[str, ...], keywords: tuple[str, ...] = ()
) -> Callable[..., Awaitable[Any]]:
    """Verify that `func` can be called with these positional and keyword arguments; return it as an async callable.

    `what` names the hook in messages ("a room guard"). A hook that is not `async` runs in a worker thread, as handlers
    do. Raises `ConfigurationError` that shows the expected signature.
    """
    expected = ", ".join([*arguments, *(["*", *keywords] if keywords else [])])
    shape = f"{what} looks like this: async def {getattr(func, '__name__', 'hook')}({expected})"
    kind = Kind.SYNC
    try:
        signature = read_parameters(func)
        kind = kind_of(func)
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except (ConfigurationError, TypeError) as error:
        raise ConfigurationError(f"{describe(func)} cannot be {what}: {str(error).rstrip('.')}. {shape}") from error
    found = "a class" if isinstance(func, type) else kind.value
    if found in ("a class", Kind.GENERATOR.value, Kind.ASYNC_GENERATOR.value):
        raise ConfigurationError(f"{describe(func)} is {found} and cannot be {what}. {shape}")
    if kind is Kind.ASYNC:
        return func

    @wraps(func)
    async def hook(*args: Any, **kwargs: Any) -> Any:
        return await _threaded(partial(func, *args, **kwargs))

    return hook


def _refuse_unfit(func: Any) -> None:
    if not callable(func):
        raise ConfigurationError(f"{func!r} is not a function. {_SHAPE}")
    if inspect.isclass(func):
        raise ConfigurationError(f"{describe(func)} is a class. Register a bound method of an instance. {_SHAPE}")
    kind = kind_of(func)
    if kind in (Kind.GENERATOR, Kind.ASYNC_GENERATOR):
        raise ConfigurationError(
            f"{describe(func)} is {kind.value}: a handler has one reply and returns it; send more with conn.emit(). "
            f"{_SHAPE}"
        )


class _Compiler:
    """Collects the steps of one handler. A source is an index into the values; None means that a default is kept."""

    def __init__(
        self,
        connection_type: type[Any],
        scope: Scope,
        overrides: Mapping[Callable[..., Any], Callable[..., Any]],
    ) -> None:
        self.steps: list[_Step] = []
        self._connection_type = connection_type
        self._scope = scope
        self._overrides = {_key(call): replacement for call, replacement in overrides.items()}
        self._cached: dict[Hashable, int] = {}
        self._trail: dict[Hashable, str] = {}

    def handler(self, signature: Signature) -> tuple[PayloadType | None, list[int | None]]:
        """Compile a handler's parameters: the connection first, then at most one payload, then whatever is provided."""
        owner = signature.owner
        if not signature.arguments:
            raise ConfigurationError(f"{owner} takes no parameters, but gets the connection. {_SHAPE}")
        self._first(signature.arguments[0], owner)
        payload: PayloadType | None = None
        sources: list[int | None] = [_CONNECTION]
        for argument in signature.arguments[1:]:
            if argument.position is inspect.Parameter.VAR_POSITIONAL:
                raise ConfigurationError(f"{owner}: *{argument.name} would stay empty. {_SHAPE}")
            if payload is None and self._is_payload(argument, owner):
                payload = self._payload(argument, signature)
                sources.append(_PAYLOAD)
            else:
                sources.append(self._source(argument, owner))
        return payload, sources

    def _first(self, argument: Argument, owner: str) -> None:
        name = argument.name
        if argument.is_variadic:
            raise ConfigurationError(
                f"{owner} begins with *{name}, which does not tell what it takes. "
                f"If a decorator of yours wraps it, use functools.wraps there. {_SHAPE}"
            )
        if not argument.is_positional:
            raise ConfigurationError(f"{owner}: the connection is given by position, but {name!r} cannot be. {_SHAPE}")
        if name in ("self", "cls") and argument.annotation is EMPTY:
            raise ConfigurationError(
                f"{owner} is a method without its object: register the bound method of an instance. {_SHAPE}"
            )
        refuse_fastapi(argument, owner)
        inner, _ = bare(argument.annotation)
        # The connection's own base classes take it, too: `object`, for one.
        fits = inner in (EMPTY, Any, *self._connection_type.__mro__) or means(inner, self._connection_type)
        if not fits or dependency_of(argument, owner):
            raise ConfigurationError(
                f"{owner}: the first parameter gets the connection, but {name!r} is something else. {_SHAPE}"
            )

    def _is_payload(self, argument: Argument, owner: str) -> bool:
        if not argument.is_positional or argument.bound or dependency_of(argument, owner):
            return False
        refuse_fastapi(argument, owner)
        return not means(argument.annotation, self._connection_type)

    def _payload(self, argument: Argument, signature: Signature) -> PayloadType:
        annotation = dict if argument.annotation is EMPTY else argument.annotation
        try:
            return PayloadType(annotation, namespace=signature.namespace)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{signature.owner}: parameter {argument.name!r} is the payload. {error} {_SHAPE}"
            ) from error

    def _source(self, argument: Argument, owner: str) -> int | None:
        if argument.is_variadic or argument.bound:
            return None
        if dependency := dependency_of(argument, owner):
            return self._dependency(dependency)
        refuse_fastapi(argument, owner)
        if means(argument.annotation, self._connection_type):
            return _CONNECTION
        if argument.default is not EMPTY:
            return None
        raise ConfigurationError(
            f"{owner}: nothing provides parameter {argument.name!r}. Give it a default or Depends(...), or annotate it "
            f"as {self._connection_type.__name__} to get the connection."
        )

    def _dependency(self, dependency: Dependency) -> int:
        call: Any = self._overrides.get(_key(dependency.dependency), dependency.dependency)
        key = _key(call)
        if dependency.use_cache and key in self._cached:
            return self._cached[key]
        if key in self._trail:
            names = list(self._trail.values())[list(self._trail).index(key) :]
            raise ConfigurationError(f"Dependencies go round in a circle: {' -> '.join([*names, describe(call)])}.")
        self._trail[key] = describe(call)
        signature = resolve(call, scope=self._scope)
        sources = [self._source(argument, signature.owner) for argument in signature.arguments]
        self.steps.append(_step(call, signature, sources))
        del self._trail[key]
        position = _PAYLOAD + len(self.steps)
        self._cached.setdefault(key, position)
        return position


def _key(call: Any) -> Hashable:
    try:
        hash(call)
    except TypeError:
        return ("unhashable", id(call))
    return ("hashable", call)  # by value: two bound methods of one object are equal, not identical


def _runner(
    func: Callable[..., Any],
    signature: Signature,
    sources: list[int | None],
    steps: tuple[_Step, ...],
    reply: OutboundType | None,
    *,
    is_async: bool,
) -> _Call:
    bound = _bind(func, signature, sources)
    if is_async and not steps:
        provided = [source for source in sources if source is not None]
        if provided == sources[:2] == [_CONNECTION, _PAYLOAD]:
            return func
        if provided == [_CONNECTION]:
            return lambda conn, payload: func(conn)
        return lambda conn, payload: bound([conn, payload])
    with_clean_up = any(managed for _, managed in steps)
    if with_clean_up:
        bound = settled(bound, reply, is_async=is_async)
    last: Callable[[_Values], Awaitable[Any]] = bound if is_async else partial(_in_thread, bound)
    if with_clean_up:
        return _with_clean_up(steps, last)
    return _without_clean_up(tuple(evaluate for evaluate, _ in steps), last)


def _without_clean_up(
    steps: tuple[Callable[[_Values], Awaitable[Any]], ...], last: Callable[[_Values], Awaitable[Any]]
) -> _Call:
    async def call(conn: Any, payload: Any) -> Any:
        values = [conn, payload]
        for evaluate in steps:
            values.append(await evaluate(values))
        return await last(values)

    return call


def _with_clean_up(steps: tuple[_Step, ...], last: Callable[[_Values], Awaitable[Any]]) -> _Call:
    async def call(conn: Any, payload: Any) -> Any:
        values = [conn, payload]
        result: Any = None
        async with AsyncExitStack() as stack:
            for evaluate, managed in steps:
                values.append(await (managed(values, stack) if managed else evaluate(values)))
            result = await last(values)
        return result  # noqa: RET504  # mypy: a stack may suppress errors; this one never does

    return call


def _step(call: Any, signature: Signature, sources: list[int | None]) -> _Step:
    kind = kind_of(call)
    if kind is Kind.ASYNC_GENERATOR:
        bound = _bind(asynccontextmanager(call), signature, sources)
        return bound, lambda values, stack: enter(bound(values), stack)
    if kind is Kind.GENERATOR:
        bound = _bind(contextmanager(call), signature, sources)
        return bound, lambda values, stack: enter_in_thread(bound(values), stack)
    bound = _bind(call, signature, sources)
    return (bound if kind is Kind.ASYNC else partial(_in_thread, bound)), None


def _bind(call: Any, signature: Signature, sources: list[int | None]) -> _Bound:
    """Make `call` take its arguments from the values."""
    positional: list[int] = []
    named: list[tuple[str, int]] = []
    skipped = False
    for argument, source in zip(signature.arguments, sources, strict=True):
        if source is None:
            skipped = True
        elif argument.is_positional and not skipped:
            positional.append(source)
        elif argument.position is inspect.Parameter.POSITIONAL_ONLY:
            raise ConfigurationError(
                f"{signature.owner}: positional-only parameter {argument.name!r} follows one that keeps its default. "
                "Put it first, or move the `/` before it."
            )
        else:
            named.append((argument.name, source))
    if named:
        return lambda values: call(*[values[i] for i in positional], **{name: values[i] for name, i in named})
    if not positional:
        return lambda values: call()
    if len(positional) == 1:
        only = positional[0]
        return lambda values: call(values[only])
    pick = itemgetter(*positional)
    return lambda values: call(*pick(values))


async def _in_thread(bound: _Bound, values: _Values) -> Any:
    return await _threaded(partial(bound, values))


async def _threaded(call: Callable[[], Any]) -> Any:
    result: Any = await run_in_thread(call, copy_context())
    # A lambda or an undeclared wrapper around something `async` returns a coroutine.
    return await result if asyncio.iscoroutine(result) else result
