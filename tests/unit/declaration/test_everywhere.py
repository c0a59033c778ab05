"""Dependencies wherever one may declare them: guards, hooks, middleware, events, the handshake."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import fastapi
import pytest
from fastapi import HTTPException, WebSocketException
from fastapi.requests import HTTPConnection
from fastapi.security import SecurityScopes
from pydantic import BaseModel

from socketspec import Connection, Depends, Identity, SocketApp
from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import Handshake
from socketspec.security.auth import APIKeyAuth
from socketspec.testing import ConnectionClosed, HandshakeRefused, TestClient, TestConnection

if TYPE_CHECKING:
    from decimal import Decimal


async def nobody() -> str | None:
    return None


def somebody() -> str:
    return "ada"


async def ask(conn: TestConnection, event: str, payload: object = None) -> Any:
    """The answer's payload: of an `__ack__` as it is, of an `__error__` its code."""
    await conn.send(event, payload, id=1)
    answer = await conn.receive()
    return answer["payload"]["code"] if answer["event"] == "__error__" else answer["payload"]


def joining(socket: SocketApp) -> None:
    """An event that joins the room that the client names."""

    @socket.on("join")
    async def join(conn: Connection, payload: dict[str, str]) -> None:
        await socket.rooms.join(conn, payload["room"])


# --- guards, hooks, middleware


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


# --- what a handshake has


class Page(BaseModel):
    limit: int = 10
    tags: list[str] = []


def shared(
    connection: HTTPConnection,
    handshake: Handshake,
    x_token: Annotated[str, fastapi.Header()],
    page: Annotated[Page, fastapi.Query()],
    tenant: int,
    session: Annotated[str | None, fastapi.Cookie(alias="sid")] = None,
    ids: list[int] = fastapi.Query([], alias="id"),  # noqa: B008 - as FastAPI's users may write it
    size: Annotated[int, fastapi.Query(le=100)] = 50,
    verbose: bool = False,
) -> dict[str, object]:
    return {
        "path": connection.url.path,
        "same": connection.headers["x-token"] == handshake.headers["x-token"] == x_token,
        "limit": page.limit,
        "tags": page.tags,
        "tenant": tenant,
        "session": session,
        "ids": ids,
        "size": size,
        "verbose": verbose,
    }


def sharing() -> SocketApp:
    socket = SocketApp()

    @socket.on("shared")
    async def handler(conn: Connection, got: Annotated[dict[str, object], Depends(shared)]) -> dict[str, object]:
        return {**got, "variables": dict(conn.path_params)}

    return socket


async def test_a_shared_dependency_gets_what_the_handshake_has_as_fastapi_gives_it() -> None:
    query = [("limit", "3"), ("tags", "a"), ("tags", "b"), ("id", "1"), ("id", "2"), ("verbose", "yes")]
    async with TestClient(sharing()) as client:
        conn = await client.connect(
            headers={"X-Token": "t", "Cookie": 'a=1; sid="x%20y"'}, query_params=query, path_params={"tenant": 7}
        )
        assert await ask(conn, "shared") == {
            "path": "/ws",
            "same": True,
            "limit": 3,
            "tags": ["a", "b"],
            "tenant": 7,
            "session": "x y",
            "ids": [1, 2],
            "size": 50,
            "verbose": True,
            "variables": {"tenant": 7},
        }


@pytest.mark.parametrize(
    ("headers", "query", "loc", "kind"),
    [
        ({}, {"tenant": "1"}, ["header", "x-token"], "missing"),
        ({"x-token": "t"}, {"tenant": "x"}, ["query", "tenant"], "int_parsing"),
        ({"x-token": "t"}, {}, ["query", "tenant"], "missing"),
        ({"x-token": "t"}, {"tenant": "1", "size": "101"}, ["query", "size"], "less_than_equal"),
        ({"x-token": "t"}, {"tenant": "1", "limit": "x"}, ["query", "limit"], "int_parsing"),
    ],
)
async def test_what_does_not_fit_is_an_answer_that_says_where(headers: Any, query: Any, loc: Any, kind: str) -> None:
    async with TestClient(sharing()) as client:
        conn = await client.connect(headers=headers, query_params=query)
        await conn.send("shared", id=1)
        answer = (await conn.receive())["payload"]
        assert (answer["code"], conn.connection.is_open) == ("VALIDATION_ERROR", True)
        assert [(error["loc"], error["type"]) for error in answer["details"]["errors"]] == [(loc, kind)]


