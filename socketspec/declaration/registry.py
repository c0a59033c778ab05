"""What an app's decorators registered: events, hooks, guards and middleware; and each handler as one function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from socketspec.declaration.contracts import Contract
from socketspec.declaration.declared_errors import DeclaredError, DeclaredErrors
from socketspec.declaration.events import Event
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.plans import HandlerPlan, compile_handler
from socketspec.declaration.rooms import DeclaredRooms
from socketspec.declaration.sending import DeclaredSends
from socketspec.errors import ConfigurationError

__all__ = ("EventSpec", "Guard", "Handler", "Hook", "Middleware", "NextHandler", "Registry")

Hook = Callable[..., Awaitable[Any]]
NextHandler = Callable[[Any, str, Any], Awaitable[Any]]
Middleware = Callable[[Any, str, Any, NextHandler], Awaitable[Any]]
Handler = Callable[[Any, Any], Awaitable[Any]]


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


@dataclass(frozen=True, slots=True)
class Guard:
    """A room guard: `function(conn, **variables)` decides about rooms that match `pattern`."""

    pattern: RoomPattern
    function: Hook


class Registry:
    """Events, hooks, middleware and guards of one app.

    A handler is put together with its middleware when it is first called, and anew after something was registered.
    `connection_type` is the type of the connections that handlers get, as their annotations name it.
    """

    def __init__(self, connection_type: type[Any]) -> None:
        self._connection_type = connection_type
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
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._handlers: dict[str, Handler] = {}
        self._overrides_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def add_event(self, spec: EventSpec) -> None:
        """Register an event. Raises `ConfigurationError` when the name is taken."""
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
        self._handlers.clear()

    def add_typed_event(self, event: Event[Any], rooms: DeclaredRooms) -> None:
        """Declare what the app sends. Raises `ConfigurationError` where it is declared already, or for no room."""
        if event.name in self.typed_events:
            raise ConfigurationError(
                f"Event {event.name!r} is declared twice; use what the first declaration returned."
            )
        pattern = event.declared.room
        if pattern is not None and not rooms.may_have(pattern):
            names = ", ".join(repr(room.name) for room in rooms.rooms)
            raise ConfigurationError(
                f"Event {event.name!r}: room={pattern.source!r} names none of the declared rooms ({names}). Declare "
                f"Room({pattern.source!r}) in SocketApp(rooms=[…]), or write the pattern of one of them."
            )
        self.typed_events[event.name] = event
        self.sends.add([event.declared])

    def add_middleware(self, middleware: Middleware) -> None:
        """Register a middleware; the first registered is the outermost."""
        self.middleware.append(middleware)
        self._handlers.clear()

    def guards_for(self, room: str) -> Sequence[tuple[Guard, dict[str, str]]]:
        """Every guard whose pattern matches `room`, with the pattern's variables."""
        matches = [(guard, guard.pattern.match(room)) for guard in self.guards]
        return [(guard, variables) for guard, variables in matches if variables is not None]

    def handler(self, spec: EventSpec) -> Handler:
        """The event's handler with its dependencies and all middleware, as one callable."""
        if self.dependency_overrides != self._overrides_compiled:
            self._handlers.clear()
            self._overrides_compiled = dict(self.dependency_overrides)
        handler = self._handlers.get(spec.name)
        if handler is None:
            handler = self._handlers[spec.name] = self._compile(spec)
        return handler

    def _compile(self, spec: EventSpec) -> Handler:
        plan = spec.plan
        if self.dependency_overrides:
            plan = compile_handler(
                spec.function,
                connection_type=self._connection_type,
                caller_locals=spec.caller_locals,
                overrides=self.dependency_overrides,
                response_model=spec.response_model,
            )
        if not self.middleware:
            return plan.call
        call = plan.call

        async def innermost(conn: Any, event: str, payload: Any) -> Any:
            return await call(conn, payload)

        chain: NextHandler = innermost
        for middleware in reversed(self.middleware):
            chain = partial(_through, middleware, chain)
        outermost, name = chain, spec.name

        async def handler(conn: Any, payload: Any) -> Any:
            return await outermost(conn, name, payload)

        return handler


async def _through(middleware: Middleware, next_handler: NextHandler, conn: Any, event: str, payload: Any) -> Any:
    return await middleware(conn, event, payload, next_handler)
