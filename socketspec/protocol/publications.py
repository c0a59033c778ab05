"""The values nodes exchange: topics, publications, positions, members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from pydantic_core import from_json

from socketspec.errors import ConfigurationError

__all__ = (
    "ONCE_SECONDS",
    "History",
    "Member",
    "Position",
    "Publication",
    "Receipt",
    "RoomMessage",
    "Topic",
    "room_message",
)

ONCE_SECONDS: Final = 300.0
"""Seconds that an idempotency key is remembered, or the history's `ttl` where that is longer; whatever becomes of the
history meanwhile."""


class Topic(NamedTuple):
    """An address that messages are published to: a room, all connections of a namespace, one user, or the namespace's
    nodes themselves (``control``, which no client hears)."""

    namespace: str
    kind: Literal["room", "all", "user", "control"]
    name: str


class Position(NamedTuple):
    """A place in a topic's history. `epoch` names one life of the history: after it was lost, another one begins. `tag`
    names the publication at that offset: after a failover that lost the newest entries, offsets are used again."""

    offset: int
    epoch: str
    tag: str = ""


class Publication(NamedTuple):
    """One message on its way to a topic's members."""

    event: str
    payload: bytes
    """The payload as JSON text, encoded once by the publisher."""
    exclude: tuple[str, ...] = ()
    """Ids of connections that do not get it."""
    position: Position | None = None
    """Where it stands in the topic's history; None in topics without one."""
    trace: str = ""
    """The trace it belongs to, as a W3C ``traceparent``; empty for none. Not kept in histories."""


@dataclass(frozen=True, slots=True)
class History:
    """How much of a room is kept: the newest `size` publications, for `ttl` seconds after the last one."""

    size: int = 1000
    ttl: float = 3600

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1_000_000:
            raise ConfigurationError(f"History(size={self.size!r}) must be between 1 and 1,000,000 publications.")
        if not 0 < self.ttl <= 365 * 86_400:
            raise ConfigurationError(f"History(ttl={self.ttl!r}) must be more than 0 seconds and at most a year.")


class Receipt(NamedTuple):
    """What came of publishing. `nodes == 0` means that no node has a member of the topic."""

    nodes: int
    position: Position | None = None


class Member(NamedTuple):
    """One connection in a room."""

    connection_id: str
    user_id: str | None
    joined_at: float
    """Seconds since the epoch."""


class RoomMessage(NamedTuple):
    """One message of a room's history."""

    event: str
    payload: dict[str, Any]
    offset: int
    epoch: str
    tag: str


def room_message(publication: Publication) -> RoomMessage:
    """A publication of a history, with its payload parsed."""
    position = publication.position or Position(0, "")
    return RoomMessage(publication.event, from_json(publication.payload), *position)
