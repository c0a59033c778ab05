"""A payload's default stands for a payload that the client does not send; what could never be a payload is refused."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import WebSocket
from pydantic import BaseModel, Field

from socketspec import Connection, Depends, SocketApp
from socketspec.errors import ConfigurationError
from socketspec.testing import EventFailed, TestClient


class Page(BaseModel):
    number: int = 7


class Order(BaseModel):
    id: int


FIRST = Page(number=1)
WITH_X: dict[str, Any] = {"x": []}


@pytest.mark.parametrize("format", ["json", "msgpack"])
async def test_a_default_is_what_a_message_without_a_payload_brings(format: Any) -> None:
    socket = SocketApp()

    @socket.on("page")
    async def page(conn: Connection, page: Page = FIRST) -> Page:
        page.number, before = 99, page.number  # the handler's own copy
        return Page(number=before)

    @socket.on("anything")
    async def anything(conn: Connection, payload: dict[str, Any] = WITH_X) -> dict[str, Any]:
        payload.setdefault("x", []).append(1)
        return payload

    @socket.on("order")
    async def order(conn: Connection, order: Order | None = None) -> dict[str, Any]:
        return {"order": order}

    @socket.on("implicit")
    async def implicit(conn: Connection, order: Order = None) -> dict[str, Any]:  # type: ignore[assignment] # as many write it
        return {"order": order}

    async with TestClient(socket) as client, client.connect(format=format) as conn:
        for _ in range(2):
            assert await conn.request("page") == {"number": 1}
            assert await conn.request("anything") == {"x": [1]}
        assert await conn.request("page", {}) == {"number": 7}  # an empty object is a payload
        assert await conn.request("page", {"number": 3}) == {"number": 3}
        assert await conn.request("anything", {}) == {"x": [1]}
        for event in ("order", "implicit"):
            assert await conn.request(event) == {"order": None}
            assert await conn.request(event, {"id": 1}) == {"order": {"id": 1}}
            with pytest.raises(EventFailed, match="VALIDATION_ERROR"):
                await conn.request(event, {})


async def test_null_is_no_payload_and_without_a_default_no_payload_is_an_empty_object() -> None:
    socket = SocketApp()

    @socket.on("order")
    async def order(conn: Connection, order: Order | None = None) -> dict[str, Any]:
        return {"order": order}

    @socket.on("anything")
    async def anything(conn: Connection, payload: dict[str, Any]) -> dict[str, Any]:
        return {"is_dict": type(payload) is dict}

    async with TestClient(socket) as client, client.connect() as conn:
        await conn.send_raw('{"event":"order","payload":null,"id":1}')
        assert (await conn.receive())["payload"] == {"order": None}
        assert await conn.request("anything") == {"is_dict": True}


async def optional(conn: Connection, order: Order | None) -> None: ...
async def by_name(conn: Connection, *, order: Order) -> None: ...
async def by_name_with_default(conn: Connection, *, page: Page = FIRST) -> None: ...
async def two(conn: Connection, order: Order, page: Page) -> None: ...
async def two_with_default(conn: Connection, order: Order, page: Page = FIRST) -> None: ...


OF_A_FIELD: Any = Field(default=None)


async def of_a_field(conn: Connection, order: Order = OF_A_FIELD) -> None: ...
async def a_number(conn: Connection, limit: int = 10) -> None: ...


async def of_a_socket(ws: WebSocket, order: Order) -> None: ...
async def marked_by_type(conn: Connection, order: Order, *, z: Depends(Order)) -> None: ...  # type: ignore[valid-type] # refused
def unannotated(conn) -> None: ...  # type: ignore[no-untyped-def] # as many write it


UNANNOTATED: Any = Depends(unannotated)


async def of_unannotated(conn: Connection, order: Order, z: None = UNANNOTATED) -> None: ...


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (of_a_socket, "gets the connection.*write `conn: Connection` first"),
        (marked_by_type, r"'z' has Depends\(\) for its type.*Write z: Annotated"),
        (of_unannotated, "'conn' has no annotation, .* Write conn: Connection"),
        (a_number, r"write limit: Annotated\[…, Query\(\)\] = "),
        (optional, "give it a default, such as None"),
        (by_name, "before the `\\*`"),
        (by_name_with_default, "before the `\\*`"),
        (two, "'order', and an event has only one.*one model"),
        (two_with_default, "'order', and an event has only one.*one model"),
        (of_a_field, "Write the value itself"),
        (a_number, "put a single value, a list or an optional value in a field"),
    ],
)
def test_what_could_never_be_the_payload_is_refused_with_what_to_write(handler: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SocketApp().on("event")(handler)
