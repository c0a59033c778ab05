"""Works out what a callable is to be given: which values, from where, in which order.

The result is a flat, topologically ordered tuple of steps. Every step appends its result to one list of values. The
first of them is the root: the connection or, before there is one, the `Arrival`. A dependency that is kept as long as
the connection is one step here; it has steps of its own, which run when it is first asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from enum import Enum
from functools import partial
from operator import itemgetter
from typing import Any

from socketspec.declaration.dependencies import Dependency, call_in_thread, enter, enter_in_thread
from socketspec.declaration.foreign import (
    handshake_view,
    parameter_of,
    refuse_fastapi,
    security_scopes_of,
    view_of,
)
from socketspec.declaration.markers import dependency_of
from socketspec.declaration.parameters import Parameter, explicit, implicit, is_body
from socketspec.declaration.resources import Resources
from socketspec.declaration.signatures import (
    EMPTY,
    Argument,
    Kind,
    Scope,
    Signature,
    describe,
    kind_of,
    means,
    resolve,
)
from socketspec.errors import ConfigurationError
from socketspec.identity import Identity
from socketspec.protocol.handshake import Handshake

__all__ = ("ROOT", "Bound", "Compiler", "Stage", "Step", "Values", "bind", "evaluated", "run")

Values = list[Any]
Bound = Callable[[Values], Any]
Step = tuple[Callable[[Values], Awaitable[Any]], Callable[[Values, AsyncExitStack], Awaitable[Any]] | None]
"""How to get a value. The second function, if there is one, replaces the first and leaves a clean-up on the stack."""

ROOT = 0


class Stage(Enum):
    """When a callable runs: what there is to be had by then."""

    EVENT = "an event"
    HANDSHAKE = "the handshake"
    AUTH = "authentication"


class Compiler:
    """Collects the steps of one callable. A source is an index into the values; None means that a default is kept.

    `inputs` is how many values there are before the first step. Within `holder`, which is kept as long as the
    connection, everything has to be.
    """

    def __init__(
        self,
        connection_type: type[Any],
        scope: Scope,
        overrides: Mapping[Callable[..., Any], Callable[..., Any]],
        *,
        stage: Stage = Stage.EVENT,
        inputs: int = 1,
        holder: str | None = None,
    ) -> None:
        self.steps: list[Step] = []
        self.connection_type: type[Any] = connection_type
        self.wants_scope: bool = False
        """Whether something asks for a view of the handshake, which shows the whole ASGI scope."""
        self.path_variables: dict[str, str] = {}
        """The variables that a path has to have, each with who asks for it."""
        self.scope: Scope = scope
        """The local names that annotations may use."""
        self._given = overrides
        self._overrides = {_key(call): replacement for call, replacement in overrides.items()}
        self._stage = stage
        self._inputs = inputs
        self._holder = holder
        self._cached: dict[Hashable, int] = {}
        self._trail: dict[Hashable, str] = {}
        self._security_scopes: tuple[str, ...] = ()
        self._used_scopes = False

    def is_provided(self, argument: Argument, owner: str) -> bool:
        """Whether something but the caller provides `argument`. Raises `ConfigurationError` for what nothing can."""
        provided = (
            argument.bound
            or dependency_of(argument, owner) is not None
            or means(argument.annotation, Identity)
            or means(argument.annotation, Handshake)
            or view_of(argument) is not None
            or security_scopes_of(argument) is not None
            or parameter_of(argument) is not None
        )
        return provided or refuse_fastapi(argument, owner)

    def source(self, argument: Argument, owner: str, *, shared: bool = False) -> int | None:
        """Where an argument's value comes from. A `shared` one is a dependency's, for which FastAPI's rules hold."""
        if argument.is_variadic or argument.bound:
            return None
        if dependency := dependency_of(argument, owner):
            return self.dependency(dependency, owner)
        found = self._by_type(argument, owner)
        if found is not None:
            return found
        if parameter := explicit(argument, owner):
            return self._marked(parameter, owner)
        if refuse_fastapi(argument, owner):
            return None
        if shared:
            self._check_shared(argument, owner)
            if parameter := implicit(argument, owner):
                return self._parameter(parameter.read)
        if argument.default is not EMPTY:
            return None
        raise ConfigurationError(
            f"{owner}: nothing provides parameter {argument.name!r}. Give it a default or Depends(...), or annotate it "
            f"as {self.connection_type.__name__} to get the connection."
        )

    def _check_shared(self, argument: Argument, owner: str) -> None:
        if argument.annotation is EMPTY and argument.default is EMPTY and argument.name in ("conn", "connection"):
            raise ConfigurationError(
                f"{owner}: parameter {argument.name!r} has no annotation, so it would be a query parameter. Write "
                f"{argument.name}: {self.connection_type.__name__} to get the connection."
            )
        if is_body(argument.annotation):
            raise ConfigurationError(
                f"{owner}: parameter {argument.name!r} is what FastAPI reads from a request's body, and a "
                "handshake has none. Make it a field of the payload's model, or mark it with Query()."
            )

    def _by_type(self, argument: Argument, owner: str) -> int | None:
        if means(argument.annotation, self.connection_type):
            if self._stage is not Stage.EVENT:
                raise ConfigurationError(
                    f"{owner}: parameter {argument.name!r} wants the connection, but {self._stage.value} comes before "
                    "there is one. Take `handshake: Handshake`, or FastAPI's HTTPConnection."
                )
            return ROOT
        if means(argument.annotation, Identity):
            return self._identity(owner)
        if means(argument.annotation, Handshake):
            return self._once("handshake", _handshake)
        if (cls := view_of(argument)) is not None:
            self.wants_scope = True
            look = handshake_view(cls)
            return self._once(("view", cls), lambda values: look(values[ROOT].handshake))
        if (cls := security_scopes_of(argument)) is not None:
            self._used_scopes = True
            scopes = cls(scopes=list(self._security_scopes))
            return self._parameter(lambda handshake: scopes)
        return None

    def _identity(self, owner: str) -> int:
        if self._stage is Stage.AUTH:
            raise ConfigurationError(f"{owner} wants the client's Identity, which authentication has yet to find out.")
        return self._once("identity", _authenticated if self._stage is Stage.HANDSHAKE else _identity_of)

    def _once(self, key: Hashable, get: Bound) -> int:
        if key not in self._cached:
            self._cached[key] = self._add((evaluated(get), None))
        return self._cached[key]

    def _marked(self, parameter: Parameter, owner: str) -> int:
        if parameter.path_variable is not None:
            self.path_variables[parameter.path_variable] = owner
        return self._parameter(parameter.read)

    def _parameter(self, read: Callable[[Handshake], Any]) -> int:
        return self._add((evaluated(lambda values: read(values[ROOT].handshake)), None))

    def _add(self, step: Step) -> int:
        self.steps.append(step)
        return self._inputs + len(self.steps) - 1

    def dependency(self, dependency: Dependency, owner: str) -> int:
        """Where a dependency's value comes from."""
        call: Any = self._overrides.get(_key(dependency.dependency), dependency.dependency)
        if call is Identity or getattr(call, "provides_identity", False) is True:
            return self._identity(owner)
        key = _key(call)
        is_kept = self._is_kept(dependency, owner)
        before = self._security_scopes
        scopes = tuple(dict.fromkeys((*before, *dependency.security_scopes)))
        if dependency.use_cache:
            for known in ((key, is_kept, ()), (key, is_kept, scopes)):
                if known in self._cached:
                    return self._cached[known]
        if key in self._trail:
            names = list(self._trail.values())[list(self._trail).index(key) :]
            raise ConfigurationError(f"Dependencies go round in a circle: {' -> '.join([*names, describe(call)])}.")
        self._trail[key] = describe(call)
        used_before, self._used_scopes, self._security_scopes = self._used_scopes, False, scopes
        position = self._kept(call, key, dependency) if is_kept else self.call(call)
        self._cached.setdefault((key, is_kept, scopes if self._used_scopes else ()), position)
        self._used_scopes, self._security_scopes = used_before or self._used_scopes, before
        del self._trail[key]
        return position

    def _is_kept(self, dependency: Dependency, owner: str) -> bool:
        if self._stage is Stage.AUTH:
            if dependency.scope == "connection":
                raise ConfigurationError(
                    f'{owner} wants {describe(dependency.dependency)} with scope="connection", but authentication '
                    "comes before there is a connection. Leave the scope out."
                )
            return False
        if self._stage is Stage.HANDSHAKE:
            if dependency.scope == "event":
                raise ConfigurationError(
                    f'{owner} wants {describe(dependency.dependency)} with scope="event", but it runs at the '
                    'handshake, where there is no event. Leave the scope out, or say scope="connection".'
                )
            return True
        if self._holder is not None and dependency.scope != "connection":
            raise ConfigurationError(
                f"{self._holder} is kept as long as the connection, but needs {describe(dependency.dependency)}, which "
                'is given anew for each event. Ask for that with scope="connection" as well: '
                f'Depends({getattr(dependency.dependency, "__name__", "it")}, scope="connection").'
            )
        return dependency.scope == "connection"

    def _kept(self, call: Any, key: Hashable, dependency: Dependency) -> int:
        inner = Compiler(self.connection_type, self.scope, self._given, stage=self._stage, holder=describe(call))
        inner._trail, inner._security_scopes = self._trail, self._security_scopes
        inner.call(call)
        self.wants_scope |= inner.wants_scope
        self.path_variables |= inner.path_variables
        self._used_scopes |= inner._used_scopes
        scopes = self._security_scopes if inner._used_scopes else ()
        name: Hashable = (key, scopes) if dependency.use_cache else object()
        return self._add((partial(_obtain, name, tuple(inner.steps)), None))

    def call(self, call: Any) -> int:
        """Add the steps of a dependency and of what it depends on; where its value will be."""
        signature = resolve(call, scope=self.scope)
        sources = [self.source(argument, signature.owner, shared=True) for argument in signature.arguments]
        return self._add(_step(call, signature, sources))


