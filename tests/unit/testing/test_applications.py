"""A whole application: its lifespan, routes, middleware and dependencies run as well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, WebSocket
from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from socketspec import Connection, SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import ConfigurationError
from socketspec.testing import HandshakeRefused, TestClient
from tests.engines import is_running
from tests.unit.testing.apps import ADA, Order, shop


async def test_the_lifespan_the_guards_the_state_and_the_routes_are_the_applications() -> None:
    happened: list[str] = []
    socket = shop()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        happened.append("started")
        await socket.rooms.broadcast("orders", "ordered", Order(item="first"))
        yield {"database": "open"}
        happened.append("stopped")

    def guard(connection: HTTPConnection) -> None:
        if connection.query_params.get("closed"):
            raise HTTPException(418)
        happened.append(connection.state.database)

    app = FastAPI(lifespan=lifespan)
    router = APIRouter(prefix="/api", dependencies=[Depends(guard)])
    mount(socket, router, path="/live/{shop}")
    app.include_router(router, prefix="/v1")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["testserver"])

    @app.post("/ship")
    async def ship() -> dict[str, int]:
        await socket.rooms.broadcast("orders", "ordered", Order(item="shipped"))
        return {"shipped": 1}

    async with TestClient(app) as client:
        assert happened == ["started"]
        with pytest.raises(ValueError, match=r"mounted at '/v1/api/live/\{shop\}': pass connect\(path=…\)"):
            await client.connect()
        async with client.connect(path_params={"shop": "main"}, identity=ADA) as conn:
            assert conn.connection.path_params == {"shop": "main"}
            await conn.request("watch")
            assert (await client.http.post("/ship")).json() == {"shipped": 1}
            assert (await conn.expect("ordered", Order)).item == "shipped"
        with pytest.raises(HandshakeRefused) as refused:
            await client.connect("/v1/api/live/main?closed=1")
        assert refused.value.status == 418
        app.dependency_overrides[guard] = lambda: None
        async with client.connect("/v1/api/live/main?closed=1", identity=ADA) as conn:
            assert await conn.request("whoami") == {"user": "ada"}
    assert happened == ["started", "open", "stopped"]
    assert not is_running(socket)


async def test_of_several_sockets_one_is_named() -> None:
    app, sub = FastAPI(), FastAPI()
    mount(SocketApp(), app, path="/a")
    mount(SocketApp(namespace="/b"), app, path="/b")
    mount(SocketApp(namespace="/c"), sub, path="/c")
    app.mount("/sub", sub)
    async with TestClient(app) as client:
        with pytest.raises(ValueError, match=r"There are 3 sockets .* Mounted: '/a', '/b', '/sub/c'\."):
            await client.connect()
        for path, namespace in (("/a", "/"), ("/b", "/b"), ("/sub/c", "/c")):
            async with client.connect(path) as conn:
                assert conn.connection.namespace == namespace


async def test_an_app_that_is_mounted_as_it_is_says_so() -> None:
    app = FastAPI()
    app.mount("/ws", SocketApp())
    with pytest.raises(ConfigurationError, match=r"mount\(socket, app, path='/ws'\)"):
        await TestClient(app).__aenter__()


async def test_an_app_mounted_as_asgi_and_one_that_is_named() -> None:
    socket = SocketApp()
    async with TestClient(Starlette(routes=[Mount("/ws", ASGIApp(socket))])) as client:
        await client.connect()

    async def hidden(scope: Any, receive: Any, send: Any) -> None:
        await ASGIApp(socket)(scope, receive, send)

    with pytest.raises(
        ValueError, match=r"found no SocketApp in this function: mount one on it.*TestClient\(app, sock"
    ):
        await TestClient(hidden).start()
    async with TestClient(hidden, socket=socket) as client:
        async with client.connect("/anywhere") as conn:
            assert conn.connection.handshake.path == "/anywhere"
        assert len(await asyncio.gather(client.connect("/x"), asyncio.create_task(client.connect("/y")))) == 2


async def test_another_endpoint_than_a_sockets_says_so() -> None:
    app = FastAPI()
    mount(SocketApp(), app)

    @app.websocket("/other")
    async def other(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive()

    async with TestClient(app) as client:
        with pytest.raises(RuntimeError, match="What answers at '/other' is no SocketApp"):
            await client.connect("/other")
        with pytest.raises(HandshakeRefused):
            await client.connect("/nowhere")


async def test_a_lifespan_that_fails_fails_the_test() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    app = FastAPI(lifespan=lifespan)
    socket = SocketApp()
    mount(socket, app)
    with pytest.raises(LookupError, match="no database"):
        async with TestClient(app):
            pass
    assert not is_running(socket)
    assert socket.clock is None


async def test_a_socket_by_itself_has_no_http_routes() -> None:
    async with TestClient(SocketApp()) as client:
        with pytest.raises(RuntimeError, match="test the application that it is mounted on"):
            _ = client.http


def test_trio_is_refused_with_what_to_write() -> None:
    async def main() -> None:
        async with TestClient(SocketApp()):
            pass

    pytest.importorskip("trio", reason="trio: pip install trio")
    with pytest.raises(RuntimeError, match="a fixture `anyio_backend` that returns 'asyncio'"):
        anyio.run(main, backend="trio")


def test_without_asyncio_it_is_refused_with_what_to_write() -> None:
    with pytest.raises(RuntimeError, match="a fixture `anyio_backend` that returns 'asyncio'"):
        TestClient(SocketApp()).start().send(None)


async def test_a_server_that_closes_is_seen_through_an_application() -> None:
    socket = SocketApp()

    @socket.on("leave")
    async def leave(conn: Connection) -> None:
        await conn.emit("last")
        await conn.disconnect("bye", code=4321)

    async with TestClient(ASGIApp(socket)) as client:
        conn = await client.connect()
        await conn.send("leave")
        await conn.expect("last")
        with pytest.raises(Exception, match=r"closed with 4321 \(bye\)"):
            await conn.receive()
