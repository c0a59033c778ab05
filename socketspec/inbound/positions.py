"""What a ``__resume__`` names: rooms, each with the position that the client has reached in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from socketspec.errors import ValidationFailed
from socketspec.protocol.names import MAX_NAME_BYTES
from socketspec.protocol.publications import Position

__all__ = ("positions_of",)


def positions_of(payload: Mapping[str, Any], limit: int) -> dict[str, Position | None]:
    """The `rooms` of a ``__resume__``: ``{name: {"offset": int, "epoch": str, "tag": str}}``, or null for a position.

    Raises `ValidationFailed`.
    """
    rooms = payload.get("rooms", {})
    if not isinstance(rooms, dict) or len(rooms) > limit:
        raise ValidationFailed(f"`payload.rooms` must be an object of at most {limit} rooms.")
    for name in rooms:
        if len(name) > MAX_NAME_BYTES:
            raise ValidationFailed(f"{name[:80]!r}… is no room's name: one has at most {MAX_NAME_BYTES} bytes.")
    return {name: _position(name, value) for name, value in rooms.items()}


def _position(name: str, value: Any) -> Position | None:
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
