"""`Event`: something that an app sends, declared once with its model and its room, and sent by what was declared."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Sequence
from datetime import date
from enum import Enum
from typing import Generic, Protocol, Self, TypeVar
from uuid import UUID

from socketspec.declaration.contracts import Declared, check_sent_name
from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.patterns import RoomPattern
from socketspec.errors import ConfigurationError
from socketspec.protocol.encoding import Encoded
from socketspec.protocol.publications import Receipt

__all__ = ("Emitter", "Event", "EventSender", "Excluded", "HasId", "RoomValue")

T = TypeVar("T")

RoomValue = str | int | UUID | date | Enum
"""What may stand for a variable of a room's pattern; it is written as `str` shows it, an enum's member by its value."""


class HasId(Protocol):
    """A connection, or what else has one's id."""

    id: str


class Emitter(Protocol):
    """A connection, to send to."""

    async def emit(self, event: str, payload: object = None) -> None:
        """Send one event to this client."""
        ...


Excluded = HasId | str | Iterable[HasId | str] | None
"""Who does not get a broadcast: a connection, a connection id, or several of either."""


class EventSender(Protocol):
    """What an event is sent with: an app, or a publisher."""

    @property
    def is_running(self) -> bool:
        """Whether it is at work in this process."""
        ...

    async def to_room(
        self, room: str, event: str, payload: Encoded, exclude: Excluded, idempotency_key: str | None
    ) -> Receipt:
        """Send to the members of a room."""
        ...

    async def to_all(self, event: str, payload: Encoded, exclude: Excluded) -> Receipt:
        """Send to everybody."""
        ...

    async def to_user(self, user_id: str, event: str, payload: Encoded) -> Receipt:
        """Send to a user's connections."""
        ...


class Event(Generic[T]):
    """An event that is sent with payloads of one type, to rooms of one pattern, such as ``"orders:{id}"``.

    ``socket.event(name, model, room=…)`` makes one that is the app's. One that is made by itself, in a module that apps
    and workers import, is given to ``SocketApp(events=[…])``, `socket.event` or `Publisher.event`.

    Payloads are validated and filtered as replies are: what the model does not declare is not sent. Everything that
    sends raises `ContractError` for a payload that does not fit, and what the methods of `socket.rooms` raise. Raises
    `ConfigurationError` for a name, a model or a pattern that cannot work.
    """

    def __init__(
        self, name: str, model: type[T], *, room: str | None = None, description: str = "", tags: Sequence[str] = ()
    ) -> None:
        where = f"Event({name!r}, …)"
        check_sent_name(where, name)
        if isinstance(tags, str):
            raise ConfigurationError(f"{where}: tags={tags!r} must be a list, such as tags=['chat'].")
        pattern = None if room is None else RoomPattern(room)
        taken = {"exclude", "idempotency_key"} & set(() if pattern is None else pattern.variables)
        if pattern is not None and taken:
            raise ConfigurationError(
                f"{where}: room={pattern.source!r} has the variable {min(taken)!r}, which is an option of broadcast(); "
                "choose another name for it."
            )
        self.name: str = name
        self.model: type[T] = model
        self.room: str | None = room
        self.description: str = description
        self.tags: tuple[str, ...] = tuple(tags)
        self.declared: Declared = Declared(name, "any", pattern, OutboundType(model, what=where), description)
        self._owner: EventSender | None = None
        self._apps: list[weakref.ref[EventSender]] = []

    def __repr__(self) -> str:
        room = "" if self.room is None else f", room={self.room!r}"
        return f"Event({self.name!r}, {getattr(self.model, '__name__', self.model)}{room})"

    async def broadcast(
        self, payload: T, /, *, exclude: Excluded = None, idempotency_key: str | None = None, **variables: RoomValue
    ) -> Receipt:
        """Send it to the members of the room whose pattern's variables have these values, on every node.

        Raises `TypeError` where a variable is missing or unknown, or no room is declared, and `ValueError` for values
        that no room's name can have.
        """
        room = self.room_name(**variables)
        return await self._sender().to_room(room, self.name, self.encode(payload), exclude, idempotency_key)

    async def broadcast_all(self, payload: T, /, *, exclude: Excluded = None) -> Receipt:
        """Send it to everybody in the namespace, on every node."""
        return await self._sender().to_all(self.name, self.encode(payload), exclude)

    async def send(self, user_id: str, payload: T, /) -> Receipt:
        """Send it to every connection of a user, on every node."""
        return await self._sender().to_user(user_id, self.name, self.encode(payload))

    async def emit(self, conn: Emitter, payload: T, /) -> None:
        """Send it to one connection."""
        await conn.emit(self.name, self.encode(payload))

    def room_name(self, **variables: RoomValue) -> str:
        """The room whose pattern's variables have these values. Raises as `broadcast` does."""
        pattern = self.declared.room
        if pattern is None:
            raise TypeError(
                f"Event {self.name!r} declares no room: write room=… where it is declared, or call broadcast_all() to "
                "send it to everybody."
            )
        missing = [name for name in pattern.variables if name not in variables]
        unknown = [name for name in variables if name not in pattern.variables]
        if missing or unknown:
            said = [f"without {name}=…" for name in missing] + [f"with {name}=…, which it has not" for name in unknown]
            raise TypeError(f"Event {self.name!r} goes to the room {pattern.source!r}, here {' and '.join(said)}.")
        values = {name: self._value(pattern, name, value) for name, value in variables.items()}
        return pattern.format(values)

    def encode(self, payload: T) -> Encoded:
        """`payload` as it is sent. Raises `ContractError` where it does not fit, `TypeError` where it is not JSON."""
        model = self.declared.model
        assert model is not None  # noqa: S101 # every event has one
        return Encoded(model.encode(payload))

    def bound_to(self, sender: EventSender) -> Self:
        """This event, as `sender` sends it."""
        bound = copy.copy(self)
        bound._owner = sender  # noqa: SLF001 # of the same class
        return bound

    def attach(self, sender: EventSender) -> None:
        """Let `sender` send this very object, for as long as it lives."""
        self._apps = [known for known in self._apps if known() is not None]
        self._apps.append(weakref.ref(sender))

    def detach(self, sender: EventSender) -> None:
        """Undo an `attach`."""
        self._apps = [known for known in self._apps if known() is not sender]

    def _sender(self) -> EventSender:
        if self._owner is not None:
            return self._owner
        apps = [app for app in (known() for known in self._apps) if app is not None]
        if not apps:
            raise RuntimeError(
                f"Event {self.name!r} belongs to no app here: write SocketApp(events=[…]) with it, or send what "
                "socket.event(…) or publisher.event(…) makes of it."
            )
        running = [app for app in apps if app.is_running]
        if len(running) > 1:
            raise RuntimeError(
                f"Event {self.name!r} belongs to {len(running)} running apps: send what socket.event(…) of one of them "
                "makes of it."
            )
        return (running or apps)[-1]

    def _value(self, pattern: RoomPattern, name: str, value: object) -> str:
        plain = value.value if isinstance(value, Enum) else value
        if isinstance(plain, bool) or not isinstance(plain, str | int | UUID | date):
            raise ValueError(
                f"Event {self.name!r} goes to the room {pattern.source!r}: {name}={value!r:.100} is of type "
                f"{type(value).__name__}; pass a str, int, UUID or date."
            )
        return str(plain)
