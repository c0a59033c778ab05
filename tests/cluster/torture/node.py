"""The program of a node. Its hooks write a journal that outlives it, and it has pages for those who run the test.

It is run as a module of its own, ``import tests.cluster.torture.clock`` before this one: see `ground`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from socketspec import Connection, Room, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.backend import History
from socketspec.cluster import RedisBackend
from socketspec.errors import BackendError
from socketspec.security.auth import JWTAuth
from socketspec.session import SessionConfig
from tests.cluster.torture import breaks, clock
from tests.cluster.torture.common import COMMAND_TIMEOUT, CONNECTIONS_PER_USER, LEASE, ROOMS, SECRET, SESSION, SMALL

__all__ = ("app",)

logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s")
breaks.apply(os.environ.get("TORTURE_BREAK", ""))

socket = SocketApp(
    backend=RedisBackend(
        os.environ["REDIS_URL"],
        lease=LEASE,
        command_timeout=COMMAND_TIMEOUT,
        connect_timeout=1.5,
        probe_interval=0.5,
        probe_timeout=1.5,
    ),
    auth=JWTAuth(secret=SECRET, algorithm="HS256"),
    rooms=[
        Room("talk:{n}"),
        Room("log:{n}", history=History(size=5000, ttl=900), client_join=True),
        Room("small:{n}", max_members=SMALL),
    ],
    session=SessionConfig(max_duration=SESSION),
    max_connections_per_user=CONNECTIONS_PER_USER,
    drain_window=0.3,
    drain_grace=1,
)
journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
present: dict[str, Connection] = {}


def note(what: str, conn: Connection, room: str) -> None:
    """One line, in the kernel's hands when this returns: SIGKILL takes nothing of it."""
    os.write(journal, json.dumps([time.monotonic(), what, conn.id, room]).encode() + b"\n")


@socket.on_connect
async def opened(conn: Connection) -> None:
    present[conn.id] = conn
    note("open", conn, "")


@socket.on_disconnect
async def closed(conn: Connection, reason: str) -> None:
    present.pop(conn.id, None)
    note("close", conn, reason)


@socket.on_room_join
async def joined(conn: Connection, room: str) -> None:
    note("join", conn, room)


@socket.on_room_leave
async def left(conn: Connection, room: str) -> None:
    note("leave", conn, room)


@socket.on("join")
async def join(conn: Connection, payload: dict[str, str]) -> None:
    await socket.rooms.join(conn, payload["room"])


@socket.on("leave")
async def leave(conn: Connection, payload: dict[str, str]) -> None:
    await socket.rooms.leave(conn, payload["room"])


@socket.on("say")
async def say(conn: Connection, payload: dict[str, str]) -> None:
    await socket.rooms.broadcast(payload["room"], "said", payload, idempotency_key=payload["n"])


app = FastAPI()
mount(socket, app)


@app.exception_handler(BackendError)
async def unavailable(_: Request, error: Exception) -> PlainTextResponse:
    """Whoever asks for a page is told, and no traceback is logged."""
    return PlainTextResponse(str(error), 503)


@app.get("/picture")
async def picture(users: str) -> dict[str, Any]:
    """What this node says of its own connections, and of the rooms and users of all nodes."""
    rooms = {
        room: {
            "members": [member.connection_id for member in await socket.rooms.members(room)],
            "count": await socket.rooms.count(room),
        }
        for room in ROOMS
    }
    return {
        "connections": {conn.id: sorted(conn.rooms) for conn in present.values() if conn.is_open},
        "rooms": rooms,
        "users": {user: await socket.users.count(user) for user in users.split(",")},
    }


@app.get("/history/{room}")
async def history(room: str, limit: int) -> list[tuple[str, int, str, str]]:
    kept = await socket.rooms.history(room, limit=limit)
    return [(message.payload["n"], message.offset, message.epoch, message.tag) for message in kept]


@app.post("/say/{room}/{n}")
async def say_here(room: str, n: str) -> None:
    await socket.rooms.broadcast(room, "said", {"room": room, "n": n}, idempotency_key=n)


@app.post("/disconnect/{user}")
async def disconnect(user: str) -> None:
    await socket.users.disconnect(user, reason="kicked")


@app.post("/revoke/{user}")
async def revoke(user: str) -> None:
    await socket.sessions.revoke(user=user)


@app.post("/clock/{seconds}")
async def set_clock(seconds: float) -> None:
    clock.set_wrong(seconds)
