"""Dependencies wherever one may declare them: guards, hooks, middleware, events, the handshake."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import fastapi
import pytest

from socketspec import Connection, Depends, SocketApp
from socketspec.errors import ConfigurationError
from socketspec.testing import TestClient
from tests.asking import ask, joining, nobody, somebody

if TYPE_CHECKING:
    from decimal import Decimal


@pytest.mark.parametrize("depends", [Depends, fastapi.Depends])
@pytest.mark.parametrize(("member", "code"), [(nobody, "PERMISSION_ERROR"), (somebody, None)])
async def test_a_guard_decides_by_its_dependency_and_not_by_the_marker(depends: Any, member: Any, code: Any) -> None:
    socket = SocketApp()
    joining(socket)

    @socket.room_guard("staff:{team}")
    async def staff_only(conn: Connection, team: str, found: str | None = depends(member)) -> bool:
        return found is not None

    async with TestClient(socket) as client:
        assert await ask(await client.connect(), "join", {"room": "staff:ops"}) == (code or {})


async def test_every_hook_and_middleware_gets_its_dependencies_and_cleans_up() -> None:
    socket = SocketApp()
    log: list[str] = []

    async def opened() -> AsyncIterator[str]:
        log.append("+")
        try:
            yield "db"
        finally:
            log.append("-")

    Db = Annotated[str, Depends(opened)]
    joining(socket)

    @socket.on_connect
    async def connected(conn: Connection, db: Db) -> None:
        log.append(f"connect {db}")

    @socket.on_disconnect
    def disconnected(conn: Connection, reason: str, db: Db) -> None:
        log.append(f"disconnect {reason} {db}")

    @socket.on_error
    async def failed(conn: Connection, error: Exception, *, db: Db) -> None:
        log.append(f"error {error} {db}")

    @socket.on_room_join
    async def joined(conn: Connection, room: str, db: Db) -> None:
        log.append(f"join {room} {db}")

    @socket.on_room_leave
    async def left(conn: Connection, room: str, db: Db) -> None:
        log.append(f"leave {room} {db}")

    @socket.middleware
    async def through(conn: Connection, event: str, payload: Any, next_handler: Any, db: Db) -> Any:
        log.append(f"middleware {event} {db}")
        return await next_handler(conn, event, payload)

    @socket.on("fail")
    async def fail(conn: Connection) -> None:
        raise RuntimeError("no")

    async with TestClient(socket) as client:
        conn = await client.connect()
        await ask(conn, "join", {"room": "r"})
        await ask(conn, "fail")
        await conn.close()
    said = [entry for entry in log if entry not in "+-"]
    assert said == [
        "connect db",
        "middleware join db",
        "join r db",
        "middleware fail db",
        "error no db",
        "leave r db",
        "disconnect client_closed db",
    ]
    assert log.count("+") == log.count("-") == len(said)


NOBODY: Any = Depends(nobody)


def uncalled(conn: Connection, *, found: Any = Depends) -> bool:
    return bool(found)


def uncalled_of_fastapi(conn: Connection, *, found: Any = fastapi.Depends) -> bool:
    return bool(found)


def uncalled_annotated(conn: Connection, *, found: Annotated[str, fastapi.Security] = "") -> bool:
    return bool(found)


def with_a_comma(conn: Connection, *, found: Any = (NOBODY,)) -> bool:
    return bool(found)


def in_a_union(conn: Connection, *, found: Annotated[str, fastapi.Depends(nobody)] | None = None) -> bool:
    return found is None


def in_a_list(conn: Connection, *, found: list[Annotated[str, Depends(nobody)]] | None = None) -> bool:
    return found is None


def uncalled_query(conn: Connection, *, found: Any = fastapi.Query) -> bool:
    return bool(found)


def two_dependencies(conn: Connection, *, found: Annotated[str, Depends(nobody)] = Depends(somebody)) -> bool:
    return bool(found)


def two_annotated(conn: Connection, *, found: Annotated[str, fastapi.Depends(nobody), Depends(somebody)]) -> bool:
    return bool(found)


def dependency_and_query(conn: Connection, *, found: Annotated[str, Depends(nobody), fastapi.Query()]) -> bool:
    return bool(found)


def two_queries(conn: Connection, *, found: Annotated[int, fastapi.Query()] = fastapi.Query(5)) -> bool:
    return bool(found)


def query_default(conn: Connection, *, found: Annotated[int, fastapi.Query(5)]) -> bool:
    return bool(found)


def query_in_a_union(conn: Connection, *, found: Annotated[int, fastapi.Query()] | None = None) -> bool:
    return bool(found)


def function_as_default(conn: Connection, *, found: int | None = nobody) -> bool:  # type: ignore[assignment] # refused
    return bool(found)


@pytest.mark.parametrize(
    "guard",
    [two_dependencies, two_annotated, dependency_and_query, two_queries, query_default, query_in_a_union],
)
def test_only_one_marker_may_provide_a_parameter_and_only_where_it_is_read(guard: Any) -> None:
    for register in (SocketApp().room_guard("staff"), SocketApp().on("event"), SocketApp().on_connect):
        with pytest.raises(ConfigurationError, match=r"parameter 'found'.*Write"):
            register(guard)


def test_a_function_as_a_default_is_no_dependency() -> None:
    for register in (SocketApp().room_guard("staff"), SocketApp().on("event"), SocketApp().on_connect):
        with pytest.raises(
            ConfigurationError, match=r"'found' would get the function nobody itself.*Depends\(nobody\)"
        ):
            register(function_as_default)


@pytest.mark.parametrize(
    "guard",
    [uncalled, uncalled_of_fastapi, uncalled_annotated, with_a_comma, in_a_union, in_a_list, uncalled_query],
)
def test_a_marker_where_nothing_reads_it_is_refused_with_what_to_write(guard: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"parameter 'found'.*[Ww]rite"):
        SocketApp().room_guard("staff")(guard)
    with pytest.raises(ConfigurationError, match=r"parameter 'found'.*[Ww]rite"):
        SocketApp().on("event")(guard)
    with pytest.raises(ConfigurationError, match=r"parameter 'found'.*[Ww]rite"):
        SocketApp(dependencies=[Depends(functools.partial(guard, nobody))])


def test_a_hook_that_asks_where_it_is_passed_something_is_refused() -> None:
    Name = Annotated[str, Depends(somebody)]

    def without_reason(conn: Connection, name: Name) -> None: ...
    def without_connection(name: Name) -> None: ...
    def without_variable(conn: Connection, b: Name) -> bool:
        return True

    socket = SocketApp()
    for register, hook in (
        (socket.on_disconnect, without_reason),
        (socket.on_connect, without_connection),
        (socket.room_guard("a:{b}"), without_variable),
    ):
        with pytest.raises(ConfigurationError, match="looks like this: async def"):
            register(hook)


def test_guards_and_hooks_whose_annotations_do_not_resolve_are_refused() -> None:
    async def guard(conn: Connection, price: Annotated[Decimal, Depends(somebody)]) -> bool:
        return True

    socket = SocketApp()
    for register in (socket.on_connect, socket.room_guard("a")):
        with pytest.raises(ConfigurationError, match="'Decimal', which does not exist at run time"):
            register(guard)
    assert socket.registry.guards == []


async def test_overrides_reach_guards_hooks_middleware_events_and_the_handshake() -> None:
    seen: list[str] = []
    Name = Annotated[str, Depends(somebody)]

    def checked(name: Name) -> None:
        seen.append(f"handshake {name}")

    def per_event(name: Name) -> None:
        seen.append(f"event {name}")

    socket = SocketApp(dependencies=[Depends(checked)])
    joining(socket)

    @socket.on_connect
    async def connected(conn: Connection, name: Name) -> None:
        seen.append(f"hook {name}")

    @socket.room_guard("r")
    async def guard(conn: Connection, name: Name) -> bool:
        seen.append(f"guard {name}")
        return True

    @socket.middleware
    async def through(conn: Connection, event: str, payload: Any, next_handler: Any, name: Name) -> Any:
        seen.append(f"middleware {name}")
        return await next_handler(conn, event, payload)

    @socket.on("who", dependencies=[Depends(per_event)])
    async def who(conn: Connection, name: Name) -> dict[str, str]:
        return {"name": name}

    async with TestClient(socket) as client:
        for name in ("ada", "bob", "ada"):
            socket.dependency_overrides.clear()
            if name == "bob":
                socket.dependency_overrides[somebody] = lambda: "bob"
            conn = await client.connect()
            assert await ask(conn, "who") == {"name": name}
            await ask(conn, "join", {"room": "r"})
            places = ("handshake", "hook", "middleware", "event", "middleware", "guard")
            assert seen == [f"{place} {name}" for place in places]
            seen.clear()


def test_dependencies_that_are_no_list_of_depends_are_refused() -> None:
    for wrong in ([somebody], Depends(somebody), "somebody"):
        with pytest.raises(ConfigurationError, match=r"must be a list such as \[Depends"):
            SocketApp(dependencies=wrong)
        with pytest.raises(ConfigurationError, match=r"must be a list such as \[Depends"):
            SocketApp().on("x", dependencies=wrong)


async def test_room_variables_become_what_the_guard_annotates_and_others_are_no_room() -> None:
    socket = SocketApp()
    seen: list[Any] = []
    joining(socket)

    @socket.room_guard("orders:{order_id}")
    async def own(conn: Connection, order_id: int, name: str = Depends(somebody)) -> bool:
        seen.append((order_id, name))
        return True

    @socket.room_guard("docs:{doc}")
    async def doc(conn: Connection, doc: UUID) -> bool:
        seen.append(doc)
        return True

    identifier = UUID(int=7)
    async with TestClient(socket) as client:
        conn = await client.connect()
        for room in ("orders:x", "orders:1.5", "orders:007", "orders:+7", "docs:7"):
            assert await ask(conn, "join", {"room": room}) == "ROOM_NOT_FOUND"
        assert seen == []
        for room in ("orders:7", f"docs:{identifier}"):
            assert await ask(conn, "join", {"room": room}) == {}
        assert seen == [(7, "ada"), identifier]


async def test_room_hooks_take_a_pattern_and_get_its_variables() -> None:
    socket = SocketApp()
    seen: list[Any] = []
    joining(socket)

    @socket.on_room_join("orders:{id}")
    async def joined(conn: Connection, id: int) -> None:
        seen.append(("joined", id))

    @socket.on_room_leave("orders:{id}")
    def left(conn: Connection, room: str, id: str, name: str = Depends(somebody)) -> None:
        seen.append((room, id, name))

    @socket.on_room_join("chat:{room}")
    async def chat(conn: Connection, room: str) -> None:
        seen.append(room)

    async with TestClient(socket) as client:
        conn = await client.connect()
        for room in ("orders:7", "orders:x", "other", "chat:a"):
            await ask(conn, "join", {"room": room})
        await socket.rooms.leave(conn.connection, "orders:7")
    assert seen[:3] == [("joined", 7), "a", ("orders:7", "7", "ada")]


def test_a_room_hook_that_does_not_take_its_variables_is_refused() -> None:
    async def hook(conn: Connection) -> None: ...
    async def odd(conn: Connection, id: Connection) -> bool:
        return True

    with pytest.raises(ConfigurationError, match=r"async def hook\(conn, \*, id\)"):
        SocketApp().on_room_join("orders:{id}")(hook)
    with pytest.raises(ConfigurationError, match="cannot become"):
        SocketApp().room_guard("orders:{id}")(odd)
