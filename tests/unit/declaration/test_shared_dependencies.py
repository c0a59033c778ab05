"""What dependencies that are shared with HTTP routes get of a handshake, and what is refused."""

from __future__ import annotations

from typing import Annotated, Any

import fastapi
import pytest
from fastapi.requests import HTTPConnection
from fastapi.security import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    HTTPBearer,
    OAuth2PasswordBearer,
    SecurityScopes,
)
from pydantic import BaseModel
from starlette.requests import cookie_parser

from socketspec import Connection, Depends, Identity, SocketApp
from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import Handshake
from socketspec.security.auth import APIKeyAuth
from socketspec.testing import TestClient
from tests.asking import ask, joining


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
            "session": "x%20y",
            "ids": [1, 2],
            "size": 50,
            "verbose": True,
            "variables": {"tenant": 7},
        }


async def test_a_cookie_parameter_is_the_cookie_that_fastapi_and_the_connection_have() -> None:
    header = r'sid=old; prefs={"a": "b"}; sid="say \"hi\" %20"'

    def by_parameters(
        sid: Annotated[str, fastapi.Cookie()], prefs: Annotated[str, fastapi.Cookie()], lone: str = fastapi.Cookie("")
    ) -> dict[str, str]:
        return {"sid": sid, "prefs": prefs, "lone": lone}

    socket = SocketApp()

    @socket.on("cookies")
    async def handler(conn: Connection, got: Annotated[dict[str, str], Depends(by_parameters)]) -> dict[str, object]:
        return {"got": got, "same": {**conn.cookies, "lone": ""} == got}

    async with TestClient(socket) as client:
        conn = await client.connect(headers={"Cookie": header})
        assert await ask(conn, "cookies") == {"got": {**cookie_parser(header), "lone": ""}, "same": True}


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


@pytest.mark.parametrize(
    "scheme",
    [
        OAuth2PasswordBearer("token"),
        HTTPBearer(),
        APIKeyHeader(name="x-key"),
        APIKeyCookie(name="key"),
        APIKeyQuery(name="key"),
    ],
    ids=lambda scheme: type(scheme).__name__,
)
async def test_fastapis_security_schemes_read_the_handshake(scheme: Any) -> None:
    socket = SocketApp()

    @socket.on("whoami")
    async def whoami(conn: Connection, given: Annotated[Any, fastapi.Security(scheme)]) -> dict[str, str]:
        return {"given": getattr(given, "credentials", given)}

    headers = {"Authorization": "Bearer f00d", "X-Key": "f00d", "Cookie": "key=f00d"}
    async with TestClient(socket) as client:
        conn = await client.connect(headers=headers, query_params={"key": "f00d"})
        assert await ask(conn, "whoami") == {"given": "f00d"}
        assert await ask(await client.connect(), "whoami") == "AUTH_ERROR"


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
