"""Where a SocketApp can be mounted, and that it leaves the application around it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest
from fastapi import FastAPI
from websockets.exceptions import ConnectionClosed

from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import ConfigurationError
from tests.support import Client, Server, client, fetch, serving

SOCKETS = """
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount


def make(namespace: str) -> SocketApp:
    socket = SocketApp(namespace=namespace, docs=True, docs_url=f"{namespace}-docs")

    @socket.on("say")
    async def say(conn, payload: dict) -> dict:
        await socket.rooms.broadcast_all("said", payload)
        return {"namespace": conn.namespace}

    @socket.on_connect
    async def hello(conn) -> None:
        print(f"Connected: {conn.namespace}")

    @socket.on_disconnect
    async def bye(conn, reason) -> None:
        print(f"Disconnected: {conn.namespace} ({reason})")

    return socket
"""

EVERYWHERE = """
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware

from sockets import make, mount

one, two, routed, below = make("/one"), make("/two"), make("/routed"), make("/below")


@asynccontextmanager
async def lifespan(app):
    print(f"lifespan begins, socket started: {one.engine is not None}")
    async with below.lifespan():
        yield {"greeting": "hello"}
    print(f"lifespan ends, socket started: {one.engine is not None}")


class Wrapping:
    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def counted(message) -> None:
            if message["type"].startswith("websocket."):
                print(f"sending {message['type']}")
            await send(message)

        await self.app(scope, receive, counted)


app = FastAPI(lifespan=lifespan)
app.add_middleware(CORSMiddleware, allow_origins=["https://myapp.com"])
app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
app.add_middleware(Wrapping)
mount(one, app, path="/one")
mount(two, app, path="/two")
router = APIRouter(prefix="/own")
mount(routed, router, path="/ws")
app.include_router(router, prefix="/v1")
child = FastAPI()
mount(below, child, path="/ws")
app.mount("/child", child)


@app.get("/state")
async def state(request: Request) -> dict:
    return {"greeting": request.state.greeting}


@app.post("/say")
async def say() -> dict:
    return {"nodes": (await one.rooms.broadcast_all("said", {"text": "from http"})).nodes}
"""

ROOT_PATH = """
from fastapi import FastAPI
from sockets import make, mount

app = FastAPI(ROOT)
mount(make("/one"), app, path="/ws")
"""

STARLETTE = """
from starlette.applications import Starlette
from sockets import make, mount

