"""Typed events of publishers: `socketspec.Event` as a worker sends it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

from socketspec.declaration.events import Event, Excluded, RoomValue
from socketspec.protocol.encoding import Encoded
from socketspec.protocol.publications import Receipt

__all__ = ("AsyncPublisherSender", "PublisherEvent", "event_of")

T = TypeVar("T")


class _Publishes(Protocol):
    def broadcast(
        self, room: str, event: str, payload: object = None, *, exclude: str | Iterable[str] = (),
        idempotency_key: str | None = None,
    ) -> Receipt: ...  # fmt: skip

    def broadcast_all(self, event: str, payload: object = None, *, exclude: str | Iterable[str] = ()) -> Receipt: ...

    def send_to_user(self, user_id: str, event: str, payload: object = None) -> Receipt: ...


class _PublishesAsync(Protocol):
    async def broadcast(
        self, room: str, event: str, payload: object = None, *, exclude: str | Iterable[str] = (),
        idempotency_key: str | None = None,
    ) -> Receipt: ...  # fmt: skip

    async def broadcast_all(
        self, event: str, payload: object = None, *, exclude: str | Iterable[str] = ()
    ) -> Receipt: ...

    async def send_to_user(self, user_id: str, event: str, payload: object = None) -> Receipt: ...


def event_of(event: str | Event[Any], model: Any, options: dict[str, Any]) -> Event[Any]:
    """The event that ``publisher.event(…)`` was given, or what it says of one."""
    return event if isinstance(event, Event) else Event(event, model, **options)


class PublisherEvent(Generic[T]):
    """An event as a `Publisher` sends it. Raises `ContractError` before a payload that does not fit is sent."""

    def __init__(self, event: Event[T], publisher: _Publishes) -> None:
        self._event = event
        self._publisher = publisher

    def __repr__(self) -> str:
        return f"{self._publisher!r}.event({self._event!r})"

    def broadcast(
        self,
        payload: T,
        /,
        *,
        exclude: str | Iterable[str] = (),
        idempotency_key: str | None = None,
        **variables: RoomValue,
    ) -> Receipt:
        """See `socketspec.Event.broadcast`."""
        room, encoded = self._event.room_name(**variables), self._event.encode(payload)
        return self._publisher.broadcast(
            room, self._event.name, encoded, exclude=exclude, idempotency_key=idempotency_key
        )

    def broadcast_all(self, payload: T, /, *, exclude: str | Iterable[str] = ()) -> Receipt:
        """See `socketspec.Event.broadcast_all`."""
        return self._publisher.broadcast_all(self._event.name, self._event.encode(payload), exclude=exclude)

    def send(self, user_id: str, payload: T, /) -> Receipt:
        """See `socketspec.Event.send`."""
        return self._publisher.send_to_user(user_id, self._event.name, self._event.encode(payload))


class AsyncPublisherSender:
    """Sends the events of an `AsyncPublisher`."""

    is_running: bool = True

    def __init__(self, publisher: _PublishesAsync) -> None:
        self._publisher = publisher

    async def to_room(
        self, room: str, event: str, payload: Encoded, exclude: Excluded, idempotency_key: str | None
    ) -> Receipt:
        """Send to the members of a room."""
        return await self._publisher.broadcast(
            room, event, payload, exclude=_ids(exclude), idempotency_key=idempotency_key
        )

    async def to_all(self, event: str, payload: Encoded, exclude: Excluded) -> Receipt:
        """Send to everybody."""
        return await self._publisher.broadcast_all(event, payload, exclude=_ids(exclude))

    async def to_user(self, user_id: str, event: str, payload: Encoded) -> Receipt:
        """Send to a user's connections."""
        return await self._publisher.send_to_user(user_id, event, payload)


def _ids(exclude: Excluded) -> tuple[str, ...]:
    if exclude is None:
        return ()
    if isinstance(exclude, str):
        return (exclude,)
    several = exclude if isinstance(exclude, Iterable) else (exclude,)
    return tuple(item if isinstance(item, str) else item.id for item in several)