def wants_form(name: Annotated[str, fastapi.Form()]) -> None: ...
def wants_body(page: Page) -> None: ...
def wants_list(ids: list[int]) -> None: ...
def wants_tasks(tasks: fastapi.BackgroundTasks) -> None: ...
def wants_response(response: fastapi.Response) -> None: ...
def wants_request(request: fastapi.Request) -> None: ...
def wants_file(file: fastapi.UploadFile) -> None: ...


@pytest.mark.parametrize(
    "dependency", [wants_form, wants_body, wants_list, wants_tasks, wants_response, wants_request, wants_file]
)
def test_what_a_handshake_has_not_is_refused_at_registration(dependency: Any) -> None:
    async def hook(conn: Connection, got: Annotated[Any, Depends(dependency)]) -> None: ...

    socket = SocketApp()
    for register in (socket.on("x"), socket.on_connect):
        with pytest.raises(ConfigurationError, match=r"not available on a WebSocket event|a handshake has none"):
            register(hook)
    with pytest.raises(ConfigurationError):
        SocketApp(dependencies=[Depends(dependency)])


async def test_a_request_that_may_be_missing_is_left_out_as_fastapi_does() -> None:
    def either(request: fastapi.Request = None, websocket: fastapi.WebSocket = None) -> dict[str, bool]:  # type: ignore[assignment] # how FastAPI's users write it
        return {"request": request is not None, "websocket": websocket is not None}

    socket = SocketApp()

    @socket.on("x")
    async def x(conn: Connection, got: Annotated[dict[str, bool], Depends(either)]) -> dict[str, bool]:
        return got

    async with TestClient(socket) as client:
        assert await ask(await client.connect(), "x") == {"request": False, "websocket": True}


async def test_a_view_of_the_handshake_can_neither_accept_nor_send_nor_receive_nor_close() -> None:
    views: list[fastapi.WebSocket] = []
    socket = SocketApp()

    @socket.on_connect
    async def look(conn: Connection, websocket: fastapi.WebSocket) -> None:
        views.append(websocket)

    async with TestClient(socket) as client:
        await client.connect(query_params={"a": "1"})
    assert views[0].query_params["a"] == "1"
    for call in (views[0].accept, views[0].receive, views[0].receive_json, views[0].close):
        with pytest.raises(RuntimeError, match="view of the opening handshake"):
            await call()
    with pytest.raises(RuntimeError, match=r"conn\.emit"):
        await views[0].send_json({})


async def test_security_scopes_are_collected_on_the_way() -> None:
    def scopes(wanted: SecurityScopes) -> list[str]:
        return wanted.scopes

    socket = SocketApp()

    def inner(found: Annotated[list[str], fastapi.Security(scopes, scopes=["b"])]) -> list[str]:
        return found

    @socket.on("x")
    async def x(
        conn: Connection,
        both: Annotated[list[str], fastapi.Security(inner, scopes=["a"])],
        one: Annotated[list[str], fastapi.Security(scopes, scopes=["c"])],
    ) -> dict[str, list[str]]:
        return {"both": both, "one": one}

    async with TestClient(socket) as client:
        assert await ask(await client.connect(), "x") == {"both": ["a", "b"], "one": ["c"]}


async def test_the_identity_is_given_by_its_type() -> None:
    ada = Identity(user_id="ada")
    socket = SocketApp(auth=APIKeyAuth({"key": ada}))
    seen: list[Identity] = []
    joining(socket)

    @socket.on_connect
    async def connected(conn: Connection, who: Identity) -> None:
        seen.append(who)

    @socket.room_guard("user:{name}")
    async def own(conn: Connection, name: str, who: Identity) -> bool:
        return who.user_id == name

    @socket.on("me")
    async def me(conn: Connection, who: Identity) -> dict[str, str | None]:
        return {"id": who.user_id}

    async with TestClient(socket) as client:
        conn = await client.connect(query_params={"api_key": "key"})
        assert seen == [ada]
        assert await ask(conn, "me") == {"id": "ada"}
        assert await ask(conn, "join", {"room": "user:ada"}) == {}
        assert await ask(conn, "join", {"room": "user:bob"}) == "PERMISSION_ERROR"


