"""The proxies of deploy/proxies as real processes before three real nodes."""

from __future__ import annotations

import asyncio
import http.client
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Container, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from scripts import deploy_tools
from tests.support import ROOT, Client, Reply, Server, client, free_port

__all__ = (
    "FOLDER",
    "HEARTBEAT",
    "IDLE",
    "KINDS",
    "SUBPROTOCOL",
    "Fleet",
    "Guest",
    "Kind",
    "Proxy",
    "guest",
    "guest_from",
    "guests_on_all",
    "proxied",
)

FOLDER = ROOT / "deploy" / "proxies"
IDLE = 2
"""Seconds a connection may be silent, where the files say 90."""
HEARTBEAT = 0.4
"""Seconds between the pings of the nodes."""
START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
SUBPROTOCOL = Subprotocol("socketspec.v1.json")

APP = f"""
import asyncio
import os

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.security.auth import JWTAuth
from socketspec.session import SessionConfig

app = FastAPI()
socket = SocketApp(
    backend=os.environ["REDIS_URL"], session=SessionConfig(heartbeat_interval={HEARTBEAT}, heartbeat_timeout=20)
)
private = SocketApp(backend=os.environ["REDIS_URL"], namespace="/private", auth=JWTAuth(secret="s" * 32))
mount(socket, app)
mount(private, app, "/private")


@socket.on("join")
async def join(conn: Connection, payload: dict):
    await socket.rooms.join(conn, payload["room"])
    client = conn.handshake.client
    forwarded = conn.headers.getlist("x-forwarded-for")
    return {{"node": os.environ["NODE"], "client": client and client[0], "forwarded": forwarded}}


@socket.on("say")
async def say(conn: Connection, payload: dict):
    await socket.rooms.broadcast(payload["room"], "said", payload)


@socket.on("work")
async def work(conn: Connection, payload: dict):
    await asyncio.sleep(payload["seconds"])
    return payload


@app.websocket("/echo")
async def echo(websocket: WebSocket):
    await websocket.accept()
    try:
        while True:
            await websocket.send_bytes(await websocket.receive_bytes())
    except WebSocketDisconnect:
        pass


@app.get("/node")
async def node():
    return os.environ["NODE"]


@app.get("/metrics")
@app.get("/socket-drain")
async def inside():
    return {{"for": "those inside"}}
"""


class Kind(NamedTuple):
    """A proxy, and how it is run."""

    name: str
    files: tuple[str, ...]
    """Names in deploy/proxies; the first is what it starts with."""
    arguments: Callable[[Path], Sequence[str]]
    """What follows the program's name, for the path of the first file."""
    retries_503: bool
    """Whether newcomers who meet a node that drains are brought to another one, also before a check has found it."""
    ends_silent: bool
    """Whether it has a limit for silent WebSockets."""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("nginx", ("nginx.conf",), lambda at: ["-c", str(at), "-e", "stderr", "-g", "daemon off;"], True, True),
        Kind("haproxy", ("haproxy.cfg",), lambda at: ["-f", str(at)], True, True),
        Kind("traefik", ("traefik.yaml", "traefik-nodes.yaml"), lambda at: [f"--configFile={at}"], False, False),
        Kind("caddy", ("Caddyfile",), lambda at: ["run", "--adapter", "caddyfile", "--config", str(at)], False, False),
        Kind(
            "envoy",
            ("envoy.yaml",),
            lambda at: ["-c", str(at), "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"],
            True,
            True,
        ),
    )
}


