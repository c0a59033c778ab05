"""What guards the routes of a FastAPI application guards the socket that is mounted on it."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, WebSocket, WebSocketException
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

import socketspec
from socketspec import Connection, SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import ConfigurationError, EventError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it would like another HTTP client
    from starlette.testclient import TestClient, WebSocketDenialResponse


class OutOfServiceError(Exception):
    """One that the application has a handler for."""


def unauthorized() -> None:
    raise HTTPException(401, "Sign in.", {"WWW-Authenticate": "Bearer"})


def by_policy(connection: HTTPConnection) -> None:
    raise WebSocketException(1008, "no")


def out_of_service() -> None:
    raise OutOfServiceError


def wants_number(n: int) -> None: ...


def app_with_guard(guard: Any, socket: SocketApp) -> FastAPI:
    app = FastAPI(dependencies=[Depends(guard)])
    mount(socket, app, path="/ws")
    own(app.router, "/plain")
    return app


def router_with_guard(guard: Any, socket: SocketApp) -> FastAPI:
    router = APIRouter(dependencies=[Depends(guard)])
    mount(socket, router, path="/ws")
    own(router, "/plain")
    app = FastAPI()
    app.include_router(router)
    return app


def included_with_guard(guard: Any, socket: SocketApp) -> FastAPI:
    router, outer = APIRouter(), APIRouter()
    mount(socket, router, path="/ws")
    own(router, "/plain")
    outer.include_router(router)
    app = FastAPI()
    app.include_router(outer, dependencies=[Depends(guard)])
    return app


def mounted_with_guard(guard: Any, socket: SocketApp) -> FastAPI:
    app = FastAPI()
    mount(socket, app, path="/ws", dependencies=[Depends(guard)])
    app.router.add_api_websocket_route("/plain", accepting, dependencies=[Depends(guard)])
    return app


async def accepting(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def own(router: APIRouter, path: str) -> None:
    """A WebSocket route as FastAPI has it, to compare with."""
    router.add_api_websocket_route(path, accepting)


def outcome(client: TestClient, path: str) -> object:
    """How a client is refused: the HTTP answer, or the close code before the accept; None where it is let in."""
    try:
        with client.websocket_connect(path):
            return None
    except WebSocketDenialResponse as denied:
        return denied.status_code, denied.content, denied.headers.get("www-authenticate")
    except WebSocketDisconnect as closed:
        return closed.code


PLACES = (app_with_guard, router_with_guard, included_with_guard, mounted_with_guard)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("guard", [unauthorized, by_policy, out_of_service, wants_number])
def test_a_guard_refuses_the_socket_exactly_as_it_refuses_fastapis_own(place: Any, guard: Callable[..., None]) -> None:
    app = place(guard, SocketApp())

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"back": "soon"}, 503)

    app.add_exception_handler(OutOfServiceError, answer)
    with TestClient(app) as client:
        assert outcome(client, "/ws") is not None
        assert outcome(client, "/ws") == outcome(client, "/plain")
        if guard is wants_number:
            assert outcome(client, "/ws?n=1") is outcome(client, "/plain?n=1") is None


@pytest.mark.parametrize("place", PLACES)
def test_overrides_of_the_application_reach_its_guards_and_the_sockets_dependencies(place: Any) -> None:
    def name() -> str:
        return "real"

    socket = SocketApp(dependencies=[Depends(unauthorized)])

    @socket.on("name")
    async def handler(conn: Connection, found: Annotated[str, Depends(name)]) -> dict[str, str]:
        return {"name": found}

    app = place(unauthorized, socket)
    app.dependency_overrides = {unauthorized: lambda: None, name: lambda: "fake"}
    with TestClient(app) as client, client.websocket_connect("/ws") as ws:
        ws.send_json({"event": "name", "id": 1})
        assert ws.receive_json()["payload"] == {"name": "fake"}
        app.dependency_overrides.pop(name)
        ws.send_json({"event": "name", "id": 2})
        assert ws.receive_json()["payload"] == {"name": "real"}


@pytest.mark.parametrize("place", PLACES)
def test_what_a_guard_opens_is_closed_after_the_last_hook(place: Any) -> None:
    log: list[str] = []

    async def opened() -> AsyncIterator[None]:
        log.append("open")
        try:
            yield
        finally:
            log.append("close")

    socket = SocketApp()

    @socket.on("x")
    async def x(conn: Connection) -> None:
        log.append("event")

    @socket.on_disconnect
    async def bye(conn: Connection, reason: str) -> None:
        log.append("bye")

    with TestClient(place(opened, socket)) as client, client.websocket_connect("/ws") as ws:
        ws.send_json({"event": "x", "id": 1})
        ws.receive_json()
        assert log == ["open", "event"]
    assert log == ["open", "event", "bye", "close"]


@pytest.mark.parametrize("included", [False, True])
def test_variables_of_the_path_reach_handlers_guards_and_dependencies(included: bool) -> None:
    def tenant(tenant: str, number: int) -> str:
        return f"{tenant} {number}"

    socket = SocketApp(dependencies=[Depends(tenant)])

    @socket.on("where")
    async def where(conn: Connection, found: Annotated[str, Depends(tenant)]) -> dict[str, Any]:
        return {"found": found, "variables": dict(conn.path_params)}

    app = FastAPI()
    router = APIRouter(prefix="/{area}") if included else app.router
    mount(socket, router, path="/ws/{tenant}/{number:int}", dependencies=[Depends(tenant)])
    if included:
        app.include_router(router, dependencies=[Depends(tenant)])
    with TestClient(app) as client, client.websocket_connect("/a/ws/acme/7" if included else "/ws/acme/7") as ws:
        ws.send_json({"event": "where", "id": 1})
        variables = {"tenant": "acme", "number": 7}
        expected = {"area": "a", **variables} if included else variables
        assert ws.receive_json()["payload"] == {"found": "acme 7", "variables": expected}


def test_state_of_the_application_and_of_its_middleware_is_seen_by_shared_dependencies() -> None:
    def setting(connection: HTTPConnection) -> str:
        return f"{connection.app.state.setting} {connection.state.found}"

    def finds(connection: HTTPConnection) -> None:
        connection.state.found = "and found"

    socket = SocketApp()

    @socket.on("setting")
    async def handler(conn: Connection, found: Annotated[str, Depends(setting)]) -> dict[str, str]:
        return {"setting": found}

    app = FastAPI(dependencies=[Depends(finds)])
    app.state.setting = "kept"
    mount(socket, app)
    with TestClient(app) as client, client.websocket_connect("/ws") as ws:
        ws.send_json({"event": "setting", "id": 1})
        assert ws.receive_json()["payload"] == {"setting": "kept and found"}


def test_a_sub_application_is_ready_before_its_first_client_and_stays_stopped_when_it_was_stopped() -> None:
    api, app = FastAPI(), FastAPI()
    socket = SocketApp()
    mount(socket, api)
    app.mount("/api", api)
    with TestClient(app) as client:
        assert client.get("/api/socket-health").status_code == 200
        assert client.portal is not None
        client.portal.call(socket.stop)
        assert client.get("/api/socket-health").status_code == 503


def test_a_mount_with_dependencies_that_cannot_work_is_refused() -> None:
    def wants_body(body: dict[str, str]) -> None: ...

    def wants_connection(conn: Connection) -> None: ...

    for wrong in (wants_body, wants_connection):
        with pytest.raises(ConfigurationError):
            mount(SocketApp(), FastAPI(), dependencies=[socketspec.Depends(wrong)])


def test_a_header_of_a_guard_is_read_as_on_http() -> None:
    def keyed(x_key: Annotated[str, Header()]) -> None:
        if x_key != "right":
            raise HTTPException(403)

    app = FastAPI()
    mount(SocketApp(), app, dependencies=[Depends(keyed)])
    with TestClient(app) as client:
        with client.websocket_connect("/ws", headers={"X-Key": "right"}):
            pass
        with pytest.raises(WebSocketDenialResponse), client.websocket_connect("/ws", headers={"X-Key": "wrong"}):
            pass


@pytest.mark.parametrize("served", ["by FastAPI", "alone"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(401, "half a pair: \ud800"), 401),
        (HTTPException(401, {"of": object()}), 401),
        (HTTPException(401, {"of": float("nan")}), 401),
        (HTTPException(401, "x", {"X-Place": "Łódź", "X-Kept": "yes"}), 401),
        (HTTPException(401, "x", {"X-Lines": "a\r\nb: c", "X-Kept": "yes"}), 401),
        (HTTPException(429, "x", {"Retry-After": 5}), 429),  # type: ignore[dict-item] # untyped
        (EventError("half a pair: \ud800", code="NOT_FOUND"), 404),
    ],
)
def test_a_refusal_that_cannot_be_encoded_is_still_the_answer(served: str, error: Exception, status: int) -> None:
    async def refuses() -> None:
        raise error

    socket = SocketApp(dependencies=[socketspec.Depends(refuses)])
    app: Any = ASGIApp(socket)
    if served == "by FastAPI":
        app = FastAPI()
        mount(socket, app)
    with TestClient(app) as client, pytest.raises(WebSocketDenialResponse) as denied:
        client.websocket_connect("/ws").__enter__()
    kept = {"yes"} if "X-Kept" in (getattr(error, "headers", None) or {}) else set()
    assert (denied.value.status_code, {*denied.value.headers.get_list("x-kept")}) == (status, kept)
