"""Strict mode: which sends of a handler are its own, and what its declarations allow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from socketspec import Broadcasts, Connection, Emits, SocketApp
from socketspec.errors import ConfigurationError, ContractError
from socketspec.testing import TestClient
from tests.engines import running
from tests.identities import ByName


class Price(BaseModel):
    value: float = 1.0


class Word(BaseModel):
    value: str


class Needed(BaseModel):
    value: float


async def raised(
    act: Any, *, emits: Sequence[Emits] | None = None, broadcasts: Sequence[Broadcasts] | None = None
) -> str:
    """The `ContractError` that `act(app, conn)` meets in a handler with these declarations; "" for none."""
    app = SocketApp(auth=ByName())
    met: list[str] = []

    @app.on("act", emits=emits, broadcasts=broadcasts)
    async def handler(conn: Connection) -> None:
        try:
            await act(app, conn)
        except ContractError as error:
            met.append(str(error))

    async with TestClient(app) as client:
        conn = await client.connect(query_params={"user": "ada"})
        await conn.send("act", id=1)
        await conn.receive_event("__ack__")
    return "".join(met)


async def emit(app: SocketApp, conn: Connection) -> None:
    await conn.emit("price", {"value": 2})


async def emit_nothing(app: SocketApp, conn: Connection) -> None:
    await conn.emit("price")


async def to_room(app: SocketApp, conn: Connection) -> None:
    await app.rooms.broadcast("market:X", "price", {"value": 2})


async def to_all(app: SocketApp, conn: Connection) -> None:
    await app.rooms.broadcast_all("price", {"value": 2})


async def to_user(app: SocketApp, conn: Connection) -> None:
    await app.users.send("ada", "price", {"value": 2})


@pytest.mark.parametrize(
    ("act", "emits", "allowed"),
    [
        (emit, None, True),
        (emit, [], False),
        (emit, [Emits("other")], False),
        (emit, [Emits("price")], True),
        (emit, [Emits("other"), Emits("price", Price)], True),
        (emit_nothing, [Emits("price", Price)], True),
        (emit_nothing, [Emits("price", Needed)], False),
        (to_room, [], True),
        (to_all, [], True),
        (to_user, [], True),
    ],
)
async def test_emits_are_what_a_handler_may_send_to_its_client(
    act: Any, emits: Sequence[Emits] | None, allowed: bool
) -> None:
    assert (await raised(act, emits=emits) == "") is allowed


ANY, ONE, FAMILY, OTHER = (
    Broadcasts("price"),
    Broadcasts("price", room="market:X"),
    Broadcasts("price", room="market:{symbol}"),
    Broadcasts("price", room="market:Y"),
)


@pytest.mark.parametrize(
    ("act", "broadcasts", "allowed"),
    [
        (emit, [], True),
        (to_room, None, True),
        (to_room, [], False),
        (to_room, [ANY], True),
        (to_room, [ONE], True),
        (to_room, [FAMILY], True),
        (to_room, [OTHER], False),
        (to_room, [OTHER, ONE], True),
        (to_room, [Broadcasts("other", room="market:X")], False),
        (to_all, None, True),
        (to_all, [], False),
        (to_all, [ANY], True),
        (to_all, [FAMILY], False),
        (to_user, None, True),
        (to_user, [ANY], True),
        (to_user, [ONE], False),
    ],
)
async def test_broadcasts_are_what_a_handler_may_send_to_others(
    act: Any, broadcasts: Sequence[Broadcasts] | None, allowed: bool
) -> None:
    assert (await raised(act, broadcasts=broadcasts) == "") is allowed


async def test_the_error_says_what_was_sent_to_whom_and_what_is_declared() -> None:
    assert await raised(emit, emits=[Emits("a"), Emits("b")]) == (
        "The handler of 'act' emits 'price', which it does not declare (declared: a, b); "
        "add Emits('price', …) to emits=[…]."
    )
    assert "(declared: nothing)" in await raised(emit, emits=[])
    declared = [Broadcasts("a", room="r"), Broadcasts("b")]
    assert await raised(to_room, broadcasts=declared) == (
        "The handler of 'act' broadcasts 'price' to room 'market:X', which it does not declare "
        "(declared: a → r, b → everybody); add Broadcasts('price', …) to broadcasts=[…]."
    )
    assert "'price' to everybody, which" in await raised(to_all, broadcasts=declared)
    assert "'price' to a user, which" in await raised(to_user, broadcasts=declared)
    wrong = await raised(emit_nothing, emits=[Emits("price", Needed)])
    assert wrong.startswith("The handler of 'act' emits 'price' with a payload that does not fit its declaration: ")
    wrong = await raised(to_room, broadcasts=[Broadcasts("price", model=Word)])
    assert "to room 'market:X' with a payload" in wrong


async def test_after_a_hook_the_handler_is_held_to_its_declarations_again() -> None:
    app = SocketApp()
    met: list[str] = []

    @app.on_room_join
    async def came(conn: Connection, room: str) -> None:
        await conn.emit("welcome")

    @app.on("enter", emits=[])
    async def enter(conn: Connection) -> None:
        await app.rooms.join(conn, "hall")
        try:
            await conn.emit("undeclared")
        except ContractError as error:
            met.append(str(error))

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("enter", id=1)
        assert [(await conn.receive())["event"] for _ in range(2)] == ["welcome", "__ack__"]
    assert len(met) == 1


async def test_what_no_handler_sends_is_nobodys_to_declare() -> None:
    app = SocketApp()

    @app.on("act", emits=[], broadcasts=[])
    async def act(conn: Connection) -> None: ...

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("act", id=1)
        await conn.receive()
        await conn.connection.emit("free")
        await app.rooms.broadcast_all("free too")
        assert [(await conn.receive())["event"] for _ in range(2)] == ["free", "free too"]


async def test_handlers_side_by_side_are_each_held_to_their_own() -> None:
    app = SocketApp()
    both = asyncio.Barrier(2)
    outcomes: dict[str, bool] = {}

    async def try_both(conn: Connection, name: str) -> None:
        await both.wait()
        try:
            await conn.emit("one")
            outcomes[name] = True
        except ContractError:
            outcomes[name] = False

    @app.on("first", emits=[Emits("one")])
    async def first(conn: Connection) -> None:
        await try_both(conn, "first")

    @app.on("second", emits=[Emits("two")])
    async def second(conn: Connection) -> None:
        await try_both(conn, "second")

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("first", id=1)
        await conn.send("second", id=2)
        for _ in range(3):
            await conn.receive()
    assert outcomes == {"first": True, "second": False}


@pytest.mark.parametrize("strict", [None, True, False])
@pytest.mark.parametrize("debug", [True, False])
async def test_an_app_is_strict_where_it_says_so_and_in_debug_mode(strict: bool | None, debug: bool) -> None:
    app = SocketApp(strict=strict, debug=debug)
    engine = await running(app)
    try:
        assert engine.contracts.strict is (debug if strict is None else strict)
    finally:
        await app.stop()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tags": "chat"}, "tags must be a list"),
        ({"tags": 5}, "tags must be a list"),
        ({"emits": "price"}, "must be a list of Emits"),
        ({"emits": 5}, "must be a list of Emits"),
        ({"broadcasts": "price"}, "must be a list of Broadcasts"),
        ({"broadcasts": [Emits("a")]}, "write Broadcasts("),
        ({"emits": [Emits("ok"), Emits("")]}, "emits=[Emits('', …)]"),
        ({"emits": [Emits("__ack__")]}, "'__ack__' is reserved"),
        ({"emits": [Emits("a", model=object())]}, ""),
        ({"broadcasts": [Broadcasts("a", model=object())]}, ""),
        ({"broadcasts": [Broadcasts("a", room="x:{")]}, "x:{"),
    ],
)
def test_declarations_that_cannot_be_meant_say_what_to_write(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SocketApp().on("act", **options)
    assert says in str(refused.value)


def test_tags_may_be_any_sequence_and_declarations_too() -> None:
    app = SocketApp()

    @app.on("act", tags=("a", "b"), emits=(Emits("x"),), broadcasts=(Broadcasts("y"), Broadcasts("y", room="r")))
    async def act(conn: Connection) -> None: ...

    assert app.schema()["events"][0]["tags"] == ["a", "b"]
