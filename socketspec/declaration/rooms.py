"""`Room`, and which declaration applies to a room's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from socketspec.declaration.patterns import RoomPattern
from socketspec.errors import ConfigurationError
from socketspec.protocol.publications import History

__all__ = ("Room",)


@dataclass(frozen=True, slots=True)
class Room:
    """Declares a room, or with a pattern such as ``"orders:{id}"`` a family of rooms.

    An app that declares rooms has no others. `max_members` counts connections, cluster-wide. `history` keeps what is
    broadcast, for `rooms.history` and for clients that resume.
    """

    name: str
    history: History | None = None
    max_members: int | None = None
    description: str = ""

    def __post_init__(self) -> None:
        RoomPattern(self.name)
        if self.history is not None and not isinstance(self.history, History):  # pyright: ignore[reportUnnecessaryIsInstance] - what untyped code passes
            raise ConfigurationError(f"Room({self.name!r}, history={self.history!r}) must be History(size=…, ttl=…).")
        if self.max_members is not None and (type(self.max_members) is not int or self.max_members < 1):
            raise ConfigurationError(f"Room({self.name!r}, max_members={self.max_members!r}) must be at least 1.")


class Declared(NamedTuple):
    pattern: RoomPattern
    room: Room
