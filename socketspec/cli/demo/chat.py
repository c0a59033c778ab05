"""What the demo chat and the reference node in the image do alike: enter rooms and leave them, and serve the page.

Two rooms stand behind each chat room: what was said is kept, so that a client whose connection dropped resumes without
a gap; who is there and who is typing is worth nothing a moment later, and is not.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import Response

from socketspec import Connection, History, Room, SocketApp
from socketspec.cli.demo.messages import PRESENCE, ROOM, ChatMessage, InRoom, Joined, Kept

__all__ = ("SAID", "page", "register")

SAID: Final = Room("chat:{room}", history=History(size=50, ttl=3600), description="What was said, kept for an hour")


def register(socket: SocketApp) -> None:
    """Have `socket` handle ``join`` and ``leave``, and ask of a room's name what they ask for."""

    @socket.room_guard("chat:{room}")
    @socket.room_guard("live:{room}")
    async def name_is_fine(conn: Connection, room: str) -> bool:
        """Clients that resume name their rooms themselves: what `InRoom` asks for is asked of them, too."""
        return ROOM.fullmatch(room) is not None

    @socket.on("join", tags=["rooms"], ordered=True, broadcasts=[PRESENCE])
    async def join(conn: Connection, payload: InRoom) -> Joined:
        """Enter a room and get its history. Entering again changes nothing and returns the history anew."""
        return await _enter(socket, conn, payload.room)

    @socket.on("leave", tags=["rooms"], ordered=True, broadcasts=[PRESENCE])
    async def leave(conn: Connection, payload: InRoom) -> None:
        """Leave a room."""
        await socket.rooms.leave(conn, f"live:{payload.room}")
        await socket.rooms.leave(conn, f"chat:{payload.room}")


async def _enter(socket: SocketApp, conn: Connection, room: str) -> Joined:
    """Put a connection into a room; what was said there."""
    await socket.rooms.join(conn, f"chat:{room}")
    await socket.rooms.join(conn, f"live:{room}")
    history = [
        Kept(message=ChatMessage(**kept.payload), offset=kept.offset, epoch=kept.epoch, tag=kept.tag)
        for kept in await socket.rooms.history(f"chat:{room}")
    ]
    return Joined(room=room, history=history)


def page(kind: str) -> Response:
    """The chat's page (``html``), its script (``js``) or its style (``css``)."""
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    if kind not in types:
        return Response(status_code=404)
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
    content = files("socketspec.cli.demo").joinpath(f"page.{kind}").read_bytes()
    return Response(content, media_type=types[kind], headers=headers)
