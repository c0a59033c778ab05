"""Errors, close reasons and details are bounded as a whole, whoever chose what is in them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from socketspec import Connection, SocketApp
from socketspec.connection.sender import MAX_DETAIL, MAX_DETAILS, MAX_ERROR, MAX_MESSAGE
from socketspec.declaration.payloads import PayloadType
from socketspec.errors import ErrorCode, EventError, ValidationFailed
from socketspec.protocol.orders import disconnect_order, revoke_order
from socketspec.testing import ConnectionClosed, TestClient

LARGEST = 3 * MAX_ERROR
"""No error is longer than this, in bytes."""


class Item(BaseModel):
    n: int
    tags: list[Annotated[str, Field(max_length=1)]] = []


class Order(BaseModel):
    items: dict[str, list[Item]]


LONG_KEY = {"items": {"k" * 3000: [{"n": "x", "tags": ["yy"] * 30}] * 30}}
KEYS_OF_CONTROL_CHARACTERS = {"items": {"\x00" * 3000: [{"n": "x"}] * 30}}
NESTED: dict[str, Any] = {"k" * 300: True}
for _ in range(60):
    NESTED = {"k" * 300: NESTED}


def app() -> SocketApp:
    made = SocketApp()

    @made.on("order")
    async def order(conn: Connection, payload: Order) -> None: ...

    @made.on("anything")
    async def anything(conn: Connection, payload: dict[str, Any]) -> None: ...

    @made.on("refuse")
    async def refuse(conn: Connection, payload: dict[str, Any]) -> None:
        details = {"retry_after": 1.5, "reason": "busy", "list": ["x" * 100] * 1000, "text": "y" * 50_000}
        raise EventError("z" * 50_000, code=ErrorCode.PERMISSION_ERROR, details=details)

    @made.on("leave")
    async def leave(conn: Connection, payload: dict[str, Any]) -> None:
        await conn.disconnect("☃" * 100)

    return made


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("order", LONG_KEY),
        ("order", KEYS_OF_CONTROL_CHARACTERS),
        ("order", {"items": {str(number): 5 for number in range(900)}}),
        ("anything", NESTED),
        ("x" * 60_000, {}),
        ("\x00" * 9000, {}),
        ("__" + "x" * 60_000 + "__", {}),
    ],
    ids=["a long key", "control characters", "many keys", "a deep way", "a long event", "an odd one", "a reserved one"],
)
async def test_an_error_does_not_grow_with_what_a_client_sends(event: str, payload: dict[str, Any]) -> None:
    async with TestClient(app()) as client:
        conn = await client.connect()
        sent = json.dumps({"event": event, "payload": payload, "id": "\x00" * 128})
        await conn.send_raw(sent)
        error = json.dumps(await conn.receive(), ensure_ascii=False)
        assert len(error.encode()) < min(LARGEST, 2 * len(sent))


@given(st.dictionaries(st.text(max_size=400), st.lists(st.fixed_dictionaries({"n": st.text(max_size=3)}), max_size=30)))
def test_the_list_of_validation_errors_is_bounded_and_says_how_many_there_are(items: dict[str, Any]) -> None:
    wrong = sum(not _is_number(item["n"]) for listed in items.values() for item in listed)
    refusal = _refusal_of({"items": items})
    assert (refusal is None) is (wrong == 0)
    if refusal is not None:
        listed = refusal.details["errors"]
        assert 1 <= len(listed) <= min(wrong, 20)
        assert len(json.dumps(listed, ensure_ascii=False)) < 7000
        assert f"{wrong} error" in refusal.message


def _is_number(text: str) -> bool:
    try:
        return Item.model_validate({"n": text}) is not None
    except ValueError:
        return False


def _refusal_of(payload: dict[str, Any]) -> ValidationFailed | None:
    try:
        PayloadType(Order).validate(payload)
    except ValidationFailed as refusal:
        return refusal
    return None


def test_a_way_that_is_too_long_ends_with_an_ellipsis() -> None:
    with pytest.raises(ValidationFailed) as refusal:
        PayloadType(dict).validate(NESTED | {"k" * 300: {"x": float("nan")}})
    (short,) = refusal.value.details["errors"]
    assert short["loc"] == ["k" * 300, "x"]
    with pytest.raises(ValidationFailed) as refusal:
        PayloadType(dict).validate({"a" * 300: {"b" * 300: {"c" * 300: {"d" * 300: {"e": float("nan")}}}}})
    (long,) = refusal.value.details["errors"]
    assert [part[0] for part in long["loc"]] == ["a", "b", "c", "…"]


async def test_an_errors_own_words_and_details_are_cut_where_they_are_too_long() -> None:
    async with TestClient(app()) as client:
        conn = await client.connect()
        await conn.send("refuse")
        error = (await conn.receive())["payload"]
        assert error["message"] == "z" * (MAX_MESSAGE - 1) + "…"
        assert error["details"] == {"retry_after": 1.5, "reason": "busy", "truncated": True}


async def details_of(details: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What a client gets of them, and how many bytes its error's payload has."""
    made = SocketApp()

    @made.on("refuse")
    async def refuse(conn: Connection) -> None:
        raise EventError("no", details=details)

    async with TestClient(made) as client:
        conn = await client.connect()
        await conn.send("refuse")
        payload = (await conn.receive())["payload"]
        return payload["details"], len(json.dumps(payload, separators=(",", ":")))


