"""What the demo chat, and the reference node in the image, send to their clients."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, Field

from socketspec import Broadcasts

__all__ = ("MESSAGE", "PRESENCE", "TYPING", "ChatMessage", "Joined", "Kept", "Presence", "Typing")


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
