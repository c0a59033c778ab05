"""Dependencies and events that tests of dependencies use, and how they ask."""

from __future__ import annotations

from typing import Any

from socketspec import Connection, SocketApp
from socketspec.testing import TestConnection


async def nobody() -> str | None:
    return None


def somebody() -> str:
    return "ada"


async def ask(conn: TestConnection, event: str, payload: object = None) -> Any:
    """The answer's payload: of an `__ack__` as it is, of an `__error__` its code."""
    await conn.send(event, payload, id=1)
    answer = await conn.receive()
    return answer["payload"]["code"] if answer["event"] == "__error__" else answer["payload"]


def joining(socket: SocketApp) -> None:
    """An event that joins the room that the client names."""

    @socket.on("join")
    async def join(conn: Connection, payload: dict[str, str]) -> None:
        await socket.rooms.join(conn, payload["room"])
