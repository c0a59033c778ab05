"""`socket.event`: declares what an app sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast, overload

from socketspec.app.rooms import Exclude, Rooms
from socketspec.app.users import Users
from socketspec.declaration.events import Event, Excluded
from socketspec.declaration.registry import Registry
from socketspec.errors import ConfigurationError
from socketspec.protocol.encoding import Encoded
from socketspec.protocol.publications import Receipt

__all__ = ("AppEvents",)

T = TypeVar("T")


class AppEvents:
    """`socket.event`: call it to declare an event that the app sends; what it returns sends it."""

    def __init__(
        self,
        registry: Registry,
        rooms: Rooms,
        users: Users,
        is_running: Callable[[], bool],
        events: Sequence[Event[Any]],
    ) -> None:
        self._registry = registry
        self._sender = _AppSender(rooms, users, is_running)
        registry.sender = self._sender
        given: Any = events  # untyped code passes anything
        if isinstance(given, str | Event) or not all(isinstance(event, Event) for event in given):
            raise ConfigurationError(f"SocketApp(events={given!r}) must be a list such as [Event('changed', Model)].")
        for event in events:
            self(event)
            event.attach(self._sender)

    @overload
    def __call__(self, event: Event[T], /) -> Event[T]: ...
    @overload
    def __call__(
        self, event: str, model: type[T], /, *, room: str | None = None, description: str = "", tags: Sequence[str] = ()
    ) -> Event[T]: ...

    def __call__(self, event: str | Event[Any], model: Any = None, /, **options: Any) -> Event[Any]:
        """Declare an event that the app sends, by name, model and room, or as an `Event` made elsewhere.

        Raises `ConfigurationError` for one that is declared already, and for a room that is none of those declared.
        """
        made = event if isinstance(event, Event) else Event(event, model, **options)
        self._registry.add_typed_event(made)
        return made.bound_to(self._sender)


class _AppSender:
    """Sends an app's events."""

    def __init__(self, rooms: Rooms, users: Users, is_running: Callable[[], bool]) -> None:
        self._rooms = rooms
        self._users = users
        self._is_running = is_running

    @property
    def is_running(self) -> bool:
        """Whether the app is started."""
        return self._is_running()

    async def to_room(
        self, room: str, event: str, payload: Encoded, exclude: Excluded, idempotency_key: str | None
    ) -> Receipt:
        """Send to the members of a room."""
        return await self._rooms.broadcast(
            room, event, payload, exclude=cast("Exclude", exclude), idempotency_key=idempotency_key
        )

    async def to_all(self, event: str, payload: Encoded, exclude: Excluded) -> Receipt:
        """Send to everybody."""
        return await self._rooms.broadcast_except(cast("Exclude", exclude), event, payload)

    async def to_user(self, user_id: str, event: str, payload: Encoded) -> Receipt:
        """Send to a user's connections."""
        return await self._users.send(user_id, event, payload)
