"""JSON or MessagePack: the formats that a client chooses from by subprotocol."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

__all__ = ("MAX_DEPTH", "SUBPROTOCOLS", "Format", "negotiate")


MAX_DEPTH: Final = 200
"""Levels of nesting that a message may have in either format; pydantic-core's JSON parser allows as many."""


class Format(IntEnum):
    """How a connection's messages are written. The value is an index into a `Message`'s encodings."""

    PLAIN = 0
    """JSON text frames, for clients that offered no subprotocol of ours."""
    JSON = 1
    """JSON text frames with `room`, `offset` and `epoch` on messages of rooms with history."""
    MSGPACK = 2
    """The same as MessagePack in binary frames."""


SUBPROTOCOLS: Final[Mapping[str, Format]] = {
    "socketspec.v1.json": Format.JSON,
    "socketspec.v1.msgpack": Format.MSGPACK,
}
"""The subprotocols a client may offer."""


def negotiate(offered: tuple[str, ...]) -> tuple[str | None, Format]:
    """The subprotocol to select (the client's first choice that we speak) and the format it means."""
    for name in offered:
        if name in SUBPROTOCOLS:
            return name, SUBPROTOCOLS[name]
    return None, Format.PLAIN
