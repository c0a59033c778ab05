"""A chat with rooms, presence, typing and history, on SocketSpec. Copy from it, and from `chat` beside it.

Run it with ``socketspec demo``, or as any FastAPI application: ``uvicorn socketspec.cli.demo.app:app``.
"""

from __future__ import annotations

import os
import time
from typing import Annotated

from fastapi import FastAPI, Response
from pydantic import StringConstraints

from socketspec import Connection, Identity, Room, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.cli.demo import chat
from socketspec.cli.demo.messages import MESSAGE, TYPING, ChatMessage, InRoom, Presence, Typing
from socketspec.errors import AuthError, PermissionDenied
from socketspec.protocol.handshake import Handshake
from socketspec.security.ratelimit import RateLimit

MAX_NAMES = 100
"""Names a presence message lists at most; `count` always counts everybody."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Say(InRoom):
    """What somebody wants to say. `key` is chosen by the client: sending it twice says it once."""

    text: Text
    key: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class GuestAuth:
    """Lets everybody in under the name they give. A real app checks a token here; see `JWTAuth`."""

    async def authenticate(self, handshake: Handshake) -> Identity:
        """The guest of ``?name=``."""
        name = " ".join(handshake.query_params.get("name", "").split())
        if not 1 <= len(name) <= 30 or not name.isprintable():
            raise AuthError("Connect with ?name= and a name of 1 to 30 printable characters.")
        return Identity(user_id=name)


socket: SocketApp = SocketApp(
    title="SocketSpec demo chat",
    description="Rooms with presence, typing and history. Open two tabs.",
    docs=True,
    auth=GuestAuth(),
    rate_limit=RateLimit(rate=10, capacity=30),
    max_payload_size=8192,
    max_rooms_per_connection=20,
    rooms=[
        chat.SAID,
        Room("live:{room}", max_members=500, description="Who is there and who is typing"),
    ],
)


chat.register(socket)


@socket.on("say", tags=["chat"], ordered=True, broadcasts=[MESSAGE])
async def say(conn: Connection, payload: Say) -> None:
    """Say something to everybody in a room."""
    message = ChatMessage(room=payload.room, name=guest(conn, payload.room), text=payload.text, at=time.time())
    key = f"{message.name}/{payload.key}"
    await socket.rooms.broadcast(f"chat:{payload.room}", "message", message, idempotency_key=key)


@socket.on("typing", tags=["chat"], broadcasts=[TYPING])
async def typing(conn: Connection, payload: InRoom) -> None:
    """Tell the others in a room that you are typing."""
    who = Typing(room=payload.room, name=guest(conn, payload.room))
    await socket.rooms.broadcast(f"live:{payload.room}", "typing", who, exclude=conn)


def guest(conn: Connection, room: str) -> str:
    """The name of somebody who is in the room."""
    if f"chat:{room}" not in conn.rooms:
        raise PermissionDenied(f"Join {room!r} before you speak in it.")
    return str(conn.identity.user_id)


@socket.on_room_join
async def came(conn: Connection, room: str) -> None:
    """Also runs when a client resumes."""
    await announce(room, joined=conn.identity.user_id)


@socket.on_room_leave
async def went(conn: Connection, room: str) -> None:
    """Also runs when a tab is closed or a connection drops."""
    await announce(room, left=conn.identity.user_id)


async def announce(room: str, *, joined: str | None = None, left: str | None = None) -> None:
    """Tell a room who is in it."""
    kind, _, name = room.partition(":")
    if kind == "live":
        names = [str(member.user_id) for member in await socket.rooms.members(room)]
        presence = Presence(room=name, count=len(names), names=names[:MAX_NAMES], joined=joined, left=left)
        await socket.rooms.broadcast(room, "presence", presence)


app: FastAPI = FastAPI(title="SocketSpec demo", docs_url=None, redoc_url=None, openapi_url=None)
mount(socket, app, path="/ws")


@app.get("/nodes")
async def nodes() -> dict[str, list[int]]:
    """The ports of the demo's nodes, where there are several: the page links to the others."""
    return {"ports": [int(port) for port in os.environ.get("SOCKETSPEC_DEMO_PORTS", "").split(",") if port]}


@app.get("/")
@app.get("/page.{kind}")
async def page(kind: str = "html") -> Response:
    """The chat's page, its script and its style."""
    return chat.page(kind)
