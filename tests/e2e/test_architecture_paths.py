"""The paths of docs/architecture.md are walked: in a real server, functions are called in the order that is written.

Each path is a numbered list; a step begins with the ``path.py:name`` of a function, or of a class of which any will do.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from pydantic import BaseModel
from websockets.asyncio.client import connect

from scripts.house import ROOT
from socketspec import Connection, History, Room, SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.security.ratelimit import RateLimit
from tests.servers import Server

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")

_STEP = re.compile(r"^\d+\. `(?P<file>[\w/]+\.py):(?P<name>[\w.]+)`", re.MULTILINE)

Call = tuple[str, str]
"""A file, as the page names it, and a function's qualified name."""


def steps(begin: str, end: str) -> list[Call]:
    """The steps that the page lists between two of its sentences."""
    text = PAGE.split(begin, 1)[1].split(end, 1)[0]
    found = [(match["file"], match["name"]) for match in _STEP.finditer(text)]
    assert len(found) >= 5, f"no path after {begin!r}"
    return found


@contextmanager
def calls_recorded() -> Iterator[list[Call]]:
    """Every call of a function of this project in this thread, in order."""
    calls: list[Call] = []
    places: dict[str, str] = {}

    def record(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        place = places.get(code.co_filename)
        if place is None:
            place = places[code.co_filename] = _place(code.co_filename)
        if place:
            calls.append((place, code.co_qualname))

    sys.setprofile(record)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def _place(filename: str) -> str:
    path = Path(filename).resolve()
    return path.relative_to(ROOT).as_posix().removeprefix("socketspec/") if path.is_relative_to(ROOT) else ""


def missing(path: Sequence[Call], calls: Sequence[Call]) -> Call | None:
    """The first step of `path` that was not called after the ones before it; None where all were."""
    remaining = iter(calls)
    for file, name in path:
        if not any(
            called == file and (function == name or function.startswith(f"{name}.")) for called, function in remaining
        ):
            return file, name
    return None


class Greeting(BaseModel):
    text: str


def make_app(backend: str) -> SocketApp:
    app = SocketApp(
        backend=backend, rooms=[Room("hall", history=History())], rate_limit=RateLimit(rate=100, capacity=100)
    )

    @app.on("greet")
    async def greet(conn: Connection, payload: Greeting) -> Greeting:
        return payload

    @app.on("enter")
    async def enter(conn: Connection) -> None:
        await app.rooms.join(conn, "hall")

    return app


@asynccontextmanager
async def served(app: SocketApp) -> AsyncIterator[str]:
    """`app` on a real uvicorn with our protocol, in this event loop; its URL."""
    config = uvicorn.Config(ASGIApp(app), ws="socketspec.adapters.uvicorn:WebSocketProtocol", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # who connects before uvicorn is ready waits in its queue
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            await serving


async def ask(client: Any, event: str, payload: object) -> Any:
    await client.send(json.dumps({"event": event, "payload": payload, "id": 1}))
    return json.loads(await client.recv())


async def test_a_message_takes_the_path_that_is_written() -> None:
    async with served(make_app("memory")) as url, connect(url) as client:
        with calls_recorded() as calls:
            reply = await ask(client, "greet", {"text": "hello"})
    assert reply["payload"] == {"text": "hello"}
    path = steps("### In: from a frame", "Every step up to")
    assert missing(path, calls) is None


async def broadcast(app: SocketApp) -> list[Call]:
    """The calls of a broadcast to a room with a member on this node, until it has arrived."""
    async with served(app) as url, connect(url) as client:
        assert (await ask(client, "enter", {}))["event"] == "__ack__"
        with calls_recorded() as calls:
            await app.rooms.broadcast("hall", "news", {"n": 1})
            assert json.loads(await client.recv())["event"] == "news"
    return calls


async def test_a_broadcast_in_one_process_takes_the_path_that_is_written() -> None:
    path = steps("### Out: a broadcast in one process", "A fan-out to more")
    assert missing(path, await broadcast(make_app("memory"))) is None


async def test_a_broadcast_through_redis_takes_the_two_legs_that_are_written(standalone_server: Server) -> None:
    local = steps("### Out: a broadcast in one process", "A fan-out to more")
    legs = steps("The **publish leg**", "### The life of a connection")
    calls = await broadcast(make_app(f"{standalone_server.url}?prefix=architecture"))
    assert missing([*local[:3], *legs, *local[5:]], calls) is None


async def test_a_connection_lives_as_it_is_written() -> None:
    path = steps("### The life of a connection", "Which state may follow")
    app = make_app("memory")
    with calls_recorded() as calls:
        async with served(app) as url, connect(url) as client:
            assert (await ask(client, "greet", {"text": "hello"}))["event"] == "__ack__"
    assert missing(path, calls) is None


def test_a_step_that_is_left_out_or_comes_too_early_is_noticed() -> None:
    path = [("a.py", "A"), ("b.py", "b")]
    assert missing(path, [("a.py", "A.run"), ("c.py", "c"), ("b.py", "b")]) is None
    assert missing(path, [("b.py", "b"), ("a.py", "A.run")]) == ("b.py", "b")
    assert missing(path, [("b.py", "b")]) == ("a.py", "A")