# --- refusals


class Away(HTTPException):
    pass


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (HTTPException(401, "Sign in."), "AUTH_ERROR", "Sign in."),
        (Away(403, "Admins only."), "PERMISSION_ERROR", "Admins only."),
        (HTTPException(404), "NOT_FOUND", "Not Found"),
        (HTTPException(422, "No."), "VALIDATION_ERROR", "No."),
        (HTTPException(429, "Slowly."), "RATE_LIMIT_ERROR", "Slowly."),
        (HTTPException(409, {"why": "taken"}), "REFUSED", "Conflict."),
        (WebSocketException(1008, "Policy."), "PERMISSION_ERROR", "Policy."),
        (WebSocketException(4401), "AUTH_ERROR", "Unauthorized."),
        (WebSocketException(3000, "Who?"), "AUTH_ERROR", "Who?"),
    ],
)
async def test_fastapis_refusals_are_answers_and_the_connection_stays(
    error: Exception, code: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise error

    socket = SocketApp()
    joining(socket)

    @socket.on("x", dependencies=[fastapi.Depends(refuse)])
    async def x(conn: Connection) -> None: ...

    @socket.room_guard("r")
    async def guard(conn: Connection, _: Annotated[None, Depends(refuse)]) -> bool:
        return True

    async with TestClient(socket) as client:
        conn = await client.connect()
        for event, payload in (("x", None), ("join", {"room": "r"})):
            await conn.send(event, payload, id=1)
            answer = (await conn.receive())["payload"]
            assert (answer["code"], answer["message"]) == (code, message)
        assert conn.connection.is_open
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_details_and_the_time_to_wait_reach_the_client() -> None:
    def refuse(retry: bool) -> None:
        raise HTTPException(429, {"why": "often"}, {"Retry-After": "30"})

    socket = SocketApp()

    @socket.on("x", dependencies=[Depends(refuse)])
    async def x(conn: Connection) -> None: ...

    async with TestClient(socket) as client:
        conn = await client.connect(query_params={"retry": "1"})
        await conn.send("x")
        assert (await conn.receive())["payload"]["details"] == {"detail": {"why": "often"}, "retry_after": 30}


@pytest.mark.parametrize("error", [HTTPException(503, "Away."), WebSocketException(1011), HTTPException(307)])
async def test_a_failure_of_the_server_stays_one(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    socket = SocketApp()

    @socket.on("x")
    async def x(conn: Connection) -> None:
        raise error

    async with TestClient(socket) as client:
        assert await ask(await client.connect(), "x") == "HANDLER_ERROR"
    assert caplog.records[-1].exc_info is not None


@pytest.mark.parametrize("error", [HTTPException(404, "Nobody."), WebSocketException(1008, "Nobody.")])
async def test_in_on_connect_they_refuse_with_4001(error: Exception) -> None:
    def refuse() -> None:
        raise error

    socket = SocketApp()

    @socket.on_connect
    async def connected(conn: Connection, _: None = Depends(refuse)) -> None: ...

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await conn.receive())["payload"]["message"] == "Nobody."
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert closed.value.code == 4001


# --- the handshake, and what lives as long as the connection


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(401, "Sign in."), 401),
        (WebSocketException(1008), 403),
        (HTTPException(503), 503),
        (RuntimeError("bug"), 500),
    ],
)
async def test_a_dependency_of_the_handshake_refuses_before_the_accept_and_cleans_up(
    error: Exception, status: int
) -> None:
    log: list[str] = []

    def opened() -> Iterator[None]:
        try:
            yield
        except BaseException as seen:
            log.append(f"saw {type(seen).__name__}")
            raise
        finally:
            log.append("closed")

    def refuse(_: Annotated[None, Depends(opened)]) -> None:
        raise error

    async with TestClient(SocketApp(dependencies=[Depends(refuse)])) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect()
        assert refused.value.status == status
        assert log == [f"saw {type(error).__name__}", "closed"]


