"""What an app's decorators registered: events, hooks, guards and middleware; and each handler as one function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import Any, Final

from socketspec.declaration.compiler import Stage
from socketspec.declaration.contracts import Contract
from socketspec.declaration.declared_errors import DeclaredError, DeclaredErrors
from socketspec.declaration.events import Event, EventSender
from socketspec.declaration.groups import Bucket, Given, Group, Hook, Limit, Middleware, NextHandler, Path
from socketspec.declaration.habits import Once, refuse_habit
from socketspec.declaration.overrides import Overrides
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.plans import (
    HandlerPlan,
    HookPlan,
    Scoped,
    compile_handler,
    compile_handshake,
    compile_hook,
)
from socketspec.declaration.rooms import DeclaredRooms
from socketspec.declaration.savepoints import Restore, saved
from socketspec.declaration.sending import DeclaredSends
from socketspec.declaration.shapes import Shape
from socketspec.declaration.signatures import Kind, enclosing_locals, kind_of
from socketspec.declaration.variables import RoomVariables
from socketspec.errors import ConfigurationError

__all__ = ("EventSpec", "Guard", "Handler", "Hook", "Middleware", "NextHandler", "Registry")

Handler = Callable[[Any, Any], Awaitable[Any]]

_MIDDLEWARE: Final = Shape(what="middleware", positional=("conn", "event", "payload", "next_handler"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSpec:
    """One registered event."""

    name: str
    function: Callable[..., Any]
    plan: HandlerPlan
    caller_locals: Mapping[str, Any] | None = field(repr=False)
    description: str
    tags: tuple[str, ...]
    contract: Contract
    contract_binds: bool
    """Whether the contract holds for what is sent outside strict mode, too: by its models."""
    response_model: Any
    """What ``on(response_model=…)`` was given; `EMPTY`: nothing."""
    encode_reply: Callable[[Any], bytes]
    """Encodes what the handler returned. Raises `ContractError` and `TypeError`."""
    always_replies: bool
    """Whether a reply of None, too, has to be encoded where the client did not ask for one: to be refused."""
    errors: tuple[DeclaredError, ...]
    ordered: bool
    deprecated: bool
    dependencies: tuple[Scoped, ...] = ()
    """What runs before the handler's own dependencies."""
    groups: tuple[Group, ...] = ()
    """What it shares with other events of its routers, outermost first."""
    middleware: tuple[Middleware, ...] = ()
    """The event's own, around its handler."""
    buckets: tuple[Bucket, ...] = ()
    """The limits beside the app's that it has to pass: its routers', then its own."""
    timeout: float | None = None
    """Seconds it may take; None: any number."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A room guard: `function(conn, *values)` decides about rooms that match `pattern`."""

    pattern: RoomPattern
    function: Hook
    variables: RoomVariables
    """Makes the values: those of the pattern's variables, as the guard annotates them."""


