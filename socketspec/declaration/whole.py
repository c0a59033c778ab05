"""What only the whole of an app's declarations shows, so it is looked at when the app starts."""

from __future__ import annotations

from socketspec.declaration.registry import Registry
from socketspec.declaration.rooms import DeclaredRooms

__all__ = ("check_whole",)


def check_whole(registry: Registry, declared: DeclaredRooms) -> None:
    """Raise `ConfigurationError` for a guard that guards nothing, a hook that is never called, and a
    broadcast that no room can get."""
    for guard in registry.guards:
        source = guard.pattern.source
        declared.check_pattern(f"@socket.room_guard({source!r}) guards nothing: the pattern", guard.pattern)
    for what, pattern in registry.hook_patterns:
        declared.check_pattern(f"{what} is never called: the pattern", pattern)
    for event in registry.typed_events.values():  # a router may have brought the first rooms after it was declared
        if event.declared.room is not None:
            what = f"Event {event.name!r}: room={event.declared.room.source!r}"
            declared.check_pattern(what, event.declared.room)
    for spec in registry.events.values():
        for item in spec.contract.broadcasts or ():
            if item.room is not None:
                what = (
                    f"on({spec.name!r}, broadcasts=[Broadcasts({item.event!r}, room={item.room.source!r})]): the room"
                )
                declared.check_pattern(what, item.room)