async def test_a_value_that_does_not_fit_refuses_the_handshake_it_belongs_to() -> None:
    def tenant(tenant: int) -> None: ...

    async with TestClient(SocketApp(dependencies=[Depends(tenant)])) as client:
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect(query_params={"tenant": "x"})
        assert refused.value.status == 403
        await client.connect(query_params={"tenant": "1"})


async def test_the_handshake_may_ask_who_it_is_and_a_bad_key_is_still_refused_as_ever() -> None:
    seen: list[str | None] = []

    def note(who: Identity) -> None:
        seen.append(who.user_id)

    socket = SocketApp(auth=APIKeyAuth({"key": Identity(user_id="ada")}), dependencies=[Depends(note)])
    async with TestClient(socket) as client:
        conn = await client.connect(query_params={"api_key": "key"})
        assert (seen, conn.identity.user_id) == (["ada"], "ada")
        stranger = await client.connect()
        assert (await stranger.receive())["payload"]["code"] == "AUTH_ERROR"
        assert seen == ["ada"]


async def test_what_is_kept_is_made_once_shared_by_all_and_closed_after_the_last_hook() -> None:
    log: list[str] = []

    async def opened(handshake: Handshake) -> AsyncIterator[list[str]]:
        log.append("open")
        yield log
        log.append("close")

    async def user(db: Annotated[list[str], Depends(opened, scope="connection")]) -> AsyncIterator[str]:
        log.append("user")
        yield "ada"
        log.append("user gone")

    socket = SocketApp(dependencies=[Depends(opened)])
    Kept = Annotated[str, Depends(user, scope="connection")]

    @socket.on("x")
    async def x(conn: Connection, who: Kept) -> dict[str, str]:
        return {"who": who}

    @socket.on_disconnect
    async def bye(conn: Connection, reason: str, who: Kept) -> None:
        log.append(f"bye {who}")

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert log == ["open"]
        for _ in range(2):
            assert await ask(conn, "x") == {"who": "ada"}
        await conn.close()
        assert log == ["open", "user", "bye ada", "user gone", "close"]
        assert conn.connection.resources is not None
        with pytest.raises(RuntimeError, match="has ended"):
            await conn.connection.resources.value("late", lambda stack: nobody())


async def test_a_connection_that_declares_nothing_keeps_nothing() -> None:
    socket = SocketApp()

    @socket.on("x")
    async def x(conn: Connection, who: Annotated[str, Depends(somebody)]) -> None: ...

    async with TestClient(socket) as client:
        conn = await client.connect()
        await ask(conn, "x")
        assert (conn.connection.resources, conn.connection.handshake.scope) == (None, None)


def test_what_is_kept_cannot_use_what_each_event_gets_anew() -> None:
    def kept(name: Annotated[str, Depends(somebody)]) -> str:
        return name

    async def handler(conn: Connection, name: Annotated[str, Depends(kept, scope="connection")]) -> None: ...

    with pytest.raises(ConfigurationError, match=r'Depends\(somebody, scope="connection"\)'):
        SocketApp().on("x")(handler)

    def wants_connection(conn: Connection) -> None: ...

    with pytest.raises(ConfigurationError, match="before there is one"):
        SocketApp(dependencies=[Depends(wants_connection)])
    with pytest.raises(ConfigurationError, match="there is no event"):
        SocketApp(dependencies=[Depends(somebody, scope="event")])


async def test_what_is_kept_is_tried_again_where_making_it_failed() -> None:
    tries: list[int] = []

    def shaky() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise HTTPException(403, "Not yet.")
        return len(tries)

    socket = SocketApp()

    @socket.on("x")
    async def x(conn: Connection, n: Annotated[int, Depends(shaky, scope="connection")]) -> dict[str, int]:
        return {"n": n}

    async with TestClient(socket) as client:
        conn = await client.connect()
        assert await ask(conn, "x") == "PERMISSION_ERROR"
        assert [await ask(conn, "x"), await ask(conn, "x")] == [{"n": 2}, {"n": 2}]


# --- variables of rooms


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
