"""A model that is declared for an event filters what is sent by its name, whoever sends it, in every mode."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from socketspec import Broadcasts, Connection, Emits, SocketApp
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.requests import Requests
from socketspec.errors import ContractError
from socketspec.testing import TestClient


class Public(BaseModel):
    name: str


class Stored(Public):
    hashed_password: str = "s3cret"


ADA = Stored(name="ada")


def chat() -> SocketApp:
    app = SocketApp()

    @app.on(
        "me",
        emits=[Emits("profile", model=Public)],
        broadcasts=[Broadcasts("seen", room="chat:{name}", model=Public), Broadcasts("free")],
    )
    async def me(conn: Connection) -> None:
        await app.rooms.join(conn, "chat:a")
        await conn.emit("profile", ADA)
        await app.rooms.broadcast("chat:a", "seen", ADA)

    @app.on("admin", emits=[Emits("profile", model=Stored)])
    async def admin(conn: Connection) -> None:
        await conn.emit("profile", ADA)

    @app.on("undeclared")
    async def undeclared(conn: Connection) -> None:
        await conn.emit("other", ADA)

    return app


@pytest.mark.parametrize("strict", [True, False])
async def test_handlers_send_what_they_declare(strict: bool) -> None:
    async with TestClient(chat(), strict=strict) as client:
        conn = await client.connect()
        await conn.send("me", id=1)
        assert (await conn.receive())["payload"] == {"name": "ada"}
        assert (await conn.receive_event("seen"))["payload"] == {"name": "ada"}
        await conn.send("admin", id=2)
        admin = (await conn.receive_event("profile"))["payload"]
        assert admin == {"name": "ada", "hashed_password": "s3cret"}, "each handler has a contract of its own"
        await conn.send("undeclared", id=3)
        assert "hashed_password" in (await conn.receive_event("other"))["payload"]


@pytest.mark.parametrize("strict", [True, False])
async def test_routes_and_other_code_are_held_to_what_handlers_declare(strict: bool) -> None:
    app = chat()
    async with TestClient(app, strict=strict) as client:
        conn = await client.connect()
        await conn.send("me", id=1)
        await conn.receive_event("__ack__")
        await app.rooms.broadcast("chat:a", "seen", ADA)
        assert (await conn.receive_event("seen"))["payload"] == {"name": "ada"}
        await app.rooms.broadcast_all("seen", ADA)
        assert (await conn.receive_event("seen"))["payload"] == {"name": "ada"}
        await conn.connection.emit("seen", ADA)
        assert (await conn.receive_event("seen"))["payload"] == {"name": "ada"}
        for wrong in ({"nam": "ada"}, None, Public.model_construct(name=1)):
            with pytest.raises(ContractError, match="broadcasts 'seen' to room 'chat:a' with a payload that does not"):
                await app.rooms.broadcast("chat:a", "seen", wrong)


async def test_of_several_models_for_one_event_the_closest_is_taken() -> None:
    app = chat()
    async with TestClient(app) as client:
        conn = await client.connect()
        for given, expected in ((Public(name="a"), {"name": "a"}), (ADA, {"name": "ada", "hashed_password": "s3cret"})):
            await conn.connection.emit("profile", given)
            assert (await conn.receive())["payload"] == expected


async def test_a_handler_of_one_app_may_send_with_another() -> None:
    other = SocketApp(namespace="/other")
    app = SocketApp()

    @app.on("act", emits=[], broadcasts=[Broadcasts("seen", model=Public)])
    async def act(conn: Connection) -> None:
        await other.rooms.broadcast_all("undeclared here", ADA)

    async with TestClient(other), TestClient(app) as client:
        conn = await client.connect()
        await conn.send("act", id=1)
        assert (await conn.receive())["event"] == "__ack__"


def sent(broadcasts: list[Broadcasts], payload: Any) -> bytes:
    requests = Requests(Keys("test", 0), broadcasts=broadcasts)
    request = requests.broadcast("orders:7", "seen", payload, (), None, None)
    return b"".join(part for part in request.stages[0][0].args if isinstance(part, bytes))


def test_a_publisher_filters_and_refuses_before_it_sends() -> None:
    declared = [Broadcasts("seen", room="orders:{id}", model=Public)]
    assert b"s3cret" in sent([], ADA)
    assert b"ada" in sent(declared, ADA)
    assert b"s3cret" not in sent(declared, ADA)
    assert b"s3cret" not in sent(declared, {"name": "ada", "hashed_password": "s3cret"})
    with pytest.raises(ContractError, match="The publisher broadcasts 'seen' to room 'orders:7' with a payload that"):
        sent(declared, {"name": 1})
    with pytest.raises(ContractError, match="which it does not declare"):
        sent([Broadcasts("seen", room="other:{id}", model=Public)], ADA)
