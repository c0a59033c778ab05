"""What is declared on an app with decorators: events, hooks, guards, middleware."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Any, Final, TypeVar, overload

from socketspec.connection.connection import Connection
from socketspec.declaration.contracts import Broadcasts, Emits
from socketspec.declaration.events import Event
from socketspec.declaration.groups import Given, Path, check_middleware
from socketspec.declaration.habits import refuse_bare, refuse_star
from socketspec.declaration.options import knows_options, without_parentheses
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.plans import HookPlan
from socketspec.declaration.registry import Guard, Hook, Registry
from socketspec.declaration.shapes import Shape, error_kinds
from socketspec.declaration.signatures import EMPTY, describe, enclosing_locals
from socketspec.declaration.specs import EventOptions
from socketspec.declaration.variables import RoomVariables
from socketspec.errors import ConfigurationError, EventError
from socketspec.security.ratelimit import RateLimit, given_rate_limit
from socketspec.text import get_logger

__all__ = ("Declaration", "Declarations")

logger: logging.Logger = get_logger("socketspec")

F = TypeVar("F", bound=Callable[..., Any])

_ON_CONNECT: Final = Shape(what="an on_connect hook", positional=("conn",))
_ON_DISCONNECT: Final = Shape(what="an on_disconnect hook", positional=("conn", "reason"))
_ON_ERROR: Final = Shape(what="an on_error hook", positional=("conn", "error"))


@dataclass(frozen=True, slots=True, eq=False)
class Declaration:
    """Something that was declared, on an app or on a router, to be put into an app's registry."""

    apply: Callable[[Registry, Path], None]
    """Takes the registry, and by what it came there. Raises `ConfigurationError`."""
    is_app_wide: bool = False
    """Whether it is not about its router's events only: an app has it once, however often the router is included."""