class Proxy:
    """One that runs."""

    def __init__(self, kind: Kind, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.kind = kind
        self.port = port
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def url(self, path: str) -> str:
        """The WebSocket URL of `path`."""
        return f"ws://127.0.0.1:{self.port}{path}"

    def get(self, path: str) -> Reply:
        """Ask for a page through it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return Reply(answer.status, {}, answer.read().decode())
        finally:
            connection.close()

    def wait(self, statuses: Container[int]) -> None:
        """Return when it answers with one of `statuses`; fail with its log if it does not."""
        deadline = time.monotonic() + START_TIMEOUT
        last: object = None
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                last = self.get("/socket-health").status
            except (OSError, http.client.HTTPException) as error:
                last = error
            else:
                if last in statuses:
                    return
            time.sleep(0.02)
        raise AssertionError(f"{self.kind.name} did not start (last: {last!r}); its log:\n{self.log}")


def filled(text: str, folder: Path, port: int, nodes: Sequence[int], idle: int | None) -> str:
    """A file of deploy/proxies with this test's ports in it, and paths of its own."""
    values = {
        r" /tmp/": f" {folder}/",
        r"\b0\.0\.0\.0\b": "127.0.0.1",
        r"\b8080\b": str(port),
        r"/etc/traefik/nodes\.yaml": str(folder / "traefik-nodes.yaml"),
    }
    for number, node in enumerate(nodes, 1):
        values |= {
            rf"\bnode{number}:8000": f"127.0.0.1:{node}",
            rf"\bnode{number}, port_value: 8000\b": f"127.0.0.1, port_value: {node}",
        }
    if idle is not None:
        values[r"\b90s\b"] = f"{idle}s"
    for pattern, value in values.items():
        text = re.sub(pattern, value.replace("\\", r"\\"), text)
    return text


@contextmanager
def proxied(
    kind: Kind, folder: Path, nodes: Sequence[int], *, idle: int | None = None, statuses: Container[int] = (200,)
) -> Iterator[Proxy]:
    """`kind` before `nodes` (their ports), when it answers with one of `statuses`.

    Skips the test where it cannot be had, fails where it does not start.
    """
    try:
        program = deploy_tools.proxy(kind.name)
    except deploy_tools.Missing as error:
        pytest.skip(f"{kind.name}: make deploy-tools; {error}")
    folder.mkdir(parents=True)
    port = free_port()
    for name in kind.files:
        text = filled((FOLDER / name).read_text(encoding="utf-8"), folder, port, nodes, idle)
        (folder / name).write_text(text, encoding="utf-8")
    log = folder / "proxy.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, *kind.arguments(folder / kind.files[0])],
            cwd=folder,
            env={"PATH": "/usr/sbin:/usr/bin:/bin", "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    proxy = Proxy(kind, port, process, log)
    try:
        proxy.wait(statuses)
        yield proxy
        assert process.poll() is None, f"{kind.name} ended by itself; its log:\n{proxy.log}"
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Fleet:
    """Three nodes of the test app on one Valkey; each can be stopped and started anew on its port."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._starts = 0
        self.ports = [free_port() for _ in range(3)]
        self.servers = [self._start(port) for port in self.ports]

    def _start(self, port: int) -> Server:
        self._starts += 1
        command = ["socketspec.cli.main", "serve", "main:app", "--port", str(port), "--deflate", "--no-access-log"]
        command += ["--drain-window", "2", "--drain-grace", "10", "--forwarded-allow-ips", "127.0.0.1"]
        name = f"node{self._starts}"
        return Server(self._folder / name, {"main.py": APP}, command, port, {"REDIS_URL": self._url, "NODE": name})

    def wait(self) -> None:
        """Return when all answer."""
        for server in self.servers:
            server.wait()

    async def seen_by(self, proxy: Proxy) -> None:
        """Return when `proxy` brings newcomers to all of them: its checks have to find them first."""
        names = {server.name for server in self.servers}
        async with asyncio.timeout(START_TIMEOUT):
            while names:
                names.discard((await asyncio.to_thread(proxy.get, "/node")).json())
                await asyncio.sleep(0.02)

    def named(self, node: str) -> Server:
        """The server that calls itself so."""
        return next(server for server in self.servers if server.name == node)

    @asynccontextmanager
    async def drained(self, server: Server) -> AsyncIterator[None]:
        """`server` is told to stop, has to be through at the end, and is replaced whatever happens."""
        server.process.send_signal(signal.SIGTERM)
        try:
            yield
            assert await asyncio.to_thread(server.process.wait, 15) == 0
            server.assert_clean()
        finally:
            server.kill()
            index = self.servers.index(server)
            self.servers[index] = self._start(server.port)
            await asyncio.to_thread(self.servers[index].wait)

    def stop(self) -> None:
        """Stop all, and look at their logs."""
        for server in self.servers:
            server.begin_stop()  # all at once: each drains for a while
        for server in self.servers:
            server.stop()
            server.assert_clean()

    def kill(self) -> None:
        """End all at once."""
        for server in self.servers:
            server.kill()


class Guest(NamedTuple):
    """A client that came through the proxy and joined a room."""

    client: Client
    node: str
    """The name of the node it was brought to."""
    address: str
    """Where it comes from, in the eyes of the app."""
    forwarded: list[str]
    """What the proxy said of that."""


@asynccontextmanager
async def guest(proxy: Proxy, room: str = "lobby") -> AsyncIterator[Guest]:
    """One client in `room`."""
    async with client(proxy.url("/ws"), subprotocols=[SUBPROTOCOL]) as came:
        yield await _joined(came, room)
        came.connection.transport.abort()  # Envoy would take a second for the end of each


async def _joined(came: Client, room: str) -> Guest:
    assert (await came.receive())["event"] == "__connect__"
    joined = await came.call("join", {"room": room})
    return Guest(came, joined["node"], joined["client"], joined["forwarded"])


@asynccontextmanager
async def guest_from(proxy: Proxy, address: str, forwarded: str) -> AsyncIterator[Guest]:
    """One client that connects from `address`, and says that it was forwarded for another."""
    async with connect(
        proxy.url("/ws"),
        subprotocols=[SUBPROTOCOL],
        additional_headers={"X-Forwarded-For": forwarded},
        local_addr=(address, 0),
        proxy=None,
    ) as connection:
        yield await _joined(Client(connection), "lobby")


@asynccontextmanager
async def guests_on_all(proxy: Proxy, room: str) -> AsyncIterator[dict[str, Guest]]:
    """Clients in `room`, one on each of the three nodes."""
    found: dict[str, Guest] = {}
    async with AsyncExitStack() as stack:
        for _ in range(12):
            came = await stack.enter_async_context(guest(proxy, room))
            found.setdefault(came.node, came)
        assert len(found) == 3, f"12 clients were brought to {len(found)} nodes"
        yield found
