"""What is declared and could never happen is refused at once or at the start, with what to write instead."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec import Broadcasts, Connection, SocketApp
from socketspec.app.misuse import Misuse
from socketspec.declaration.patterns import RoomPattern
from socketspec.errors import ConfigurationError, RoomNotFound, UnknownEvent
from socketspec.protocol.handshake import Headers
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import HandshakeRefused, TestClient


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("orders:{id}", "orders:{order}", True),
        ("orders:{id}", "order:{id}", False),
        ("orders:{id}", "orders:eu", True),
        ("orders:{id}", "orders:eu:1", False),
        ("{kind}:{id}", "orders:{id}", True),
        ("{kind}", "orders:{id}", False),
        ("{a}-x", "y-{b}", True),
        ("{a}x", "{b}y", False),
        ("a{b}", "{c}a", True),
        ("a{b}", "a", False),
        ("{{a}}", "{a}", True),
    ],
)
def test_patterns_overlap_where_a_name_fits_both(one: str, other: str, overlap: bool) -> None:
    assert RoomPattern(one).overlaps(RoomPattern(other)) is overlap
    assert RoomPattern(other).overlaps(RoomPattern(one)) is overlap


TOKEN = "t" * 32
NAMES = st.text("ab:", min_size=1, max_size=6)
PATTERNS = st.sampled_from(["{x}", "a{x}", "{x}b", "a{x}b", "{x}:{y}", "a:{x}", "{x}a{y}", "ab", "a:b", "b{x}:{y}a"])


@given(PATTERNS, PATTERNS, NAMES)
def test_a_name_that_fits_both_means_that_they_overlap(one: str, other: str, name: str) -> None:
    first, second = RoomPattern(one), RoomPattern(other)
    if first.match(name) is not None and second.match(name) is not None:
        assert first.overlaps(second)


async def started(app: SocketApp) -> None:
    async with app.lifespan():
        pass


async def test_a_guard_that_guards_no_declared_room_is_refused_at_start_up() -> None:
    app = SocketApp(rooms=["orders:{id}", "hall"])

    @app.room_guard("order:{id}")
    async def guard(conn: Connection, id: str) -> bool:
        return False

    with pytest.raises(ConfigurationError, match=r"room_guard\('order:{id}'\) guards nothing.*mean 'orders:{id}'"):
        await started(app)


async def test_a_guard_far_from_every_declared_room_is_told_which_there_are() -> None:
    app = SocketApp(rooms=["orders:{id}", "hall"])

    @app.room_guard("x")
    async def guard(conn: Connection) -> bool:
        return False

    with pytest.raises(ConfigurationError, match=r"Declared are orders:{id}, hall\."):
        await started(app)


async def test_a_broadcast_to_no_declared_room_is_refused_at_start_up() -> None:
    app = SocketApp(rooms=["orders:{id}"])

    @app.on("order", broadcasts=[Broadcasts("changed", room="oders:{id}")])
    async def order(conn: Connection) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Broadcasts\('changed', room='oders:{id}'\).*mean 'orders:{id}'"):
        await started(app)


async def test_what_fits_starts_and_so_does_an_app_that_declares_no_rooms() -> None:
    for rooms in (["orders:{id}", "eu:hall"], []):
        app = SocketApp(rooms=rooms)

        @app.room_guard("orders:{order}")
        async def guard(conn: Connection, order: str) -> bool:
            return False

        @app.room_guard("{area}:hall")
        async def hall(conn: Connection, area: str) -> bool:
            return False

        @app.on("order", broadcasts=[Broadcasts("changed", room="orders:{id}"), Broadcasts("all")])
        async def order(conn: Connection) -> None: ...

        await started(app)


@pytest.mark.parametrize("kind", ["on_connect", "on_disconnect", "on_error", "on_room_join", "on_room_leave"])
@pytest.mark.parametrize("sync", [False, True])
def test_a_hook_registered_twice_is_refused(kind: str, sync: bool) -> None:
    app = SocketApp()

    async def hook(*args: Any) -> None: ...
    def plain(*args: Any) -> None: ...

    function: Callable[..., Any] = plain if sync else hook
    register = getattr(app, kind)
    register(function)
    with pytest.raises(ConfigurationError, match=f"is an {kind} hook already"):
        register(function)
    for other in {"on_connect", "on_disconnect"} - {kind}:
        getattr(app, other)(function)  # of another kind it may be


def test_a_guard_registered_twice_for_a_pattern_is_refused() -> None:
    app = SocketApp()

    async def guard(conn: Connection, id: str) -> bool:
        return True

    app.room_guard("a:{id}")(guard)
    app.room_guard("b:{id}")(guard)
    with pytest.raises(ConfigurationError, match=r"is a guard of 'a:{id}' already"):
        app.room_guard("a:{id}")(guard)


async def some_event(conn: Connection) -> None: ...


def test_decorators_without_parentheses_are_refused() -> None:
    app: Any = SocketApp()
    with pytest.raises(ConfigurationError, match=r"over some_event\(\)\. Write @socket\.on\('its_event'\)"):
        app.on(some_event)
    with pytest.raises(ConfigurationError, match=r"Write @socket\.room_guard\('its:{room}'\)"):
        app.room_guard(some_event)


@pytest.mark.parametrize(
    ("event", "instead"),
    [
        ("connect", "@socket.on_connect"),
        ("connection", "@socket.on_connect"),
        ("disconnect", "@socket.on_disconnect"),
        ("disconnecting", "@socket.on_disconnect"),
        ("connect_error", "@socket.on_error"),
        ("*", "@socket.middleware"),
    ],
)
def test_habits_from_socket_io_are_told_the_hook(event: str, instead: str) -> None:
    with pytest.raises(ConfigurationError, match=instead):
        SocketApp().on(event)


def test_a_mistyped_scope_is_told_the_name() -> None:
    scope: Any = "conection"
    with pytest.raises(ConfigurationError, match="mean 'connection'"):
        RateLimit(1, 1, scope=scope)


async def test_an_app_in_the_place_of_an_asgi_application_says_how_to_mount_it() -> None:
    app, sent = SocketApp(), list[Any]()

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(event: Any) -> None:
        sent.append(event)

    for kind in ("http", "websocket"):
        with pytest.raises(ConfigurationError, match=r"mount\(socket, app, path='/ws'\)"):
            await app({"type": kind}, receive, send)
    await app({"type": "lifespan"}, receive, send)
    assert [(event["type"], "mount(socket, app" in event["message"]) for event in sent] == [
        ("lifespan.startup.failed", True)
    ]
    assert isinstance(app, Misuse)


async def test_a_broadcast_of_an_app_that_nobody_serves_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp()
    await app.rooms.broadcast("r", "e")
    await app.users.send("ada", "e")
    await app.stop()
    await app.rooms.broadcast("r", "e")
    assert [record.getMessage().count("neither mounted nor entered") for record in caplog.records] == [1]
    assert "Publisher" in caplog.text
    await app.stop()


async def test_what_is_entered_is_not_noted(caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp()
    async with app.lifespan():
        await app.rooms.broadcast("r", "e")
    async with TestClient(SocketApp()):
        pass
    assert caplog.records == []


async def test_an_unknown_room_in_a_call_of_your_own_is_told_the_name() -> None:
    app = SocketApp(rooms=["orders:{id}", "hall"])
    async with app.lifespan():
        with pytest.raises(
            RoomNotFound, match=r"^There is no room 'order:7'\. Did you mean 'orders:{id}'\?$"
        ) as caught:
            await app.rooms.broadcast("order:7", "changed")
        assert caught.value.message == "There is no room 'order:7'."
        with pytest.raises(RoomNotFound, match=r"^There is no room 'elsewhere'\.$"):
            await app.rooms.count("elsewhere")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, False),
        ({"docs": True}, True),
        ({"debug": True}, True),
        ({"docs": True, "docs_access_token": TOKEN}, False),
    ],
)
async def test_clients_are_told_names_only_where_everybody_may_read_them(
    options: dict[str, Any], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = SocketApp(rooms=["orders:{id}"], **options)

    @app.on("place_order")
    async def place_order(conn: Connection, payload: dict[str, str]) -> None:
        await app.rooms.join(conn, "order:7")

    async with TestClient(app) as client:
        conn = await client.connect()
        messages: list[str] = []
        for event in ("place_oder", "place_order", "place_oder"):
            await conn.send(event, {})
            messages.append((await conn.receive())["payload"]["message"])
    first, second, third = messages
    assert (first == "There is no event 'place_oder'. Did you mean 'place_order'?") is told
    assert first.startswith("There is no event 'place_oder'.")
    assert second == "There is no room 'order:7'."  # so many hints a second and no more
    assert third == "There is no event 'place_oder'."
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in lines if "Did you mean 'place_order'?" in line] == lines[:1]


async def test_a_name_that_no_app_would_have_is_not_compared() -> None:
    error = UnknownEvent("x")
    assert str(error) == "x"
    app = SocketApp(docs=True)

    @app.on("a" * 100)
    async def handler(conn: Connection) -> None: ...

    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("a" * 99)
        assert "mean" not in (await conn.receive())["payload"]["message"]


async def test_a_refused_origin_is_logged_once_a_minute_with_what_was_expected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = SocketApp(allowed_origins=["https://myapp.com", "https://b.example"])
    async with TestClient(app) as client:
        for _ in range(3):
            with pytest.raises(HandshakeRefused):
                await client.connect(headers=Headers([("origin", "https://myapp.com:8443\n")]).items())
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert r"'https://myapp.com:8443\n'" in lines[0]
    assert "'https://b.example', 'https://myapp.com'" in lines[0]
