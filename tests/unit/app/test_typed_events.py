"""Events that are declared once, with a model and a room, and sent by what was declared."""

from __future__ import annotations

from datetime import date
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from socketspec import Broadcasts, Connection, Emits, Event, Room, SocketApp
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.events import PublisherEvent
from socketspec.cluster.publishers.requests import Requests
from socketspec.declaration.patterns import RoomPattern
from socketspec.errors import ConfigurationError, ContractError
from socketspec.protocol.publications import Receipt
from socketspec.testing import TestClient
from tests.identities import ByName


class Order(BaseModel):
    id: int
    state: str = "new"


class StoredOrder(Order):
    margin: float = 0.4


ORDER = StoredOrder(id=42)
SENT = {"id": 42, "state": "new"}
DECLARED = Event("order_changed", Order, room="orders:{id}", description="It changed.", tags=["orders"])


@pytest.mark.parametrize("strict", [True, False])
async def test_a_typed_event_is_sent_by_handlers_and_by_other_code(strict: bool) -> None:
    app = SocketApp(auth=ByName())
    changed = app.event("order_changed", Order, room="orders:{id}")

    @app.on("watch", emits=[changed], broadcasts=[changed])
    async def watch(conn: Connection) -> None:
        await app.rooms.join(conn, "orders:42")
        await changed.emit(conn, ORDER)
        await changed.broadcast(ORDER, id=42)

    async with TestClient(app, strict=strict) as client:
        conn = await client.connect(query_params={"user": "ada"})
        await conn.send("watch")
        for _ in range(2):
            assert await conn.receive() == {"event": "order_changed", "payload": SENT}
        await changed.broadcast(ORDER, id="42")
        await changed.broadcast(ORDER, id=42, exclude=conn.connection)
        await changed.broadcast(ORDER, id=7)
        await changed.send("ada", ORDER)
        await changed.broadcast_all(ORDER)
        for _ in range(3):
            assert await conn.receive() == {"event": "order_changed", "payload": SENT}
        await app.rooms.broadcast("orders:42", "order_changed", ORDER)
        assert (await conn.receive())["payload"] == SENT, "by its name, too"
        with pytest.raises(ContractError, match=r"Event\('order_changed', …\): 'dict' does not fit 'Order': id: "):
            await changed.broadcast({"id": "x"}, id=42)  # type: ignore[arg-type] # that is the point
        with pytest.raises(TimeoutError):
            await conn.receive(timeout=0)


async def test_strict_mode_wants_it_among_what_a_handler_declares() -> None:
    app = SocketApp()
    changed = app.event("order_changed", Order, room="orders:{id}")

    @app.on("act", broadcasts=[Broadcasts("other")], emits=[Emits("other")])
    async def act(conn: Connection) -> None:
        with pytest.raises(ContractError, match="which it does not declare"):
            await changed.broadcast(ORDER, id=1)
        with pytest.raises(ContractError, match="which it does not declare"):
            await changed.emit(conn, ORDER)

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("act", id=1)
        assert (await conn.receive())["event"] == "__ack__"


async def test_an_event_made_by_itself_is_sent_by_the_app_that_it_is_given_to() -> None:
    event = Event("order_changed", Order, room="orders:{id}")
    with pytest.raises(RuntimeError, match="belongs to no app here: write SocketApp"):
        await event.broadcast(ORDER, id=1)
    one, other = SocketApp(events=[event]), SocketApp(events=[event])
    async with TestClient(one) as client:
        conn = await client.connect()
        await event.broadcast_all(ORDER)
        assert (await conn.receive())["payload"] == SENT
        async with TestClient(other):
            with pytest.raises(RuntimeError, match="belongs to 2 running apps"):
                await event.broadcast_all(ORDER)
    app = SocketApp()
    bound = app.event(event)
    async with TestClient(app) as client:
        conn = await client.connect()
        await bound.broadcast_all(ORDER)
        assert (await conn.receive())["payload"] == SENT


class Size(Enum):
    small = "s"


@pytest.mark.parametrize(
    ("value", "room"),
    [
        ("a b", "orders:a b"),
        (7, "orders:7"),
        (UUID(int=1), f"orders:{UUID(int=1)}"),
        (date(2024, 1, 2), "orders:2024-01-02"),
        (Size.small, "orders:s"),
        ("{x}", "orders:{x}"),
    ],
)
def test_a_variables_value_becomes_part_of_the_rooms_name(value: Any, room: str) -> None:
    assert DECLARED.room_name(id=value) == room


@pytest.mark.parametrize("value", ["", "a:b", None, True, 1.5, b"x", object(), "x" * 200, "\n", " ", "\ud800"])
def test_a_value_that_cannot_be_in_a_rooms_name_is_refused_with_the_pattern(value: Any) -> None:
    with pytest.raises(ValueError, match=r"'orders:\{id\}'"):
        DECLARED.room_name(id=value)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "without id=…"),
        ({"idd": 1}, "without id=… and with idd=…, which it has not"),
        ({"id": 1, "more": 2}, "with more=…, which it has not"),
    ],
)
def test_missing_and_unknown_variables_are_named_with_the_pattern(variables: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError) as refused:
        DECLARED.room_name(**variables)
    assert "'orders:{id}'" in str(refused.value)
    assert says in str(refused.value)
    with pytest.raises(TypeError, match="declares no room"):
        Event("tick", Order).room_name()


