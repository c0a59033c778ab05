"""What is declared on an app with decorators: events, hooks, guards, middleware."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final, TypeVar, overload

from socketspec.connection.connection import Connection
from socketspec.declaration.contracts import Broadcasts, Emits
from socketspec.declaration.events import Event
from socketspec.declaration.habits import Once, refuse_bare, refuse_habit
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.plans import HookPlan, Shape
from socketspec.declaration.registry import Guard, Hook, Registry
from socketspec.declaration.signatures import EMPTY, describe, enclosing_locals
from socketspec.declaration.specs import EventOptions
from socketspec.declaration.variables import RoomVariables
from socketspec.errors import ConfigurationError, EventError

__all__ = ("Declarations",)

F = TypeVar("F", bound=Callable[..., Any])

_ON_CONNECT: Final = Shape(what="an on_connect hook", positional=("conn",))
_ON_DISCONNECT: Final = Shape(what="an on_disconnect hook", positional=("conn", "reason"))
_ON_ERROR: Final = Shape(what="an on_error hook", positional=("conn", "error"))
_MIDDLEWARE: Final = Shape(what="middleware", positional=("conn", "event", "payload", "next_handler"))


class Declarations:
    """The decorators of an app."""

    def __init__(self, registry: Registry) -> None:
        self.registry: Registry = registry
        self._once = Once()

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
        ordered: bool = False,
        deprecated: bool = False,
    ) -> Callable[[F], F]:
        """Register a handler for `event`: ``async def handler(conn: Connection, payload: Model) -> Reply | None``.

        The second parameter's type is the payload's model: a Pydantic model, dataclass, TypedDict or dict; leave it
        out if the event has no payload. Further parameters are dependencies (`Depends`). What the handler returns is
        sent as the payload of the ``__ack__``: validated, and nothing but what the return annotation declares. A
        `response_model` takes the annotation's place; None: anything may be returned. `errors` are the kinds of
        `EventError` that it may be answered with. Without `description`, the docstring is shown. `dependencies`, a list
        such as ``[Depends(staff_only)]``, run before those of the handler, for what they check. With `ordered`,
        handlers of such events run one after the other for each connection; otherwise side by side.

        Raises `ConfigurationError` for a name that is taken or reserved, and for a signature that cannot work.
        """
        refuse_habit(event)
        options = EventOptions(
            event,
            connection_type=Connection,
            description=description,
            tags=tags,
            emits=emits,
            broadcasts=broadcasts,
            response_model=response_model,
            errors=errors,
            dependencies=dependencies,
            ordered=ordered,
            deprecated=deprecated,
        )

        def register(function: F) -> F:
            self.registry.add_event(options.spec(function))
            return function

        return register

    def on_connect(self, function: F) -> F:
        """Register a hook ``(conn)`` for new connections. Raise `PermissionDenied` in it to turn the client away.

        This and all other hooks may ask for more behind what they get: dependencies, the `Identity` of the client.
        """
        return self._hook(self.registry.on_connect, function, _ON_CONNECT)

    def on_disconnect(self, function: F) -> F:
        """Register a hook ``(conn, reason)`` for connections that have ended."""
        return self._hook(self.registry.on_disconnect, function, _ON_DISCONNECT)

    def on_error(self, function: F) -> F:
        """Register a hook ``(conn, error)`` for handlers that failed."""
        return self._hook(self.registry.on_error, function, _ON_ERROR)

    @overload
    def on_room_join(self, function: F) -> F: ...

    @overload
    def on_room_join(self, function: str) -> Callable[[F], F]: ...

    def on_room_join(self, function: Callable[..., Any] | str) -> Any:
        """Register a hook ``(conn, room)`` for connections of this node that have joined a room.

        With a pattern, ``@socket.on_room_join("orders:{id}")``, a hook ``(conn, id)`` for rooms that match it, with its
        variables by name; annotated ``id: int``, a room whose variable is none is not meant. It may take `room`, too.
        """
        return self._room_hook(self.registry.on_room_join, function, "on_room_join")

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
        return self._room_hook(self.registry.on_room_leave, function, "on_room_leave")

    def _hook(self, hooks: list[Hook], function: F, shape: Shape) -> F:
        self._once.add(function, shape.what)
        hooks.append(self.registry.compiled(function, shape, enclosing_locals(function))[0])
        return function

    def _room_hook(self, hooks: list[Hook], given: Any, decorator: str) -> Any:
        what = f"an {decorator} hook"
        if not isinstance(given, str):
            return self._hook(hooks, given, Shape(what=what, positional=("conn", "room")))
        pattern = RoomPattern(given)
        room = () if "room" in pattern.variables else ("room",)
        shape = Shape(what=what, positional=("conn",), keywords=(*pattern.variables, *room), optional=room)

        def register(function: F) -> F:
            self._once.add(function, f"{what} of {given!r}")
            hook, plan = self.registry.compiled(function, shape, enclosing_locals(function))
            variables = _variables(pattern, plan, function)

            @wraps(function)
            async def when_it_matches(conn: Connection, name: str) -> None:
                values = variables.values(name)
                if values is not None:
                    await hook(conn, *values, *((name,) if room else ()))

            hooks.append(when_it_matches)
            self.registry.hook_patterns.append((f"@socket.{decorator}({given!r})", pattern))
            return function

        return register

    def room_guard(self, pattern: str) -> Callable[[F], F]:
        """Register a guard for joining rooms that match `pattern`: ``async def guard(conn, **variables) -> bool``.

        It gets the pattern's variables as keyword arguments, converted to what it annotates them with: where
        ``id: int`` is no integer, there is no such room. Every matching guard must return True. Further parameters are
        provided: dependencies, the `Identity` of the client.
        """
        refuse_bare(pattern, "room_guard", "@socket.room_guard('its:{room}')")
        parsed = RoomPattern(pattern)
        shape = Shape(what="a room guard", positional=("conn",), keywords=parsed.variables)

        def register(function: F) -> F:
            self._once.add(function, f"a guard of {pattern!r}")
            guard, plan = self.registry.compiled(function, shape, enclosing_locals(function))
            self.registry.guards.append(Guard(parsed, guard, _variables(parsed, plan, function)))
            return function

        return register

    def middleware(self, function: F) -> F:
        """Register ``async def m(conn, event, payload, next_handler)``, which awaits
        ``next_handler(conn, event, payload)`` and returns its result. The first registered is the outermost. Further
        parameters are provided, as to handlers.
        """
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"Middleware {getattr(function, '__qualname__', function)!r} must be "
                "async def m(conn, event, payload, next_handler), to await next_handler."
            )
        self.registry.add_middleware(self.registry.compiled(function, _MIDDLEWARE, enclosing_locals(function))[0])
        return function

    @property
    def dependency_overrides(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """For tests: what to call in the place of a dependency, as in FastAPI."""
        return self.registry.overrides.own


def _variables(pattern: RoomPattern, plan: HookPlan, function: object) -> RoomVariables:
    try:
        return RoomVariables(pattern, plan.annotations)
    except ConfigurationError as error:
        raise ConfigurationError(f"{describe(function)}: {error}") from error
