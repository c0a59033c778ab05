"""What is declared on a router happens where it is included, or is refused with what to write instead."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel

from socketspec import Connection, Depends, Event, EventRouter, Room, SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import ConfigurationError, EventError, PermissionDenied
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import TestClient, TestConnection


class Order(BaseModel):
    id: int


class SoldOut(EventError):
    """There is none left."""

    code = "SOLD_OUT"


class Closed(EventError):
    """The shop is closed."""

    code = "CLOSED"


async def ask(conn: TestConnection, event: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    await conn.send(event, payload or {}, id=1)
    answer: dict[str, Any] = await conn.receive()
    return answer


async def test_prefix_tags_dependencies_errors_and_middleware_go_from_the_outermost_in() -> None:
    seen: list[str] = []

    def noting(name: str) -> Any:
        async def dependency() -> None:
            seen.append(f"dependency {name}")

        return Depends(dependency)

    def around(name: str) -> Any:
        async def middleware(conn: Connection, event: str, payload: Any, next_handler: Any) -> Any:
            seen.append(f"{name} {event}")
            return await next_handler(conn, event, payload)

        return middleware

    socket = SocketApp()
    outer = EventRouter(
        prefix="shop.", tags=["shop"], dependencies=[noting("outer")], middleware=[around("outer")], errors=[Closed]
    )
    inner = EventRouter(prefix="orders.", tags=["orders"], dependencies=[noting("inner")], errors=[SoldOut])

    @inner.on(
        "place", tags=["place"], dependencies=[noting("event")], middleware=[around("event")], errors=[SoldOut, Closed]
    )
    async def place(conn: Connection, order: Order, last: Annotated[None, noting("handler")]) -> Order:
        seen.append("handler")
        return order

    outer.include_router(inner, prefix="v1.", tags=["v1"], dependencies=[noting("nested")])
    socket.include_router(outer, prefix="all.", dependencies=[noting("included")])
    inner.middleware(around("inner"))
    socket.middleware(around("app"))
    async with TestClient(socket) as client:
        conn = await client.connect()
        answer = await ask(conn, "all.shop.v1.orders.place", {"id": 7})
    assert answer["payload"] == {"id": 7}
    name = "all.shop.v1.orders.place"
    assert seen == [
        *(f"{each} {name}" for each in ("app", "outer", "inner", "event")),
        *(f"dependency {each}" for each in ("included", "outer", "nested", "inner", "event", "handler")),
        "handler",
    ]
    described = socket.schema()["events"][0]
    assert described["tags"] == ["shop", "v1", "orders", "place"]
    assert [error["code"] for error in described["errors"]] == ["CLOSED", "SOLD_OUT"]


async def test_a_dependency_of_a_router_refuses_each_event_of_it_and_no_other() -> None:
    async def staff(conn: Connection) -> None:
        raise PermissionDenied("For staff.")

    socket, router = SocketApp(), EventRouter(dependencies=[Depends(staff)])

    @router.on("inside")
    async def inside(conn: Connection) -> None: ...

    @socket.on("outside")
    async def outside(conn: Connection) -> None: ...

    socket.include_router(router)
    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await ask(conn, "inside"))["payload"]["code"] == "PERMISSION_ERROR"
        assert (await ask(conn, "outside"))["event"] == "__ack__"
        socket.dependency_overrides[staff] = lambda: None
        assert (await ask(conn, "inside"))["event"] == "__ack__"


async def test_what_is_declared_after_the_router_was_included_counts_as_well() -> None:
    socket, outer, inner = SocketApp(), EventRouter(prefix="a."), EventRouter(prefix="b.")
    socket.include_router(outer)
    outer.include_router(inner)

    @inner.on("late")
    async def late(conn: Connection) -> Order:
        return Order(id=1)

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await ask(conn, "a.b.late"))["payload"] == {"id": 1}
    with pytest.raises(ConfigurationError, match="already has the handler"):
        inner.on("late")(late)


async def test_hooks_guards_and_typed_events_are_the_apps_and_there_once_however_often_a_router_is_included() -> None:
    seen: list[str] = []
    socket = SocketApp()
    router = EventRouter(prefix="orders.", rooms=[Room("orders:{id}", client_join=True)])
    changed = router.event("order_changed", Order, room="orders:{id}")

    @router.on_connect
    async def on_connect(conn: Connection) -> None:
        seen.append("connect")

    @router.on_room_join("orders:{id}")
    async def joined(conn: Connection, id: int) -> None:
        seen.append(f"joined {id}")

    @router.room_guard("orders:{id}")
    async def guard(conn: Connection, id: int) -> bool:
        return id < 9

    @router.on("watch")
    async def watch(conn: Connection, order: Order) -> None:
        await socket.rooms.join(conn, f"orders:{order.id}")
        await changed.broadcast(order, id=order.id)

    with pytest.raises(RuntimeError, match="belongs to no app"):
        await changed.broadcast(Order(id=1), id=1)
    socket.include_router(router, prefix="v1.")
    socket.include_router(router, prefix="v2.")
    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("v1.orders.watch", {"id": 3})
        assert (await conn.receive())["payload"] == {"id": 3}
        assert (await ask(conn, "v2.orders.watch", {"id": 9}))["payload"]["code"] == "PERMISSION_ERROR"
        with pytest.raises(EventError, match="no room"):
            await socket.rooms.count("lobby")
    assert seen == ["connect", "joined 3"]
    assert [event["event"] for event in socket.schema()["sent_events"]] == ["order_changed"]
    assert [room["name"] for room in socket.schema()["rooms"]] == ["orders:{id}"]


async def test_on_error_of_a_router_is_for_its_events_before_the_apps() -> None:
    seen: list[str] = []
    socket, router = SocketApp(), EventRouter()

    async def fail(conn: Connection) -> None:
        raise ValueError("a bug")

    router.on("inside")(fail)
    socket.on("outside")(fail)

    @socket.on_error
    async def of_app(conn: Connection, error: Exception) -> None:
        seen.append("app")

    @router.on_error
    async def of_router(conn: Connection, error: Exception) -> None:
        seen.append("router")

    socket.include_router(router)
    async with TestClient(socket, raise_server_exceptions=False) as client:
        conn = await client.connect()
        await ask(conn, "outside")
        await ask(conn, "inside")
    assert seen == ["app", "router", "app"]


async def test_dependencies_of_a_router_in_another_place_see_the_names_around_them() -> None:
    def part() -> EventRouter:
        class Settings:
            name = "ada"

        async def named(settings: Annotated[Settings, Depends()]) -> str:
            return settings.name

        return EventRouter(dependencies=[Depends(named)])

    socket, router = SocketApp(), part()

    @router.on("x")
    async def x(conn: Connection) -> None: ...

    socket.include_router(router)
    async with TestClient(socket) as client:
        assert (await ask(await client.connect(), "x"))["event"] == "__ack__"


def test_whatever_cannot_work_is_refused_with_what_to_write() -> None:
    async def middleware(conn: Connection, event: str, payload: Any, next_handler: Any) -> Any: ...

    cases: list[tuple[Any, str]] = [
        (lambda: EventRouter(prefix=5), "prefix must be a str such as 'orders.'"),  # type: ignore[arg-type] # untyped
        (lambda: EventRouter(prefix=" a"), "no event can begin with it"),
        (lambda: EventRouter(tags="orders"), "tags must be a list"),
        (lambda: EventRouter(dependencies=Depends(ask)), r"must be a list such as \[Depends\("),
        (lambda: EventRouter(dependencies=[ask]), r"must be a list such as \[Depends\(ask\)\]"),
        (lambda: EventRouter(middleware=middleware), r"middleware=\[middleware\]"),  # type: ignore[arg-type] # untyped
        (lambda: EventRouter(middleware=[lambda *_: None]), "must be async def m"),
        (lambda: EventRouter(errors=SoldOut), r"must be a list of error classes"),  # type: ignore[arg-type] # untyped
        (lambda: EventRouter(rate_limit="5 a day"), 'such as "5/s"'),
        (lambda: EventRouter(rate_limit=5), 'such as "5/s"'),  # type: ignore[arg-type] # untyped
        (lambda: EventRouter(timeout=0), "greater than 0"),
        (lambda: EventRouter(rooms="orders"), "must be a list such as"),
        (lambda: EventRouter().on("x", timeout=-1), "greater than 0"),
        (lambda: EventRouter().on("x", timeout=float("nan")), "greater than 0"),
        (lambda: EventRouter().on(ask), r"Write @router.on\('its_event'\)"),  # type: ignore[arg-type] # untyped
        (lambda: EventRouter(prefix="__").on("x__"), "reserved"),
        (lambda: EventRouter().on(""), "empty"),
        (lambda: EventRouter(prefix="a" * 190).on("b" * 20), "too long"),
        (lambda: SocketApp(timeout=-1), "greater than 0"),
        (lambda: SocketApp(rate_limit="none"), 'such as "5/s"'),
        (lambda: SocketApp().include_router(APIRouter()), r"mount\(socket, router\)"),  # type: ignore[arg-type] # untyped
        (lambda: SocketApp().include_router(SocketApp()), "move its events to an EventRouter"),  # type: ignore[arg-type] # untyped
        (lambda: SocketApp().include_router(pytest), "pass the router in it"),  # type: ignore[arg-type] # untyped
        (lambda: SocketApp().include_router(EventRouter(), prefix=5), "prefix must be a str"),  # type: ignore[arg-type] # untyped
        (lambda: FastAPI().include_router(SocketApp()), r"Write mount\(socket, app\)"),  # type: ignore[arg-type] # untyped
        (lambda: mount(SocketApp(), FastAPI(), dependencies=[5]), r"mount\(dependencies=\[5\]\)"),
        (lambda: FastAPI().include_router(EventRouter()), r"write socket\.include_router\(router\)"),  # type: ignore[arg-type] # untyped
        (lambda: mount(EventRouter(), FastAPI()), r"socket\.include_router\(router\)"),  # type: ignore[arg-type] # untyped
        (lambda: ASGIApp(EventRouter()), r"socket\.include_router\(router\)"),  # type: ignore[arg-type] # untyped
    ]
    for call, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            call()


def test_a_router_of_events_has_no_routes_for_those_who_only_ask() -> None:
    assert not hasattr(EventRouter(), "routes")
    assert not hasattr(SocketApp(), "routes")


def test_what_cannot_stand_beside_another_is_refused() -> None:
    async def handler(conn: Connection) -> None: ...

    socket, router, other = SocketApp(), EventRouter(prefix="a."), EventRouter()
    router.on("x")(handler)
    with pytest.raises(ConfigurationError, match=r"'a\.x' already has the handler"):
        router.on("x")(handler)
    socket.include_router(router)
    with pytest.raises(ConfigurationError, match="included already"):
        socket.include_router(router)
    other.include_router(router)
    with pytest.raises(ConfigurationError, match="would include itself"):
        router.include_router(other)
    with pytest.raises(ConfigurationError, match="would include itself"):
        router.include_router(router)
    with pytest.raises(ConfigurationError, match=r"'a\.x' already has the handler"):
        socket.include_router(other)
    socket.on_connect(handler)
    hooks = EventRouter()
    hooks.on_connect(handler)
    with pytest.raises(ConfigurationError, match="is an on_connect hook already"):
        hooks.on_connect(handler)
    with pytest.raises(ConfigurationError, match="is an on_connect hook already"):
        socket.include_router(hooks)
    habit = EventRouter()
    habit.on("connect")(handler)
    with pytest.raises(ConfigurationError, match=r"Write @socket\.on_connect"):
        socket.include_router(habit)
    socket.include_router(habit, prefix="orders.")
    assert "orders.connect" in socket.registry.events
    with pytest.raises(ConfigurationError, match="declared twice"):
        SocketApp(rooms=["a"]).include_router(EventRouter(rooms=["a"]))


async def test_a_typed_event_for_a_room_that_a_router_left_no_place_for_is_refused_at_the_start() -> None:
    socket = SocketApp()
    socket.event("order_changed", Order, room="orders:{id}")
    socket.include_router(EventRouter(rooms=["lobby"]))
    with pytest.raises(ConfigurationError, match="'order_changed': room='orders:"):
        await socket.ensure_started()


async def test_an_event_made_elsewhere_can_be_a_routers() -> None:
    event = Event("order_changed", Order)
    socket, router = SocketApp(), EventRouter()
    assert router.event(event) is event
    socket.include_router(router)
    async with TestClient(socket) as client:
        conn = await client.connect()
        await event.broadcast_all(Order(id=1))
        assert (await conn.receive())["event"] == "order_changed"


async def test_a_server_that_is_given_a_router_is_told_what_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"socket\.include_router"):
        await EventRouter()({}, None, None)


def test_the_schema_tells_limits_and_timeouts() -> None:
    socket = SocketApp(timeout=30)
    router = EventRouter(rate_limit="5/s", timeout=10)

    async def handler(conn: Connection) -> None: ...

    socket.on("plain")(handler)
    router.on("shared")(handler)
    router.on("own", rate_limit=RateLimit(1, 2, scope="ip"), timeout=1.5)(handler)
    router.on("custom", rate_limit=RateLimit(1, 2, scope=lambda conn: "x"), timeout=float("inf"))(handler)
    socket.include_router(router)
    told = {event["event"]: (event["timeout"], event["rate_limits"]) for event in socket.schema()["events"]}
    shared = {"rate": 5.0, "capacity": 5, "scope": None}
    assert told == {
        "plain": (30.0, []),
        "shared": (10.0, [shared]),
        "own": (1.5, [shared, {"rate": 1, "capacity": 2, "scope": "ip"}]),
        "custom": (None, [shared, {"rate": 1, "capacity": 2, "scope": "function"}]),
    }