@pytest.mark.parametrize(
    ("name", "model", "options", "says"),
    [
        ("__ack__", Order, {}, "reserved"),
        ("", Order, {}, "is empty"),
        ("x", int, {}, "always an object"),
        ("x", None, {}, "always an object"),
        ("x", Order, {"room": "a:{"}, "never closed"),
        ("x", Order, {"room": "a:{exclude}"}, "an option of broadcast"),
        ("x", Order, {"tags": "a"}, "must be a list"),
    ],
)
def test_an_event_that_cannot_work_is_refused(name: str, model: Any, options: dict[str, Any], says: str) -> None:
    for declare in (Event, SocketApp().event):
        with pytest.raises(ConfigurationError) as refused:
            declare(name, model, **options)
        assert says in str(refused.value)


def test_declaring_twice_and_rooms_that_are_not_there_are_refused() -> None:
    app = SocketApp(rooms=[Room("orders:{order_id}"), Room("lobby")])
    app.event("a", Order, room="orders:{id}")
    app.event("b", Order, room="{any}")
    app.event("c", Order, room="orders:7")
    with pytest.raises(ConfigurationError, match="Event 'a' is declared twice"):
        app.event("a", Order)
    with pytest.raises(
        ConfigurationError, match=r"'order:\{id\}' fits none of the rooms .* Did you mean 'orders:\{order_id\}'"
    ):
        app.event("d", Order, room="order:{id}")
    with pytest.raises(ConfigurationError, match="must be a list"):
        SocketApp(events="a")  # type: ignore[arg-type] # that is the point
    with pytest.raises(ConfigurationError, match="must be a list"):
        SocketApp(events=[Order])  # type: ignore[list-item] # that is the point


def test_what_only_a_route_or_a_worker_sends_is_in_the_schema() -> None:
    (found,) = SocketApp(events=[DECLARED]).schema()["sent_events"]
    assert (found["event"], found["room"], found["tags"]) == ("order_changed", "orders:{id}", ["orders"])
    assert found["description"] == "It changed."
    assert set(found["payload"]["properties"]) == {"id", "state"}


class Recorder:
    """Takes what a publisher would send as far as its checks."""

    def __init__(self, **options: Any) -> None:
        self.requests = Requests(Keys("test", 0), **options)
        self.sent: list[tuple[str, str, object]] = []

    def broadcast(self, room: str, event: str, payload: object = None, **options: Any) -> Receipt:
        self.requests.broadcast(room, event, payload, options.get("exclude", ()), None, None)
        self.sent.append((room, event, payload))
        return Receipt(0)

    def broadcast_all(self, event: str, payload: object = None, **options: Any) -> Receipt:
        return self.broadcast("all", event, payload)

    def send_to_user(self, user_id: str, event: str, payload: object = None) -> Receipt:
        return self.broadcast(user_id, event, payload)


def test_a_publisher_sends_it_as_the_app_does() -> None:
    publisher = Recorder()
    event = PublisherEvent(DECLARED, publisher)
    event.broadcast(ORDER, id=42)
    event.broadcast_all(ORDER)
    event.send("ada", ORDER)
    encoded = b'{"id":42,"state":"new"}'
    assert publisher.sent == [(room, "order_changed", encoded) for room in ("orders:42", "all", "ada")]
    with pytest.raises(ContractError):
        event.broadcast({"id": "x"}, id=42)  # type: ignore[arg-type] # that is the point
    with pytest.raises(TypeError, match="without id="):
        event.broadcast(ORDER)
    strict = PublisherEvent(DECLARED, Recorder(broadcasts=[Broadcasts("other")]))
    with pytest.raises(ContractError, match="does not declare"):
        strict.broadcast(ORDER, id=42)
    PublisherEvent(DECLARED, Recorder(broadcasts=[DECLARED])).broadcast(ORDER, id=42)


PARTS = st.lists(st.sampled_from(["a", "b", ":", "-", "{x}", "{y}"]), min_size=1, max_size=5)


def pattern(parts: list[str]) -> RoomPattern | None:
    try:
        return RoomPattern("".join(parts))
    except ConfigurationError:
        return None


@given(one=PARTS, other=PARTS, name=st.text("ab:-", min_size=1, max_size=6))
def test_patterns_that_one_name_matches_overlap(one: list[str], other: list[str], name: str) -> None:
    first, second = pattern(one), pattern(other)
    if first is not None and second is not None:
        assert first.overlaps(second) is second.overlaps(first)
        if first.match(name) is not None and second.match(name) is not None:
            assert first.overlaps(second)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("orders:{id}", "orders:{x}", True),
        ("orders:{id}", "order:{x}", False),
        ("a{x}", "{y}b", True),
        ("a{x}", "a", False),
        ("{x}", "a:b", False),
        ("{x}:{y}", "a:b", True),
        ("a{x}c", "b{y}c", False),
    ],
)
def test_overlapping_patterns(one: str, other: str, overlap: bool) -> None:
    assert RoomPattern(one).overlaps(RoomPattern(other)) is overlap
