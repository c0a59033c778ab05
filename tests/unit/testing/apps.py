"""The app that tests of the test client connect to."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from socketspec import Connection, History, Identity, Room, SocketApp
from socketspec.errors import EventError
from socketspec.security.auth import APIKeyAuth

__all__ = ("ADA", "Order", "Receipt", "shop")

ADA = Identity(user_id="ada")


class Order(BaseModel):
    item: str
    quantity: int = 1


class Receipt(BaseModel):
    number: int
    item: str


def shop(**options: object) -> SocketApp:
    """An app with orders: each is announced to a room with history, and answered."""
    socket = SocketApp(
        rooms=[Room("orders", history=History(size=10, ttl=60))],
        auth=APIKeyAuth(valid_keys={"key": ADA}),
        **options,  # type: ignore[arg-type] # whatever a test sets
    )

    @socket.room_guard("orders")
    async def everybody(conn: Connection) -> bool:
        return True

    @socket.on("watch")
    async def watch(conn: Connection) -> None:
        await socket.rooms.join(conn, "orders")

    @socket.on("order")
    async def order(conn: Connection, payload: Order) -> Receipt:
        if payload.item == "gold":
            raise EventError("There is none left.", code="SOLD_OUT", details={"item": "gold"})
        await socket.rooms.broadcast("orders", "ordered", payload)
        return Receipt(number=1, item=payload.item)

    @socket.on("slow")
    async def slow(conn: Connection) -> None:
        for _ in range(50):
            await asyncio.sleep(0)
        await conn.emit("done")

    @socket.on("divide")
    async def divide(conn: Connection) -> None:
        1 / 0  # noqa: B018 - that is the point

    @socket.on("whoami")
    async def whoami(conn: Connection) -> dict[str, str | None]:
        return {"user": conn.identity.user_id}

    return socket