def evaluated(get: Bound) -> Callable[[Values], Awaitable[Any]]:
    """`get`, which may be sync or async, as a step."""

    async def evaluate(values: Values) -> Any:
        found = get(values)
        return await found if inspect.iscoroutine(found) else found

    return evaluate


def _handshake(values: Values) -> Handshake:
    handshake: Handshake = values[ROOT].handshake
    return handshake


def _identity_of(values: Values) -> Identity:
    identity: Identity = values[ROOT].identity
    return identity


def _authenticated(values: Values) -> Awaitable[Identity]:
    found: Awaitable[Identity] = values[ROOT].identity()
    return found


async def _obtain(key: Hashable, steps: Sequence[Step], values: Values) -> Any:
    """The value that the connection keeps under `key`."""
    root = values[ROOT]
    resources: Resources | None = root.resources
    if resources is None:
        resources = root.resources = Resources()

    async def make(stack: AsyncExitStack) -> Any:
        found = [root]
        await run(steps, found, stack)
        return found[-1]

    return await resources.value(key, make)


async def run(steps: Sequence[Step], values: Values, stack: AsyncExitStack) -> None:
    """Append the result of each step to `values`; what they open is closed by `stack`."""
    for evaluate, managed in steps:
        values.append(await (managed(values, stack) if managed else evaluate(values)))