class Declarations:
    """The decorators of an app or a router, which is called `shown` in messages."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def take(self, declaration: Declaration, path: Path = ()) -> None:
        """Have what was declared here, or on something that came by `path`. Raises `ConfigurationError`."""
        raise NotImplementedError

    def declare(self, declaration: Declaration) -> None:
        """Have what was declared here, in all its places or, where it raises `ConfigurationError`, in none."""
        raise NotImplementedError

    def _check_event(self, options: EventOptions, event: str) -> None:
        raise NotImplementedError

    @knows_options("on()")
    def on(
        self,
        event: str,
        *,
        description: str | None = None,
        tags: Sequence[str] = (),
        emits: Sequence[Emits | Event[Any]] | None = None,
        broadcasts: Sequence[Broadcasts | Event[Any]] | None = None,
        response_model: Any = EMPTY,
        errors: Sequence[type[EventError]] = (),
        dependencies: Sequence[Any] = (),
        middleware: Sequence[Callable[..., Any]] = (),
        rate_limit: RateLimit | str | None = None,
        timeout: float | timedelta | None = None,
        ordered: bool = False,
        deprecated: bool = False,
    ) -> Callable[[F], F]:
        """Register a handler for `event`: ``async def handler(conn: Connection, payload: Model) -> Reply | None``.

        The second parameter's type is the payload's model: a Pydantic model, dataclass, TypedDict or dict; leave it
        out if the event has no payload. Further parameters are dependencies (`Depends`). What the handler returns is
        sent as the payload of the ``__ack__``: validated, and nothing but what the return annotation declares. A
        `response_model` takes the annotation's place; None: anything may be returned. `errors` are the kinds of
        `EventError` that it may be answered with. Without `description`, the docstring is shown. `dependencies`, a list
        such as ``[Depends(staff_only)]``, run before those of the handler, for what they check. `middleware`
        is for this event only, inside the app's and the router's. `rate_limit` is a bucket of the event's own, beside
        those of the app and the router. With a `timeout` in seconds, an event that takes longer is cancelled, cleaned
        up after and answered with ``TIMEOUT_ERROR``. With `ordered`, handlers of such events run one after the other
        for each connection; otherwise side by side.

        Raises `ConfigurationError` for a name that is taken or reserved, and for a signature that cannot work.
        """
        refuse_bare(event, f"{self._shown}.on", f"@{self._shown}.on('its_event')")
        options = EventOptions(
            event,
            description=description,
            tags=tags,
            emits=emits,
            broadcasts=broadcasts,
            response_model=response_model,
            errors=errors,
            dependencies=dependencies,
            middleware=middleware,
            rate_limit=given_rate_limit(f"on({event!r}, rate_limit", rate_limit),
            timeout=timeout,
            ordered=ordered,
            deprecated=deprecated,
        )
        self._check_event(options, event)

        def register(function: F) -> F:
            given = Given(function, enclosing_locals(function))
            self.declare(Declaration(lambda registry, path: registry.add_event(options.spec(given, registry, path))))
            return function

        return register

    def on_connect(self, function: F = EMPTY) -> F:
        """Register a hook ``(conn)`` for new connections. Raise `PermissionDenied` in it to turn the client away.

        This and all other hooks may ask for more behind what they get: dependencies, the `Identity` of the client.
        """
        return self._hook("on_connect", function, _ON_CONNECT)

    def on_disconnect(self, function: F = EMPTY) -> F:
        """Register a hook ``(conn, reason)`` for connections that have ended."""
        return self._hook("on_disconnect", function, _ON_DISCONNECT)

    def on_error(self, function: F = EMPTY) -> F:
        """Register a hook ``(conn, error)`` for handlers that failed. On a router: for those of its events.

        Annotated with some kind of exceptions, such as ``error: ValueError``, it is for those only.
        """
        self._check_function(function, "on_error")
        given = Given(function, enclosing_locals(function))

        def apply(registry: Registry, path: Path) -> None:
            registry.once.add(function, _ON_ERROR.what, path)
            hook, plan = registry.compiled(function, _ON_ERROR, given.caller_locals)
            hook = _for_some(hook, plan, function)
            (registry.group(path).on_error if path else registry.on_error).append(hook)

        self.declare(Declaration(apply))
        return function

    @overload
    def on_room_join(self, function: F) -> F: ...

    @overload
    def on_room_join(self, function: str) -> Callable[[F], F]: ...

    def on_room_join(self, function: Callable[..., Any] | str) -> Any:
        """Register a hook ``(conn, room)`` for connections of this node that have joined a room.

        With a pattern, ``@socket.on_room_join("orders:{id}")``, a hook ``(conn, id)`` for rooms that match it, with its
        variables by name; annotated ``id: int``, a room whose variable is none is not meant. It may take `room`, too.
        """
        return self._room_hook("on_room_join", function)

    @overload
    def on_room_leave(self, function: F) -> F: ...

    @overload
    def on_room_leave(self, function: str) -> Callable[[F], F]: ...

    def on_room_leave(self, function: Callable[..., Any] | str) -> Any:
        """Register a hook ``(conn, room)`` for connections of this node that have left a room; or, with a pattern, one
        for the rooms that match it, as with `on_room_join`.

        When a node dies, another one runs the hook for each connection that the dead node had in a room. The hook then
        gets a closed connection with that one's id and user; of its handshake nothing is known.
        """
        return self._room_hook("on_room_leave", function)

    def _hook(self, hooks: str, function: F, shape: Shape) -> F:
        """`hooks`: the attribute of the registry."""
        self._check_function(function, hooks)
        caller_locals = enclosing_locals(function)

        def apply(registry: Registry, path: Path) -> None:
            registry.once.add(function, shape.what)
            getattr(registry, hooks).append(registry.compiled(function, shape, caller_locals)[0])

        self.declare(Declaration(apply, is_app_wide=True))
        return function

    def _check_function(self, function: object, decorator: str) -> None:
        without_parentheses(None if function is EMPTY else function, f"{self._shown}.{decorator}")

    def _room_hook(self, decorator: str, given: Any) -> Any:
        what = f"an {decorator} hook"
        if not isinstance(given, str):
            return self._hook(decorator, given, Shape(what=what, positional=("conn", "room")))
        pattern = RoomPattern(given)
        room = () if "room" in pattern.variables else ("room",)
        shape = Shape(what=what, positional=("conn",), keywords=(*pattern.variables, *room), optional=room)
        shown = f"@{self._shown}.{decorator}({given!r})"
        refuse_star(shown, pattern)
        _refuse_conn(shown, pattern)

        def register(function: F) -> F:
            caller_locals = enclosing_locals(function)

            def apply(registry: Registry, path: Path) -> None:
                registry.once.add(function, f"{what} of {given!r}")
                hook, plan = registry.compiled(function, shape, caller_locals)
                variables = _variables(pattern, plan, function)

                @wraps(function)
                async def when_it_matches(conn: Connection, name: str) -> None:
                    values = variables.values(name)
                    if values is not None:
                        await hook(conn, *values, *((name,) if room else ()))
                    elif pattern.match(name) is not None:
                        logger.debug("%s does not run for %r: it annotates other variables", shown, name)

                getattr(registry, decorator).append(when_it_matches)
                registry.hook_patterns.append((shown, pattern))

            self.declare(Declaration(apply, is_app_wide=True))
            return function

        return register

    def room_guard(self, pattern: str) -> Callable[[F], F]:
        """Register a guard for joining rooms that match `pattern`: ``async def guard(conn, **variables) -> bool``.

        It gets the pattern's variables as keyword arguments, converted to what it annotates them with: where
        ``id: int`` is no integer, there is no such room. Every matching guard must return True. Further parameters are
        provided: dependencies, the `Identity` of the client.
        """
        refuse_bare(pattern, f"{self._shown}.room_guard", f"@{self._shown}.room_guard('its:{{room}}')")
        parsed = RoomPattern(pattern)
        refuse_star(f"@{self._shown}.room_guard({pattern!r})", parsed)
        _refuse_conn(f"@{self._shown}.room_guard({pattern!r})", parsed)
        shape = Shape(what="a room guard", positional=("conn",), keywords=parsed.variables, decides=True)

        def register(function: F) -> F:
            caller_locals = enclosing_locals(function)

            def apply(registry: Registry, path: Path) -> None:
                registry.once.add(function, f"a guard of {pattern!r}")
                guard, plan = registry.compiled(function, shape, caller_locals)
                registry.guards.append(Guard(parsed, guard, _variables(parsed, plan, function)))

            self.declare(Declaration(apply, is_app_wide=True))
            return function

        return register

    def middleware(self, function: F = EMPTY) -> F:
        """Register ``async def m(conn, event, payload, next_handler)``, which awaits
        ``next_handler(conn, event, payload)`` and returns its result. The first registered is the outermost. On a
        router, it is for the events of that router, inside the app's. Further parameters are provided, as to handlers.
        """
        self._check_function(function, "middleware")
        check_middleware(function)
        given = Given(function, enclosing_locals(function))
        self.declare(Declaration(lambda registry, path: registry.add_middleware(given, path)))
        return function


def _refuse_conn(what: str, pattern: RoomPattern) -> None:
    if "conn" in pattern.variables:
        raise ConfigurationError(
            f"{what}: the variable 'conn' has the name of the connection, which is passed as well. Rename it."
        )


def _for_some(hook: Hook, plan: HookPlan, function: Callable[..., Any]) -> Hook:
    """An `on_error` hook, called for the exceptions that it is annotated with."""
    try:
        kinds = error_kinds(plan.annotations.get("error", EMPTY))
    except ConfigurationError as error:
        raise ConfigurationError(f"{describe(function)} cannot be {_ON_ERROR.what}: {error}.") from error
    if not kinds:
        return hook

    @wraps(function)
    async def when_it_is_one(conn: Connection, error: Exception) -> None:
        if isinstance(error, kinds):
            await hook(conn, error)

    return when_it_is_one


def _variables(pattern: RoomPattern, plan: HookPlan, function: object) -> RoomVariables:
    try:
        return RoomVariables(pattern, plan.annotations)
    except ConfigurationError as error:
        raise ConfigurationError(f"{describe(function)}: {error}") from error
