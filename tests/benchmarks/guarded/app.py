"""What the guard serves: a small application, written as the tutorial teaches it."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount

ORIGIN = "https://app.example.com"


class Say(BaseModel):
    room: str
    text: str


class Said(BaseModel):
    length: int


socket = SocketApp(allowed_origins=[ORIGIN])
opened: list[str] = []
"""Connections whose `on_connect` has ended, until somebody clears it."""
closed: list[str] = []
"""Why connections ended, likewise."""


@socket.on_connect
async def on_connect(conn: Connection) -> None:
    if (room := conn.query_params.get("room")) is not None:
        await socket.rooms.join(conn, room)
    opened.append(conn.id)


@socket.on_disconnect
async def on_disconnect(conn: Connection, reason: str) -> None:
    closed.append(reason)


@socket.on("say")
async def say(conn: Connection, payload: Say) -> Said:
    return Said(length=len(payload.text))


app = FastAPI()
mount(socket, app)
