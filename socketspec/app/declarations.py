"""What is declared on an app with decorators: events, hooks, guards, middleware."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from socketspec.connection.connection import Connection
from socketspec.declaration.contracts import Broadcasts, Contract, Emits, check_declarations
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.plans import check_hook, compile_handler
from socketspec.declaration.registry import EventSpec, Guard, Hook, Registry
from socketspec.declaration.signatures import enclosing_locals
from socketspec.errors import ConfigurationError
from socketspec.protocol.names import check_event_name, is_reserved
from socketspec.runtime.settings import checked

__all__ = ("Declarations",)

F = TypeVar("F", bound=Callable[..., Any])


class Declarations:
    """The decorators of an app."""

    def __init__(self, registry: Registry) -> None:
        self.registry: Registry = registry

    def on(
        self,
        event: str,
        *,
        description: str | None = None,
        tags: Sequence[str] = (),
        emits: Sequence[Emits] | None = None,
        broadcasts: Sequence[Broadcasts] | None = None,
        ordered: bool = False,
        deprecated: bool = False,
    ) -> Callable[[F], F]:
        """Register a handler for `event`: ``async def handler(conn: Connection, payload: Model) -> Reply | None``.

        The second parameter's type is the payload's model: a Pydantic model, dataclass, TypedDict or dict; leave it
        out if the event has no payload. Further parameters are dependencies (`Depends`). What the handler returns is
        sent as the payload of the ``__ack__``. Without `description`, the docstring is shown. With `ordered`, handlers
        of such events run one after the other for each connection; otherwise side by side.

        Raises `ConfigurationError` for a name that is taken or reserved, and for a signature that cannot work.
        """
        checked(check_event_name, event)
        if is_reserved(event):
            raise ConfigurationError(
                f"Event {event!r} is reserved for the protocol; choose a name without __ around it."
            )

        check_declarations(event, tags, emits, broadcasts)

        def register(function: F) -> F:
            caller_locals = enclosing_locals(function)
            spec = EventSpec(
                name=event,
                function=function,
                plan=compile_handler(function, connection_type=Connection, caller_locals=caller_locals),
                caller_locals=caller_locals or None,
                description=inspect.getdoc(function) or "" if description is None else description,
                tags=tuple(tags),
                contract=Contract(
                    f"The handler of {event!r}",
                    None if emits is None else tuple(emits),
                    None if broadcasts is None else tuple(broadcasts),
                ),
                ordered=ordered,
                deprecated=deprecated,
            )
            self.registry.add_event(spec)
            return function

        return register

    def on_connect(self, function: F) -> F:
        """Register a hook ``(conn)`` for new connections. Raise `PermissionDenied` in it to turn the client away."""
        return self._hook(self.registry.on_connect, function, "an on_connect hook", ("conn",))

    def on_disconnect(self, function: F) -> F:
        """Register a hook ``(conn, reason)`` for connections that have ended."""
        return self._hook(self.registry.on_disconnect, function, "an on_disconnect hook", ("conn", "reason"))

    def on_error(self, function: F) -> F:
        """Register a hook ``(conn, error)`` for handlers that failed."""
        return self._hook(self.registry.on_error, function, "an on_error hook", ("conn", "error"))

    def on_room_join(self, function: F) -> F:
        """Register a hook ``(conn, room)`` for connections of this node that have joined a room."""
        return self._hook(self.registry.on_room_join, function, "an on_room_join hook", ("conn", "room"))

    def on_room_leave(self, function: F) -> F:
        """Register a hook ``(conn, room)`` for connections of this node that have left a room.

        When a node dies, another one runs the hook for each connection that the dead node had in a room. The hook then
        gets a closed connection with that one's id and user.
        """
        return self._hook(self.registry.on_room_leave, function, "an on_room_leave hook", ("conn", "room"))

    def _hook(self, hooks: list[Hook], function: F, what: str, arguments: tuple[str, ...]) -> F:
        hooks.append(check_hook(function, what=what, arguments=arguments))
        return function

    def room_guard(self, pattern: str) -> Callable[[F], F]:
        """Register a guard for joining rooms that match `pattern`: ``async def guard(conn, **variables) -> bool``.

        It gets the pattern's variables as keyword arguments. Every matching guard must return True.
        """
        parsed = RoomPattern(pattern)

        def register(function: F) -> F:
            guard = check_hook(function, what="a room guard", arguments=("conn",), keywords=parsed.variables)
            self.registry.guards.append(Guard(parsed, guard))
            return function

        return register

    def middleware(self, function: F) -> F:
        """Register ``async def m(conn, event, payload, next_handler)``, which awaits
        ``next_handler(conn, event, payload)`` and returns its result. The first registered is the outermost.
        """
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"Middleware {getattr(function, '__qualname__', function)!r} must be "
                "async def m(conn, event, payload, next_handler), to await next_handler."
            )
        check_hook(function, what="middleware", arguments=("conn", "event", "payload", "next_handler"))
        self.registry.add_middleware(function)
        return function

    @property
    def dependency_overrides(self) -> dict[Callable[..., Any], Callable[..., Any]]:
        """For tests: what to call in the place of a dependency, as in FastAPI."""
        return self.registry.dependency_overrides
