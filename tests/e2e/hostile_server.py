"""The server that `test_hostile` attacks: uvicorn with the guard and our WebSocket protocol, and short deadlines.

Run as ``python -m tests.e2e.hostile_server --port N``. What it serves: ``/echo`` (a plain FastAPI route), ``/ws`` and
others (`SocketApp`s), ``/page`` (HTTP).
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import resource
from contextlib import suppress
from socket import IPPROTO_TCP, TCP_USER_TIMEOUT
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from starlette.requests import ClientDisconnect
from uvicorn.config import LOGGING_CONFIG
from uvicorn.importer import import_from_string

from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.adapters.uvicorn.redact import RedactQuery
from socketspec.adapters.uvicorn.request_guard import GuardedH11Protocol
from socketspec.adapters.uvicorn.serve import DrainingServer, listening_socket
from socketspec.connection.outbox import Backpressure
from socketspec.security.ratelimit import RateLimit
from socketspec.session import SessionConfig
from tests.e2e.hostile_peer import HANDSHAKE_TIMEOUT, LIMIT, LIMITS

app = FastAPI()


class Guard(GuardedH11Protocol):
    """With deadlines that a test can wait for."""

    handshake_timeout = HANDSHAKE_TIMEOUT
    close_timeout = 0.4


def build(path: str, **options: Any) -> SocketApp:
    """A `SocketApp` at `path`."""
    socket = SocketApp(
        namespace=path,
        health_url=None,
        allowed_origins=["https://app.example"] if path == "/guarded" else ["*"],
        backpressure=Backpressure(max_buffer=200_000, send_timeout=0.7),
        **options,
    )

    @socket.on("echo")
    async def echo(conn: Connection, payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    @socket.on("pour")
    async def pour(conn: Connection, payload: dict[str, int]) -> None:
        for _ in range(payload["count"]):
            await conn.emit("data", {"text": "x" * payload["size"]})
            await asyncio.sleep(0)

    @socket.on("leave")
    async def leave(conn: Connection) -> None:
        await conn.disconnect("enough", code=4321)

    mount(socket, app, path=path)
    return socket


build("/ws", max_payload_size=65_536)
build("/guarded")
build("/limited", rate_limit=RateLimit(10, 20, max_violations=50))
build("/beating", session=SessionConfig(heartbeat_interval=0.3, heartbeat_timeout=0.4))


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    """Send every message back."""
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])


@app.websocket("/pour")
async def pour(websocket: WebSocket, size: int = 65_536, count: int = 1_000_000) -> None:
    """Send and send."""
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        for _ in range(count):
            await websocket.send_bytes(b"x" * size)
        await websocket.receive()


@app.websocket("/leave")
async def leave(websocket: WebSocket) -> None:
    """Close at once."""
    await websocket.accept()
    await websocket.close(4321, "enough")


@app.websocket("/late")
async def late(websocket: WebSocket) -> None:
    """Let the client wait for the answer to its handshake."""
    await asyncio.sleep(0.7)
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())


@app.api_route("/page", methods=["GET", "POST"])
async def page(request: Request) -> dict[str, int]:
    """How long the body was."""
    with suppress(ClientDisconnect):
        return {"length": len(await request.body())}
    return {}


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ws", required=True)
    parser.add_argument("--files", type=int, help="open files that the process may have")
    parser.add_argument("--ping", type=float, help="seconds between pings on plain routes, and for their answers")
    arguments = parser.parse_args()
    if arguments.files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (arguments.files, arguments.files))
    protocol = import_from_string(arguments.ws)
    logging: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    logging["filters"] = {"redact": {"()": RedactQuery}}
    for handler in logging["handlers"].values():
        handler["filters"] = ["redact"]
    config = uvicorn.Config(
        app,
        http=Guard,
        ws=type("Short", (protocol,), {"__slots__": (), **LIMITS}),
        ws_max_size=LIMIT,
        ws_ping_interval=arguments.ping,
        ws_ping_timeout=arguments.ping,
        # For each that it cannot accept, and as often as this is long, asyncio logs a traceback: seconds of work.
        backlog=256 if arguments.files else 2048,
        log_config=logging,
    )
    listener = listening_socket("127.0.0.1", arguments.port, 1024)
    listener.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, 2000)  # else a test would wait 15 s
    DrainingServer(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
