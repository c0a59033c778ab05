"""What only the whole of an app's declarations shows, so it is looked at when the app starts."""

from __future__ import annotations

from collections.abc import Iterator

from socketspec.declaration.patterns import RoomPattern
from socketspec.declaration.registry import Registry
from socketspec.declaration.rooms import DeclaredRooms
from socketspec.errors import ConfigurationError

__all__ = ("check_whole", "problems")


def check_whole(registry: Registry, declared: DeclaredRooms) -> None:
    """Raise the first of the `problems`."""
    for problem in problems(registry, declared):
        raise problem


def problems(registry: Registry, declared: DeclaredRooms) -> Iterator[ConfigurationError]:
    """A guard that guards nothing, a hook that is never called, a broadcast that no room can get."""
    for what, pattern in _patterns(registry):
        try:
            declared.check_pattern(what, pattern)
        except ConfigurationError as error:
            yield error


def _patterns(registry: Registry) -> Iterator[tuple[str, RoomPattern]]:
    for guard in registry.guards:
        yield f"@socket.room_guard({guard.pattern.source!r}) guards nothing: the pattern", guard.pattern
    for what, pattern in registry.hook_patterns:
        yield f"{what} is never called: the pattern", pattern
    for event in registry.typed_events.values():  # a router may have brought the first rooms after it was declared
        if event.declared.room is not None:
            yield f"Event {event.name!r}: room={event.declared.room.source!r}", event.declared.room
    for spec in registry.events.values():
        for item in spec.contract.broadcasts or ():
            if item.room is not None:
                sent = f"Broadcasts({item.event!r}, room={item.room.source!r})"
                yield f"on({spec.name!r}, broadcasts=[{sent}]): the room", item.room