def _key(call: Any) -> Hashable:
    try:
        hash(call)
    except TypeError:
        return ("unhashable", id(call))
    return ("hashable", call)  # by value: two bound methods of one object are equal, not identical


def _step(call: Any, signature: Signature, sources: Sequence[int | None]) -> Step:
    kind = kind_of(call)
    if kind is Kind.ASYNC_GENERATOR:
        bound = bind(asynccontextmanager(call), signature, sources)
        return bound, lambda values, stack: enter(bound(values), stack)
    if kind is Kind.GENERATOR:
        bound = bind(contextmanager(call), signature, sources)
        return bound, lambda values, stack: enter_in_thread(bound(values), stack)
    bound = bind(call, signature, sources)
    return (bound if kind is Kind.ASYNC else lambda values: call_in_thread(partial(bound, values))), None


def bind(
    call: Any,
    signature: Signature,
    sources: Sequence[int | None],
    *,
    rest: Sequence[int] = (),
    named_rest: Sequence[tuple[str, int]] = (),
) -> Bound:
    """Make `call` take its arguments from the values; `rest` and `named_rest` go to its ``*args`` and ``**kwargs``."""
    positional: list[int] = []
    named: list[tuple[str, int]] = []
    skipped = False
    for argument, source in zip(signature.arguments, sources, strict=True):
        if argument.is_variadic:
            positional += rest if argument.position is inspect.Parameter.VAR_POSITIONAL else ()
            named += named_rest if argument.position is inspect.Parameter.VAR_KEYWORD else ()
            skipped = True
        elif source is None:
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
