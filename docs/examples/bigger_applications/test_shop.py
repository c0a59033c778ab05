"""How the parts work together."""

import time

import jwt
from shop.main import socket

from socketspec.testing import TestClient


def headers(role: str) -> dict[str, str]:
    claims = {"sub": role, "role": role, "exp": int(time.time()) + 3600}
    return {"Authorization": f"Bearer {jwt.encode(claims, 'change me, I am 32 characters long')}"}


async def test_the_last_one_is_sold_once() -> None:
    async with TestClient(socket) as client:
        guest = await client.connect(headers=headers("guest"))
        await guest.send("orders.place", {"item": "tea"}, id=1)
        assert (await guest.receive())["payload"] == {"name": "tea", "left": 0}
        await guest.send("orders.place", {"item": "tea"}, id=2)
        assert (await guest.receive())["payload"]["code"] == "SOLD_OUT"
        await guest.send("orders.place", {"item": "tea"}, id=3)
        assert (await guest.receive())["payload"]["code"] == "RATE_LIMIT_ERROR"


async def test_only_the_staff_says_what_there_is() -> None:
    async with TestClient(socket) as client:
        guest = await client.connect(headers=headers("guest"))
        await guest.send("stock.set", {"name": "tea", "left": 5}, id=1)
        assert (await guest.receive())["payload"]["code"] == "PERMISSION_ERROR"
        staff = await client.connect(headers=headers("staff"))
        await staff.send("stock.set", {"name": "tea", "left": 5}, id=1)
        assert (await staff.receive())["event"] == "__ack__"
