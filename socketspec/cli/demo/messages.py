"""What clients and the demo chat, or the reference node in the image, send to each other."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BaseModel, Field, StringConstraints

from socketspec import Broadcasts

__all__ = ("MESSAGE", "PRESENCE", "ROOM", "TYPING", "ChatMessage", "InRoom", "Joined", "Kept", "Presence", "Typing")

ROOM: Final = re.compile("[a-z0-9][a-z0-9-]{0,62}")
RoomName = Annotated[str, StringConstraints(pattern=f"^{ROOM.pattern}$")]


class InRoom(BaseModel):
    """Names a room: lower-case letters, digits and hyphens."""

    room: RoomName


class ChatMessage(BaseModel):
    """What everybody in the room gets."""

    room: str
    name: str
    text: str
    at: float = Field(description="Seconds since the epoch")


class Kept(BaseModel):
    """A message of the room's history and where it stands there."""

    message: ChatMessage
    offset: int
    epoch: str
    tag: str


class Joined(BaseModel):
    """The answer to `join`: what was said before."""

    room: str
    history: list[Kept]


class Presence(BaseModel):
    """Who is in the room now, and who just came or went."""

    room: str
    count: int
    names: list[str]
    joined: str | None = None
    left: str | None = None


class Typing(BaseModel):
    """Somebody is typing."""

    room: str
    name: str


PRESENCE: Final = Broadcasts("presence", room="live:{room}", model=Presence, description="Somebody came or went")
MESSAGE: Final = Broadcasts("message", room="chat:{room}", model=ChatMessage)
TYPING: Final = Broadcasts("typing", room="live:{room}", model=Typing)
