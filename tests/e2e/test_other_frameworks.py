"""`ASGIApp` inside Starlette, Litestar, Quart and Django, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import Server, client, fetch, serving

LIVE = """
from socketspec import SocketApp
from socketspec.adapters.asgi import ASGIApp

socket = SocketApp(docs=True)


@socket.on("say")
async def say(conn, payload: dict) -> dict:
    await socket.rooms.broadcast_all("said", payload)
    return {"heard": payload["text"]}


live = ASGIApp(socket)
"""

STARLETTE = """
from live import live
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

app = Starlette(routes=[Mount("/ws", app=live), Route("/page", lambda request: PlainTextResponse("framework"))])
"""

LITESTAR = """
from litestar import Litestar, asgi, get
from litestar.types import Receive, Scope, Send
from live import live


@asgi("/ws", is_mount=True, copy_scope=True)
async def socket(scope: Scope, receive: Receive, send: Send) -> None:
    await live(scope, receive, send)


@get("/page", media_type="text/plain", sync_to_thread=False)
def page() -> str:
    return "framework"


app = Litestar(route_handlers=[socket, page])
"""

BY_SCOPE = """

async def app(scope, receive, send) -> None:
    if scope["type"] == "websocket" and scope["path"] == "/ws":
        await live(scope, receive, send)
    else:
        await framework(scope, receive, send)
"""

QUART = (
    """
from live import live
from quart import Quart

framework = Quart(__name__)


@framework.get("/page")
async def page() -> str:
    return "framework"
"""
    + BY_SCOPE
)

DJANGO = (
    """
from django.conf import settings

settings.configure(ROOT_URLCONF="main", SECRET_KEY="only-for-this-test", ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)

from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path
from live import live

urlpatterns = [path("page", lambda request: HttpResponse("framework"))]
framework = get_asgi_application()
"""
    + BY_SCOPE
)

SOURCES = {"starlette": STARLETTE, "litestar": LITESTAR, "quart": QUART, "django": DJANGO}
PASSES_HTTP_ON = ["starlette", "litestar"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    folder = tmp_path_factory.mktemp("frameworks")
    started = {name: Server.start(folder / name, source, others={"live.py": LIVE}) for name, source in SOURCES.items()}
    with serving(*started.values()):
        yield started


@pytest.mark.parametrize("name", SOURCES)
async def test_events_acks_and_broadcasts_work_inside_the_framework(servers: dict[str, Server], name: str) -> None:
    url = servers[name].url("/ws/" if name == "starlette" else "/ws")  # Starlette's Mount wants the slash
    async with client(url) as ada, client(url) as bob:
        await bob.send("say", {"text": "first"}, id=1)
        got = [await bob.receive(), await bob.receive()]
        assert {"event": "__ack__", "payload": {"heard": "first"}, "id": 1} in got
        while (await ada.receive())["payload"] != {"text": "first"}:
            pass
        await ada.send("say", {"text": "second"})
        assert await bob.receive() == {"event": "said", "payload": {"text": "second"}}


@pytest.mark.parametrize("name", SOURCES)
async def test_the_frameworks_own_pages_still_answer(servers: dict[str, Server], name: str) -> None:
    assert (await fetch(servers[name], "/page")).text == "framework"


@pytest.mark.parametrize("name", PASSES_HTTP_ON)
async def test_the_schema_page_answers_through_the_mount(servers: dict[str, Server], name: str) -> None:
    assert (await fetch(servers[name], "/ws/socket-docs")).status == 200
    assert "say" in (await fetch(servers[name], "/ws/socket-docs/schema")).text
