"""`Room`, and which of an app's declarations applies to a room's name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from socketspec.declaration.habits import refuse_star
from socketspec.declaration.options import check_known
from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.savepoints import Restore
from socketspec.errors import ConfigurationError, RoomNotFound, ValidationFailed
from socketspec.protocol.names import check_room_name
from socketspec.protocol.publications import History
from socketspec.text import cut, did_you_mean

__all__ = ("DeclaredRooms", "Room", "no_history")


@dataclass(frozen=True, slots=True)
class Room:
    """Declares a room, or with a pattern such as ``"orders:{id}"`` a family of rooms.

    An app that declares rooms has no others. `max_members` counts connections, cluster-wide. `history` keeps what is
    broadcast, for `rooms.history` and for clients that resume. With `client_join`, clients may join by themselves:
    whoever may connect, unless a guard refuses.
    """

    if not TYPE_CHECKING:  # the signature is the dataclass's; this only makes a mistyped option easy to find

        def __new__(cls, *_: Any, **options: Any) -> Room:
            check_known("Room", options, list(cls.__dataclass_fields__))
            return object.__new__(cls)

    name: str
    history: History | None = None
    max_members: int | None = None
    description: str = ""
    client_join: bool = False

    def __post_init__(self) -> None:
        RoomPattern(self.name)
        if self.history is not None and not isinstance(self.history, History):  # pyright: ignore[reportUnnecessaryIsInstance] - what untyped code passes
            raise ConfigurationError(f"Room({self.name!r}, history={self.history!r}) must be History(size=…, ttl=…).")
        if self.max_members is not None and (type(self.max_members) is not int or self.max_members < 1):
            raise ConfigurationError(f"Room({self.name!r}, max_members={self.max_members!r}) must be at least 1.")
        if type(self.client_join) is not bool:
            raise ConfigurationError(f"Room({self.name!r}, client_join={self.client_join!r}) must be True or False.")


def no_history(room: str) -> ValueError:
    """What is raised where the history of a room is asked for that is not declared to have one."""
    return ValueError(f"room {room!r} keeps no history; declare Room({room!r}, history=History(…))")


class _Declared(NamedTuple):
    pattern: RoomPattern
    room: Room


class DeclaredRooms:
    """The rooms an app declares. Raises `ConfigurationError` where two say the same name or pattern."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self.rooms: tuple[Room, ...] = ()
        self._declared: list[_Declared] = []
        self.add(rooms)

    def save(self) -> Restore:
        """What puts it back as it is now."""
        before = self.rooms, self._declared

        def restore() -> None:
            self.rooms, self._declared = before

        return restore

    def add(self, rooms: Sequence[Room]) -> None:
        """Declare more. Raises `ConfigurationError` as the constructor, and then declares none of them."""
        declared = [*self._declared]
        for room in rooms:
            pattern = RoomPattern(room.name)
            refuse_star(f"Room({room.name!r})", pattern)
            if any(pattern == known.pattern for known in declared):
                raise ConfigurationError(f"Room {room.name!r} is declared twice; give it once.")
            declared.append(_Declared(pattern, room))
        self.rooms = (*self.rooms, *rooms)
        self._declared = sorted(declared, key=lambda item: item.pattern.specificity)

    @classmethod
    def of(cls, owner: str, rooms: Sequence[Room | str]) -> Self:
        """From what ``rooms=`` of `owner` was given, where a name stands for a room. Raises `ConfigurationError`."""
        given: Any = rooms  # untyped code passes anything
        if (
            isinstance(given, str | Room)
            or not isinstance(given, Iterable)
            or not all(isinstance(room, str | Room) for room in given)
        ):
            raise ConfigurationError(f'{owner}(rooms={given!r}) must be a list such as [Room("chat:{{name}}")].')
        return cls([Room(room) if isinstance(room, str) else room for room in rooms])

    def find(self, room: str) -> Room | None:
        """The declaration that applies to `room`, the most specific one; None where none matches."""
        return next((declared for pattern, declared in self._declared if pattern.match(room) is not None), None)

    def declaration(self, room: str) -> Room | None:
        """The declaration that applies to `room`; None where the app declares no rooms.

        Raises `RoomNotFound` where it does, and none matches.
        """
        declared = self.find(room)
        if declared is None and self._declared:
            error = RoomNotFound(f"There is no room {room!r}.", details={"room": room})
            error.hint = partial(self.similar, room)
            raise error
        return declared

    def similar(self, name: str) -> str:
        """A sentence that names the declaration which `name`, a room's or a pattern, is a slip of; empty if none is."""
        parts = name.split(":")
        declared = {_filled(room.name, parts): room.name for room in self.rooms}
        found = did_you_mean(name, declared)
        return next((f"Did you mean {source!r}?" for filled, source in declared.items() if repr(filled) in found), "")

    def check_pattern(self, what: str, pattern: RoomPattern) -> None:
        """Raise `ConfigurationError` if rooms are declared and none of them can match `pattern`, which `what` names."""
        if not self._declared or any(pattern.overlaps(declared) for declared, _ in self._declared):
            return
        hint = self.similar(pattern.source) or f"Declared are {cut(', '.join(room.name for room in self.rooms), 200)}."
        raise ConfigurationError(f"{what} fits none of the rooms that the app declares. {hint}")

    def check(self, room: str) -> Room | None:
        """As `declaration`. Raises `ValidationFailed` for what cannot be a room's name."""
        try:
            check_room_name(room)
        except ValueError as error:
            raise ValidationFailed(str(error), details={"reason": "room_name"}) from None
        return self.declaration(room)


def _filled(pattern: str, parts: Sequence[str]) -> str:
    """`pattern` with the parts of a room's name where it has variables, if it has as many parts."""
    own = pattern.split(":")
    if len(own) != len(parts):
        return pattern
    return ":".join(part if "{" in each else each for each, part in zip(own, parts, strict=True))
