"""One event may be declared with several models: strict mode allows what fits one of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from socketspec import Broadcasts, Connection, Emits, SocketApp
from socketspec.testing import TestClient


class Price(BaseModel):
    price: float


class Halt(BaseModel):
    halted: bool


def app_with(*models: Any) -> SocketApp:
    app = SocketApp()
    room = "market:{symbol}"

    @app.on(
        "act",
        emits=[Emits("quote", model) for model in models],
        broadcasts=[Broadcasts("quote", room, model) for model in models],
    )
    async def act(conn: Connection, payload: dict[str, Any]) -> None:
        if payload["how"] == "emit":
            await conn.emit("quote", payload["with"])
        else:
            await app.rooms.broadcast("market:X", "quote", payload["with"])

    return app


async def outcome(app: SocketApp, how: str, payload: dict[str, Any]) -> str:
    """How a handler's call ends that sends `payload`."""
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("act", {"how": how, "with": payload}, id=1)
        while True:
            message = await conn.receive()
            if message.get("id") == 1:
                event: str = message["event"]
                return event


@pytest.mark.parametrize("how", ["emit", "broadcast"])
@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"price": 1.5}, "__ack__"),
        ({"halted": True}, "__ack__"),
        ({"neither": 1}, "__error__"),
        ({"price": "dear"}, "__error__"),
    ],
)
async def test_a_payload_has_to_fit_one_of_the_models(
    how: str, payload: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await outcome(app_with(Price, Halt), how, payload) == expected
    if expected == "__error__":  # says what is wrong with each
        assert "price" in caplog.text
        assert "halted" in caplog.text


@pytest.mark.parametrize("how", ["emit", "broadcast"])
@pytest.mark.parametrize("models", [(None, Price), (Price, None)])
async def test_a_declaration_without_a_model_beside_one_allows_anything(how: str, models: tuple[Any, ...]) -> None:
    assert await outcome(app_with(*models), how, {"neither": 1}) == "__ack__"
