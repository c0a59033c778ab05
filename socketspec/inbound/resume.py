"""Re-join rooms after a reconnect, and replay exactly what was missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from socketspec.errors import ValidationFailed
from socketspec.protocol.messages import Message
from socketspec.protocol.publications import Position

__all__ = ()


class Held:
    """Takes a room's live messages while its history is read: `LIMIT` of them, beyond which it is not recovered."""

    LIMIT = 10_000

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.overflowed = False

    def __call__(self, *messages: Message) -> None:
        if len(self.messages) + len(messages) <= self.LIMIT:
            self.messages += messages
        else:
            self.overflowed = True


class Resumed(NamedTuple):
    """What resuming one room came to."""

    result: dict[str, Any]
    missed: list[Message]
    held: Held
    last: Position | None = None
    """What the client has seen when `missed` has been sent; None where that is not known."""


def is_seen(message: Message, last: Position | None) -> bool:
    position = message.position
    if last is None or position is None or position.epoch != last.epoch:
        return False
    return position.offset <= last.offset


def is_contiguous(publications: Any, since: Position) -> bool:
    offsets = [item.position.offset for item in publications if item.position is not None]
    return offsets == list(range(since.offset + 1, since.offset + 1 + len(publications)))


def positions_of(payload: Mapping[str, Any], limit: int) -> dict[str, Position | None]:
    """The `rooms` of a ``__resume__``: ``{name: {"offset": int, "epoch": str, "tag": str}}``."""
    rooms = payload.get("rooms", {})
    if not isinstance(rooms, dict) or len(rooms) > limit:
        raise ValidationFailed(f"`payload.rooms` must be an object of at most {limit} rooms.")
    return {name: position_of(name, value) for name, value in rooms.items()}


def position_of(name: str, value: Any) -> Position | None:
    if value is None:
        return None
    if isinstance(value, dict):
        offset, epoch, tag = value.get("offset"), value.get("epoch"), value.get("tag", "")
        if type(offset) is int and 0 <= offset < 2**63 and isinstance(epoch, str) and isinstance(tag, str):
            return Position(offset, epoch, tag)
    raise ValidationFailed(
        f"The position of {name[:80]!r} must be null or "
        '{"offset": integer, "epoch": string, "tag": string}, as its last message said.'
    )
