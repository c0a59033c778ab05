"""What the demo chat and the reference node in the image do alike: enter a room and leave it, and serve the page.

Two rooms stand behind each chat room: what was said is kept, so that a client whose connection dropped resumes without
a gap; who is there and who is typing is worth nothing a moment later, and is not.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from fastapi import Response

from socketspec import Connection, History, Room, SocketApp
from socketspec.cli.demo.messages import ChatMessage, Joined, Kept

__all__ = ("SAID", "enter", "leave", "page")

SAID: Final = Room("chat:{room}", history=History(size=50, ttl=3600), description="What was said, kept for an hour")


async def enter(socket: SocketApp, conn: Connection, room: str) -> Joined:
    """Put a connection into a room; what was said there. Entering again changes nothing and gives the history anew."""
    await socket.rooms.join(conn, f"chat:{room}")
    await socket.rooms.join(conn, f"live:{room}")
    history = [
        Kept(message=ChatMessage(**kept.payload), offset=kept.offset, epoch=kept.epoch, tag=kept.tag)
        for kept in await socket.rooms.history(f"chat:{room}")
    ]
    return Joined(room=room, history=history)


async def leave(socket: SocketApp, conn: Connection, room: str) -> None:
    """Take a connection out of a room."""
    await socket.rooms.leave(conn, f"live:{room}")
    await socket.rooms.leave(conn, f"chat:{room}")


def page(kind: str) -> Response:
    """The chat's page (``html``), its script (``js``) or its style (``css``)."""
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    if kind not in types:
        return Response(status_code=404)
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
    content = files("socketspec.cli.demo").joinpath(f"page.{kind}").read_bytes()
    return Response(content, media_type=types[kind], headers=headers)
