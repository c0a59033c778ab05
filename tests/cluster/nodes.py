"""Real node processes for cluster tests, and the app they run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.support import Client, Server, client, fetch, jwt

__all__ = ("SECRET", "Nodes", "ask", "drain", "eventually_async", "nodes", "token")

SECRET = "cluster-tests-secret-of-32-bytes!"

APP = """
import logging
import os
import resource

from fastapi import FastAPI

from socketspec import Connection, Room, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.backend import History
from socketspec.cluster import RedisBackend
from socketspec.security.auth import JWTAuth
from socketspec.security.ratelimit import RateLimit
from socketspec.session import SessionConfig

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
options = {OPTIONS}
backend = RedisBackend(os.environ["REDIS_URL"], **options.pop("backend", {}))
auth = JWTAuth(secret=os.environ["SECRET"], algorithm="HS256") if options.pop("auth", False) else None
limit = options.pop("rate_limit", None)
socket = SocketApp(
    backend=backend,
    auth=auth,
    rate_limit=RateLimit(*limit) if limit else None,
    rooms=[Room("log:{n}", history=History(size=500, ttl=600)), Room("small", max_members=2), Room("{any}")],
    session=SessionConfig(**options.pop("session", {})),
    **options,
)
left: list[tuple[str, str | None, str, bool]] = []


@socket.on("join")
async def join(conn: Connection, payload: dict):
    await socket.rooms.join(conn, payload["room"])
    return {"node": socket.node}


@socket.on("leave")
async def leave(conn: Connection, payload: dict):
    await socket.rooms.leave(conn, payload["room"])
    return {}


@socket.on("say")
async def say(conn: Connection, payload: dict):
    receipt = await socket.rooms.broadcast(payload["room"], "said", payload)
    return {"nodes": receipt.nodes, "offset": receipt.position.offset if receipt.position else None}


@socket.on("count")
async def count(conn: Connection, payload: dict):
    return {"count": await socket.rooms.count(payload["room"])}


@socket.on("echo")
async def echo(conn: Connection, payload: dict):
    return payload


@socket.on_room_leave
async def on_room_leave(conn: Connection, room: str):
    left.append((conn.id, conn.identity.user_id, room, conn.is_open))


app = FastAPI()
mount(socket, app)


@app.get("/left")
async def get_left():
    return left


@app.get("/members/{room}")
async def get_members(room: str):
    return [member._asdict() for member in await socket.rooms.members(room)]


@app.get("/rss")
async def rss():
    return {"kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


@app.get("/users/{user}/count")
async def user_count(user: str):
    return {"count": await socket.users.count(user)}


@app.post("/users/{user}/send")
async def user_send(user: str):
    return {"nodes": (await socket.users.send(user, "direct", {"to": user})).nodes}


@app.post("/users/{user}/disconnect")
async def user_disconnect(user: str):
    await socket.users.disconnect(user, reason="kicked")
    return {}


@app.post("/revoke/{user}")
async def revoke(user: str):
    await socket.sessions.revoke(user=user)
    return {}
"""


def token(user: str, **claims: Any) -> str:
    """A token that the test app accepts."""
    return jwt(SECRET, sub=user, **claims)


class Nodes:
    """Several nodes of the test app on one Redis."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers

    def __getitem__(self, index: int) -> Server:
        return self.servers[index]

    @asynccontextmanager
    async def client(
        self, index: int, *rooms: str, user: str | None = None, subprotocols: tuple[str, ...] = ()
    ) -> AsyncIterator[Client]:
        """A client on node `index`, in `rooms`."""
        query = "" if user is None else f"?token={token(user)}"
        async with client(self.servers[index].url(f"/ws{query}"), subprotocols=subprotocols) as connected:
            for room in rooms:
                await connected.call("join", {"room": room})
            yield connected

    async def get(self, index: int, path: str, method: str = "GET") -> Any:
        """A page of node `index`, parsed."""
        return json.loads((await asyncio.to_thread(self.servers[index].get, path, None, method)).text)

    async def ready(self, index: int) -> bool:
        """What node `index` says of itself."""
        return (await fetch(self.servers[index], "/socket-health")).status == 200

    async def until_ready(self, index: int, ready: bool = True, within: float = 10.0) -> float:
        """Wait until node `index` says so; the seconds it took."""
        began = time.monotonic()
        await eventually_async(lambda: self.ready(index), ready, within, f"node {index} ready={ready}")
        return time.monotonic() - began


async def eventually_async(ask: Callable[[], Any], wanted: Any, within: float, what: str) -> None:
    """Ask until the answer is `wanted`."""
    deadline = time.monotonic() + within
    answer: object = None
    while time.monotonic() < deadline:
        answer = await ask()
        if answer == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {within} s: {what}; the last answer was {answer!r}")


@contextmanager
def nodes(
    folder: Path, urls: list[str], options: Mapping[str, Any] | None = None, *, wait: bool = True
) -> Iterator[Nodes]:
    """One node for each Redis URL in `urls`, with `options` for `SocketApp` (``backend=`` those of `RedisBackend`).

    At the end the nodes that still run are stopped, and their logs must be without traceback.
    """
    source = APP.replace("{OPTIONS}", repr(dict(options or {})))
    servers = [
        Server.start(folder / f"node{index}", source, environment={"REDIS_URL": url, "SECRET": SECRET})
        for index, url in enumerate(urls)
    ]
    try:
        if wait:
            for server in servers:
                server.wait()
        yield Nodes(servers)
        running = [server for server in servers if server.process.poll() is None]
        for server in running:
            server.begin_stop()  # all at once: each takes a moment
        for server in running:
            server.stop()
        for server in servers:
            server.assert_clean()
    finally:
        for server in servers:
            server.kill()


async def ask(client: Client, event: str, payload: object, within: float = 8.0) -> object:
    """Send one event; its ack's payload or its error's code. Broadcasts in between are passed over."""
    await client.send(event, payload, id="asked")
    while True:
        message = await client.receive(within)
        if message.get("id") == "asked":
            return message["payload"] if message["event"] == "__ack__" else message["payload"]["code"]


async def drain(client: Client) -> None:
    """Pass over what has arrived so far."""
    try:
        while True:
            await client.receive(0.3)
    except TimeoutError:
        pass