app = Starlette()
mount(make("/one"), app, path="/ws")
"""


@pytest.fixture(scope="module")
def servers(websocket_protocol: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    folder = tmp_path_factory.mktemp("mounting")
    others = {"sockets.py": SOCKETS}
    started = {
        "everywhere": Server.start(folder / "1", EVERYWHERE, others=others),
        "option": Server.start(
            folder / "2", ROOT_PATH.replace("ROOT", ""), others=others, options=["--root-path", "/api"]
        ),
        "argument": Server.start(folder / "3", ROOT_PATH.replace("ROOT", 'root_path="/api"'), others=others),
        "starlette": Server.start(folder / "4", STARLETTE, others=others),
    }
    with serving(*started.values()):
        yield started


PLACES = [
    ("everywhere", "/one", "/one", "/one-docs"),
    ("everywhere", "/two", "/two", "/two-docs"),
    ("everywhere", "/v1/own/ws", "/routed", "/v1/own/routed-docs"),
    ("everywhere", "/child/ws", "/below", "/child/below-docs"),
    ("option", "/ws", "/one", "/one-docs"),
    ("argument", "/ws", "/one", "/one-docs"),
    ("starlette", "/ws", "/one", "/one-docs"),
]


@pytest.mark.parametrize(("name", "path", "namespace", "docs"), PLACES)
async def test_socket_and_schema_page_answer_wherever_it_is_mounted(
    servers: dict[str, Server], name: str, path: str, namespace: str, docs: str
) -> None:
    async with client(servers[name].url(path)) as ada:
        await ada.send("say", {"text": "hi"}, id=1)
        got = [await ada.receive(), await ada.receive()]
        assert {"event": "__ack__", "payload": {"namespace": namespace}, "id": 1} in got
    assert (await fetch(servers[name], docs)).status == 200
    assert "say" in str((await fetch(servers[name], docs + "/schema")).json()["events"])


async def test_apps_of_different_namespaces_do_not_hear_each_other(servers: dict[str, Server]) -> None:
    server = servers["everywhere"]
    async with client(server.url("/one")) as ada, client(server.url("/two")) as bob:
        await ada.send("say", {"text": "for one"})
        assert (await ada.receive())["event"] == "said"
        assert (await ada.receive())["event"] == "__ack__"
        await bob.send("say", {"text": "for two"})
        assert (await bob.receive())["payload"] == {"text": "for two"}


async def test_an_http_route_broadcasts(servers: dict[str, Server]) -> None:
    server = servers["everywhere"]
    async with client(server.url("/one")) as ada:
        await ada.send("say", {"text": "here"})
        assert [(await ada.receive())["event"] for _ in range(2)] == ["said", "__ack__"]
        server.get("/say", method="POST")
        assert (await ada.receive())["payload"] == {"text": "from http"}


async def test_the_apps_own_lifespan_runs_inside_the_sockets_and_its_state_reaches_routes(
    servers: dict[str, Server],
) -> None:
    await servers["everywhere"].logged("lifespan begins, socket started: True")
    assert (await fetch(servers["everywhere"], "/state")).json() == {"greeting": "hello"}


@pytest.mark.asgi_only
async def test_middleware_of_the_app_stays_in_place(servers: dict[str, Server]) -> None:
    server = servers["everywhere"]
    answer = await fetch(server, "/state", {"Origin": "https://myapp.com"})
    assert answer.headers["access-control-allow-origin"] == "https://myapp.com"
    async with client(server.url("/one")) as ada:
        await ada.send("say", id=1)
        assert (await ada.receive())["event"] == "said"
    await server.logged("sending websocket.accept")
    await server.logged("sending websocket.send")


def test_a_mount_that_cannot_work_says_what_to_do() -> None:
    app = FastAPI()
    mount(SocketApp(), app, path="/ws")
    with pytest.raises(ConfigurationError, match="already"):
        mount(SocketApp(namespace="/other"), app, path="/ws")
    with pytest.raises(ConfigurationError, match="begin with '/'"):
        mount(SocketApp(), app, path="ws")
    with pytest.raises(ConfigurationError, match="ASGIApp"):
        mount(SocketApp(), object(), path="/ws")  # type: ignore[arg-type]  # the mistake under test


async def nothing_but_goodbyes(connected: Client) -> None:
    """Until the end, which is raised. Stock uvicorn closes before we can say goodbye."""
    while True:
        assert (await connected.receive())["event"] == "__server_shutdown__"


@pytest.mark.usefixtures("websocket_protocol")
async def test_sigterm_closes_connections_with_1012_and_runs_the_hooks(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    server = Server.start(tmp_path_factory.mktemp("sigterm"), EVERYWHERE, others={"sockets.py": SOCKETS})
    with serving(server):
        paths = ("/one", "/two", "/v1/own/ws", "/child/ws")
        async with AsyncExitStack() as stack:
            connected = [await stack.enter_async_context(client(server.url(path))) for path in paths]
            for namespace in ("/one", "/two", "/routed", "/below"):
                await server.logged(f"Connected: {namespace}\n")
            status = server.stop()
            for each in connected:
                with pytest.raises(ConnectionClosed) as ended:
                    await nothing_but_goodbyes(each)
                assert ended.value.rcvd is not None
                assert ended.value.rcvd.code == 1012
        # uvicorn ends itself by the signal it was sent, once it has shut down.
        assert status in (0, -15)
        for namespace in ("/one", "/two", "/routed", "/below"):
            assert f"Disconnected: {namespace} (server_shutdown)" in server.log
        assert "lifespan ends, socket started: True" in server.log
        assert "Application shutdown complete" in server.log


def test_two_apps_cannot_share_a_docs_path_but_may_share_a_health_path() -> None:
    app = FastAPI()
    mount(SocketApp(docs=True, namespace="/a"), app, path="/a")
    mount(SocketApp(docs=True, docs_url="/b-docs", namespace="/b"), app, path="/b")
    with pytest.raises(ConfigurationError, match="another docs_url"):
        mount(SocketApp(docs=True, namespace="/c"), app, path="/c")


async def test_a_shared_health_path_is_ready_when_all_its_apps_are() -> None:
    first, second = SocketApp(namespace="/a"), SocketApp(namespace="/b")
    app = FastAPI()
    mount(first, app, path="/a")
    mount(second, app, path="/b")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http, first.lifespan():
        async with second.lifespan():
            assert (await http.get("/socket-health")).status_code == 200
        assert (await http.get("/socket-health")).status_code == 503, "one of them has stopped"