class Registry:
    """Events, hooks, middleware and guards of one app.

    A handler is put together with its middleware when it is first called, and anew after something was registered.
    `connection_type` is the type of the connections that handlers get, as their annotations name it. A `draft` is
    nothing that runs: it only finds what could not work, as far as that can be told before a router is included.
    """

    def __init__(
        self,
        connection_type: type[Any],
        rooms: DeclaredRooms | None = None,
        *,
        timeout: float | None = None,
        draft: bool = False,
    ) -> None:
        self.connection_type: type[Any] = connection_type
        self.rooms: DeclaredRooms = DeclaredRooms([]) if rooms is None else rooms
        self.timeout: float | None = timeout
        """Seconds that an event may take where neither it nor its router says otherwise."""
        self.once: Once = Once()
        self.sender: EventSender | None = None
        """What typed events are sent with; None in a draft."""
        self._draft = draft
        self._groups: dict[Path, Group] = {}
        self._named: dict[str, int] = {}
        self.events: dict[str, EventSpec] = {}
        self.sends: DeclaredSends = DeclaredSends()
        self.typed_events: dict[str, Event[Any]] = {}
        self.errors: DeclaredErrors = DeclaredErrors()
        self.middleware: list[Middleware] = []
        self.guards: list[Guard] = []
        self.on_connect: list[Hook] = []
        self.on_disconnect: list[Hook] = []
        self.on_error: list[Hook] = []
        self.on_room_join: list[Hook] = []
        self.on_room_leave: list[Hook] = []
        self.hook_patterns: list[tuple[str, RoomPattern]] = []
        """Of hooks for some rooms only: how each is declared, and its pattern."""
        self.overrides: Overrides = Overrides()
        self.dependencies: tuple[Scoped, ...] = ()
        """What runs at every handshake."""
        self.auth: dict[int, Hook] = {}
        """What auth backends call where it asks for dependencies, by its owner's id. It takes an `Arrival` first."""
        self.wants_scope: bool = False
        """Whether anything registered looks at the handshake as FastAPI's `WebSocket` or `HTTPConnection`."""
        self.path_variables: dict[str, str] = {}
        """What the paths have to have that the app is mounted at: each variable, and who asks for it."""
        self._handlers: dict[str, Handler] = {}
        self._fixed: dict[str, Handler] = {}
        """Those of `_handlers` in which nothing can be overridden; middleware sees to that itself."""
        self._overrides_compiled = 0

    def save(self) -> Restore:
        """What puts everything back that was registered, as it is now."""
        typed, wants_scope = dict(self.typed_events), self.wants_scope
        groups = [part for group in self._groups.values() for part in (group.middleware, group.on_error)]
        hooks = (self.on_connect, self.on_disconnect, self.on_error, self.on_room_join, self.on_room_leave)
        parts = (
            self.once.save(),
            self.rooms.save(),
            saved(self.events, self.sends.by_event, self.typed_events, self.errors.by_code, self.auth),
            saved(self._groups, self._named, *groups, self.middleware, self.guards, *hooks, self.hook_patterns),
        )

        def restore() -> None:
            for name, event in self.typed_events.items():
                if self.sender is not None and name not in typed:
                    event.detach(self.sender)
            for part in parts:
                part()
            self.wants_scope = wants_scope
            self._forget()

        return restore

    def add_event(self, spec: EventSpec) -> None:
        """Register an event. Raises `ConfigurationError` when the name is taken."""
        if not self._draft:
            refuse_habit(spec.name)
        taken = self.events.get(spec.name)
        if taken is not None:
            raise ConfigurationError(
                f"Event {spec.name!r} already has the handler {taken.plan.name}; "
                f"rename one of the two, or call both from one handler."
            )
        self.errors.add(spec.errors)
        self.events[spec.name] = spec
        self.sends.add(spec.contract.emits)
        self.sends.add(spec.contract.broadcasts)
        self.wants_scope |= spec.plan.wants_scope
        self.path_variables |= spec.plan.path_variables
        self._forget()

    def compiled(
        self, function: Callable[..., Any], shape: Shape, caller_locals: Mapping[str, Any] | None = None
    ) -> tuple[Hook, HookPlan]:
        """`function` as it is called: with its dependencies, and compiled anew when those are overridden.

        Raises `ConfigurationError`.
        """
        compile_it = partial(
            compile_hook, function, shape, connection_type=self.connection_type, caller_locals=caller_locals
        )
        plan = compile_it(overrides=self.overrides.current)
        if not plan.is_provided:
            return plan.call, plan
        hook = self._following(plan, lambda: compile_it(overrides=self.overrides.current))
        return update_wrapper(hook, function), plan

    def at_handshake(self, owner: str, further: Sequence[Scoped] = ()) -> Hook | None:
        """What runs at a handshake, given the `Arrival`: `further` dependencies and the app's; None: nothing does.

        Raises `ConfigurationError`.
        """
        wanted = (*further, *self.dependencies)
        if not wanted:
            return None
        compile_it = partial(compile_handshake, wanted, owner, connection_type=self.connection_type)
        return self._following(
            compile_it(overrides=self.overrides.current), lambda: compile_it(overrides=self.overrides.current)
        )

    def add_auth(self, backends: Sequence[Any]) -> None:
        """Compile what asks for more than it is passed: `authenticate`, and the callables that backends are given.

        Raises `ConfigurationError`.
        """
        for backend in backends:
            self._add_auth(backend, backend.authenticate, "handshake", "an auth backend's authenticate")
            factory = getattr(backend, "factory", None)
            if callable(factory):
                passed = "claims" if hasattr(backend, "algorithms") else "key"
                self._add_auth(factory, factory, passed, f"a callable of {type(backend).__name__}")

    def _add_auth(self, owner: object, function: Callable[..., Any], passed: str, what: str) -> None:
        try:
            asks = len(inspect.signature(function).parameters) > 1
            asks |= passed == "handshake" and kind_of(function) is Kind.SYNC  # else nothing would be awaited
        except (TypeError, ValueError):
            return
        if asks:
            shape = Shape(what=what, positional=(passed,), stage=Stage.AUTH)
            self.auth[id(owner)] = self.compiled(function, shape, enclosing_locals(function))[0]

    def _following(self, plan: HookPlan, compile_anew: Callable[[], HookPlan]) -> Hook:
        version = self.overrides.version
        self.wants_scope |= plan.wants_scope
        self.path_variables |= plan.path_variables

        def call(*inputs: Any) -> Awaitable[Any]:
            nonlocal plan, version
            if version != self.overrides.version:
                plan, version = compile_anew(), self.overrides.version
                self.wants_scope |= plan.wants_scope
            return plan.call(*inputs)

        return call

    def add_typed_event(self, event: Event[Any]) -> None:
        """Declare what the app sends. Raises `ConfigurationError` where it is declared already, or for no room."""
        if event.name in self.typed_events:
            raise ConfigurationError(
                f"Event {event.name!r} is declared twice; use what the first declaration returned."
            )
        pattern = event.declared.room
        if pattern is not None and not self._draft:
            self.rooms.check_pattern(f"Event {event.name!r}: room={pattern.source!r}", pattern)
        self.typed_events[event.name] = event
        self.sends.add([event.declared])

    def add_middleware(self, given: Given, path: Path = ()) -> None:
        """Register a middleware for what came by `path`; the first registered is the outermost."""
        where = self.group(path).middleware if path else self.middleware
        where.append(self.compiled_middleware(given))
        self._forget()

    def compiled_middleware(self, given: Given) -> Middleware:
        """Middleware as it is called. Raises `ConfigurationError`."""
        return self.compiled(given.function, _MIDDLEWARE, given.caller_locals)[0]

    def group(self, path: Path) -> Group:
        """What the events that came by `path` share; `path` is not empty. Raises `ConfigurationError`."""
        group = self._groups.get(path)
        if group is None:
            options = path[-1]
            bucket = None
            if options.rate_limit is not None:
                bucket = self._bucket(f"router {''.join(each.prefix for each in path)}", options.rate_limit)
            middleware = [self.compiled_middleware(given) for given in options.middleware]
            group = self._groups[path] = Group(options, bucket, middleware)
        return group

    def groups(self, path: Path) -> tuple[Group, ...]:
        """The groups along `path`, outermost first. Raises `ConfigurationError`."""
        return tuple(self.group(path[: length + 1]) for length in range(len(path)))

    def _bucket(self, name: str, limit: Limit) -> Bucket:
        # Routers may share a prefix. Nodes run the same code, so they count in the same order.
        number = self._named[name] = self._named.get(name, 0) + 1
        return Bucket(name if number == 1 else f"{name} {number}", limit)

    def _forget(self) -> None:
        self._handlers.clear()
        self._fixed.clear()

    def guards_for(self, room: str) -> Sequence[tuple[Guard, dict[str, str]]]:
        """Every guard whose pattern matches `room`, with the pattern's variables."""
        matches = [(guard, guard.pattern.match(room)) for guard in self.guards]
        return [(guard, variables) for guard, variables in matches if variables is not None]

    def handler(self, spec: EventSpec) -> Handler:
        """The event's handler with its dependencies and all middleware, as one callable."""
        handler = self._fixed.get(spec.name)
        if handler is not None:
            return handler
        version = self.overrides.version
        if version != self._overrides_compiled:
            self._handlers.clear()
            self._overrides_compiled = version
        handler = self._handlers.get(spec.name)
        if handler is None:
            handler = self._handlers[spec.name] = self._compile(spec)
            if not spec.plan.is_provided:
                self._fixed[spec.name] = handler
        return handler

    def _compile(self, spec: EventSpec) -> Handler:
        plan = spec.plan
        if overrides := self.overrides.current:
            plan = compile_handler(
                spec.function,
                connection_type=self.connection_type,
                caller_locals=spec.caller_locals,
                overrides=overrides,
                dependencies=spec.dependencies,
                response_model=spec.response_model,
            )
            self.wants_scope |= plan.wants_scope
        around = [*self.middleware, *(each for group in spec.groups for each in group.middleware), *spec.middleware]
        if not around:
            return plan.call
        call = plan.call

        async def innermost(conn: Any, event: str, payload: Any) -> Any:
            return await call(conn, payload)

        chain: NextHandler = innermost
        for middleware in reversed(around):
            chain = partial(_through, middleware, chain)
        outermost, name = chain, spec.name

        async def handler(conn: Any, payload: Any) -> Any:
            return await outermost(conn, name, payload)

        return handler


async def _through(middleware: Middleware, next_handler: NextHandler, conn: Any, event: str, payload: Any) -> Any:
    return await middleware(conn, event, payload, next_handler)
