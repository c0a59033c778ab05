"""An app that starts while Redis is away: the server logs a sentence, whatever the app is mounted on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from socketspec import SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.adapters.fastapi import mount
from socketspec.backend.memory import MemoryBackend
from socketspec.backend.protocols import Deliver, Lost
from socketspec.errors import BackendError
from tests.cluster.ears import refused
from tests.servers import Server

ASGI = Callable[..., Awaitable[None]]
SENTENCE = "Cannot connect to 127.0.0.1:"


def away(start_timeout: float = 0) -> SocketApp:
    url, _ = refused()
    return SocketApp(backend=f"{url}?start_timeout={start_timeout}")


class Loud(MemoryBackend):
    """Says things at the start that would forge lines of a log."""

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        raise BackendError(SENTENCE + "\nINFO: all is well \x1b[2J")


def loud() -> SocketApp:
    return SocketApp(backend=Loud())


def alone(socket: SocketApp) -> ASGI:
    return ASGIApp(socket)


def on_fastapi(socket: SocketApp) -> ASGI:
    app = FastAPI()
    mount(socket, app)
    return app


def on_fastapi_with_another(socket: SocketApp) -> ASGI:
    app = FastAPI()
    mount(SocketApp(health_url=None), app, path="/first")
    mount(socket, app)
    mount(SocketApp(namespace="/third", health_url=None), app, path="/third")
    return app


def on_starlette(socket: SocketApp) -> ASGI:
    app = Starlette()
    mount(socket, app)
    return app


async def startup(app: ASGI) -> list[dict[str, Any]]:
    """The events that the app sends a server when it starts, and stops if it has started."""
    sent: list[dict[str, Any]] = []
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> dict[str, Any]:
        return next(events)

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    try:
        await app({"type": "lifespan", "app": app, "state": {}}, receive, send)
    except Exception:  # as servers do: the event has told them
        assert sent
    return sent


@pytest.mark.parametrize("trouble", [away, loud])
@pytest.mark.parametrize("make", [alone, on_fastapi, on_fastapi_with_another, on_starlette])
async def test_the_server_is_told_one_sentence(
    make: Callable[[SocketApp], ASGI], trouble: Callable[[], SocketApp]
) -> None:
    (event,) = await startup(make(trouble()))
    assert event["type"] == "lifespan.startup.failed"
    assert event["message"].startswith(SENTENCE)
    assert event["message"].isprintable()


async def test_an_error_of_the_application_itself_keeps_its_traceback() -> None:
    @asynccontextmanager
    async def broken(_app: FastAPI) -> Any:
        raise ZeroDivisionError
        yield

    app = FastAPI(lifespan=broken)
    mount(SocketApp(), app)
    (event,) = await startup(app)
    assert "Traceback" in event["message"]
    assert "ZeroDivisionError" in event["message"]


async def test_an_app_that_can_start_is_told_to_have_started() -> None:
    app, router = FastAPI(), APIRouter()
    mount(SocketApp(), router)
    app.include_router(router)
    assert [event["type"] for event in await startup(app)] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


@pytest.mark.parametrize("trouble", [away, loud])
async def test_a_connection_that_comes_before_the_app_can_start_is_refused_and_logged_in_a_sentence(
    trouble: Callable[[], SocketApp], caplog: pytest.LogCaptureFixture
) -> None:
    inner = FastAPI()
    mount(trouble(), inner)
    outer = Starlette(routes=[Mount("/inner", inner)])  # whose lifespan no server runs
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(event: MutableMapping[str, Any]) -> None:
        sent.append(event)

    scope = {
        "type": "websocket",
        "path": "/inner/ws",
        "headers": [],
        "query_string": b"",
        "extensions": {"websocket.http.response": {}},
    }
    with caplog.at_level(logging.INFO, "socketspec"):
        await outer(scope, receive, send)
    assert [event.get("status") for event in sent] == [503, None]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage().startswith("A connection is refused") for record in errors] == [True]
    assert all(record.exc_info is None for record in errors)
    assert SENTENCE in errors[0].getMessage()
    assert errors[0].getMessage().isprintable()


async def test_the_same_trouble_is_logged_once_while_it_lasts(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    app = SocketApp(backend=f"{server.url}?start_timeout=20")
    server.kill()
    with caplog.at_level(logging.WARNING, "socketspec.cluster"):
        starting = asyncio.create_task(app.ensure_started())
        await asyncio.sleep(0.5)  # some tries
        await asyncio.to_thread(server.restart)
        await starting
    await app.stop()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said)) <= 3  # refused, and perhaps still loading
    assert "Trying again for" in said[0]