TOO_MUCH = {"much": ["x"] * MAX_ERROR}


@pytest.mark.parametrize(
    ("name", "value", "is_kept"),
    [
        ("text", "x" * MAX_DETAIL, True),
        ("text", "x" * (MAX_DETAIL + 1), False),
        ("n" * MAX_DETAIL, 1, True),
        ("n" * (MAX_DETAIL + 1), 1, False),
        ("number", 2**64 - 1, True),
        ("number", 1 - 2**64, True),
        ("number", 2**64, False),
        ("number", 0.5, True),
        ("flag", False, True),
        ("nothing", None, True),
        ("list", [], False),
        ("object", {}, False),
    ],
)
async def test_of_too_many_details_the_small_ones_are_kept(name: str, value: Any, is_kept: bool) -> None:
    kept, _ = await details_of({**TOO_MUCH, name: value})
    assert kept == {**({name: value} if is_kept else {}), "truncated": True}


async def test_of_too_many_details_the_first_few_are_kept() -> None:
    small = {f"detail {number}": number for number in range(MAX_DETAILS + 1)}
    kept, _ = await details_of({**TOO_MUCH, **small})
    assert kept == {**dict(list(small.items())[:MAX_DETAILS]), "truncated": True}


async def test_an_error_may_be_as_long_as_the_bound_and_no_longer() -> None:
    _, size = await details_of({"much": ""})
    longest = {"much": "x" * (MAX_ERROR - size)}
    assert await details_of(longest) == (longest, MAX_ERROR)
    assert (await details_of({"much": longest["much"] + "x"}))[0] == {"truncated": True}


async def test_details_that_fit_are_left_alone() -> None:
    details = {"list": list(range(1000))}
    assert (await details_of(details))[0] == details


async def test_a_close_reason_fits_its_frame_and_is_what_the_hooks_are_told() -> None:
    made = app()
    told: list[str] = []

    @made.on_disconnect
    async def left(conn: Connection, reason: str) -> None:
        told.append(reason)

    async with TestClient(made) as client:
        conn = await client.connect()
        await conn.send("leave")
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert closed.value.reason == "☃" * 41
        await conn.close()
        assert told == ["☃" * 41]


def test_orders_to_other_nodes_carry_no_more_of_a_reason() -> None:
    for order in (disconnect_order(user="ada", code=4000, reason="x" * 9000), revoke_order(["s"], "x" * 9000)):
        assert json.loads(order.payload)["reason"] == "x" * 123
