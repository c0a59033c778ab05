"""Three nodes are stopped and started again one by one, under load, and nobody is hurt."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from tests.servers import Server as Redis
from tests.support import ROOT, Server, free_port

WINDOW = 2.0
CLIENTS = 120
WORKERS = 30
"""How many of the clients always have something handled."""
PACE = 0.05
"""Seconds from one publication to the next."""
IN_FLIGHT = 1.0
"""Seconds a message may be on its way from its receipt to a client."""

APP = """
import asyncio
import json
import os
import time

from fastapi import FastAPI

from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount

socket = SocketApp(backend=os.environ["REDIS_URL"])
app = FastAPI()
mount(socket, app)


@socket.on("join")
async def join(conn: Connection, payload: dict):
    await socket.rooms.join(conn, payload["room"])


@socket.on("work")
async def work(conn: Connection, payload: dict):
    await conn.emit("began", payload)
    await asyncio.sleep(payload["seconds"])
    await socket.rooms.broadcast("works", "worked", payload)
    return payload


@socket.on_disconnect
async def ended(conn: Connection, reason: str):
    print(json.dumps({"closed": conn.id, "reason": reason, "at": time.monotonic()}), flush=True)
"""

PUBLISHER = """
import json
import os
import threading
import sys
import time

from socketspec.cluster import Publisher

pace = float(sys.argv[1])
stopped = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
with Publisher(os.environ["REDIS_URL"]) as publisher:
    number = 0
    while not stopped.wait(pace):
        began = time.monotonic()
        try:
            publisher.broadcast("news", "number", {"n": number})
        except Exception as error:
            print(json.dumps({"failed": repr(error)}), flush=True)
        else:
            print(json.dumps({"n": number, "began": began, "ended": time.monotonic()}), flush=True)
        number += 1
"""


class Published(NamedTuple):
    """One message, and when `Publisher.broadcast` was called and returned (system-wide monotonic seconds)."""

    n: int
    began: float
    ended: float


class Session:
    """What one connection saw."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.id = ""
        self.joined = float("inf")
        self.numbers: list[int] = []
        self.began: set[int] = set()
        self.finished: set[int] = set()
        self.errors: list[Any] = []
        self.goodbye: float | None = None
        """When it may connect again."""
        self.closed: float | None = None
        """None: it was still open at the end of the test."""
        self.code: int | None = None


class Visitor:
    """A client that comes back when it is closed, to any node that lets it in, when it was told to."""

    def __init__(self, ports: list[int], number: int) -> None:
        self._ports = ports
        self._number = number
        self._asked = 0
        self._idle = asyncio.Event()
        self.sessions: list[Session] = []
        self.connection: ClientConnection | None = None

    @property
    def is_there(self) -> bool:
        """Whether it is connected and hears what is published."""
        return bool(self.sessions) and self.sessions[-1].closed is None and bool(self.sessions[-1].numbers)

    async def live(self) -> None:
        """Be there until cancelled."""
        while True:
            session, connection = await self._connect()
            self.sessions.append(session)
            self.connection = connection
            working = asyncio.create_task(self._work(connection)) if self._number < WORKERS else None
            try:
                async for text in connection:
                    self._take(session, json.loads(text))
            except ConnectionClosed:
                pass
            finally:
                if working is not None:
                    working.cancel()
            session.closed = time.monotonic()
            session.code = connection.close_code
            if session.goodbye is not None:
                await asyncio.sleep(session.goodbye - time.monotonic())

    async def _connect(self) -> tuple[Session, ClientConnection]:
        first = self._number % len(self._ports)
        while True:
            node = random.randrange(len(self._ports)) if self.sessions else first  # noqa: S311 - a load balancer's choice
            try:
                connection = await connect(
                    f"ws://127.0.0.1:{self._ports[node]}/ws",
                    subprotocols=[Subprotocol("socketspec.v1.json")],
                    proxy=None,
                    compression=None,
                    ping_interval=None,
                )
                await connection.send(json.dumps({"event": "join", "payload": {"room": "news"}, "id": "join"}))
            except (OSError, InvalidHandshake, ConnectionClosed):
                await asyncio.sleep(0.02)  # another one will answer
            else:
                return Session(node), connection

    async def _work(self, connection: ClientConnection) -> None:
        try:
            while True:
                self._idle.clear()
                self._asked += 1
                seconds = random.uniform(0.1, 0.6)  # noqa: S311 - no secret
                payload = {"id": self._asked, "seconds": seconds}
                await connection.send(json.dumps({"event": "work", "payload": payload, "id": self._asked}))
                await self._idle.wait()
        except ConnectionClosed:
            pass

    def _take(self, session: Session, message: dict[str, Any]) -> None:
        event, payload = message["event"], message["payload"]
        if event == "number":
            session.numbers.append(payload["n"])
        elif event == "__connect__":
            session.id = payload["connection_id"]
        elif event == "__server_shutdown__":
            session.goodbye = time.monotonic() + payload["reconnect_in"]
        elif event == "began":
            session.began.add(payload["id"])
        elif event == "__ack__" and message["id"] == "join":
            session.joined = time.monotonic()
        elif event == "__ack__":
            session.finished.add(payload["id"])
            self._idle.set()
        else:
            session.errors.append(message)


def start(folder: Path, port: int, url: str) -> Server:
    """A node on `port`."""
    command = ["socketspec.cli.main", "serve", "main:app", "--port", str(port), "--drain-window", str(WINDOW)]
    return Server(folder, {"main.py": APP}, command, port, {"REDIS_URL": url})


@contextmanager
def publishing(folder: Path, url: str) -> Iterator[list[Published]]:
    """Publish from a process of its own; what was published is in the list afterwards. Fails if any failed."""
    (folder / "publish.py").write_text(PUBLISHER)
    log, published = folder / "published.log", list[Published]()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": url}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "publish.py", str(PACE)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield published
        process.communicate(timeout=10)  # its input ends, and so does it
        assert process.returncode == 0, log.read_text()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert not [line for line in lines if "failed" in line]
        published += [Published(**line) for line in lines]
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def visiting(ports: list[int]) -> AsyncIterator[list[Visitor]]:
    """Visitors on all nodes, in the room."""
    visitors = [Visitor(ports, number) for number in range(CLIENTS)]
    lives = [asyncio.create_task(visitor.live()) for visitor in visitors]
    try:
        yield visitors
    finally:
        for life in lives:
            life.cancel()
        for outcome in await asyncio.gather(*lives, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), repr(outcome)
        for visitor in visitors:
            if visitor.connection is not None:
                visitor.connection.transport.abort()


async def settled(visitors: list[Visitor]) -> None:
    """Wait until all are in the room."""
    async with asyncio.timeout(20):
        while not all(v.is_there for v in visitors):  # noqa: ASYNC110 - asks what the clients have seen so far
            await asyncio.sleep(0.05)


async def roll(visitors: list[Visitor], folder: Path, ports: list[int], url: str, servers: list[Server]) -> list[str]:
    """Stop and start every node, one after the other; the logs of those that were stopped."""
    logs = []
    for node, port in enumerate(ports):
        sessions = [visitor.sessions[-1] for visitor in visitors if visitor.sessions[-1].node == node]
        assert await asyncio.to_thread(servers[node].stop) == 0
        logs.append(servers[node].log)
        servers[node].assert_clean()
        servers[node] = start(folder / f"node{node}-again", port, url)
        await asyncio.to_thread(servers[node].wait)
        await settled(visitors)
        check_spread([session.closed for session in sessions if session.closed is not None])
        check_spread([session.goodbye for session in sessions if session.goodbye is not None])
    return logs


def check_spread(times: list[float]) -> None:
    """They are spread over the whole window, and never more than twice as many at once as on average."""
    assert len(times) >= CLIENTS // 3
    first, last = min(times), max(times)
    assert WINDOW * 0.8 <= last - first <= WINDOW + 2
    width = (last - first) / 5
    bins = Counter(int((at - first) / width) for at in times)
    assert max(bins.values()) <= 2 * len(times) / 5, sorted(bins.items())


def check_session(session: Session, published: list[Published], closed_by_node: dict[str, float]) -> None:
    """Everything that was published while it was connected arrived, once and in order."""
    assert not session.errors
    assert session.numbers == list(range(session.numbers[0], session.numbers[-1] + 1)), "a gap or a duplicate"
    closed = float("inf")
    if session.closed is not None:
        assert session.code == 1012
        assert session.finished == session.began, "a handler was cut off"
        closed = min(session.closed, closed_by_node[session.id])
    due = [message.n for message in published if message.began > session.joined and message.ended + IN_FLIGHT < closed]
    if due:
        assert session.numbers[0] <= due[0]
        assert session.numbers[-1] >= due[-1], "a message published before the close did not come before it"


def check_nobody_was_hurt(visitors: list[Visitor], published: list[Published], logs: list[str]) -> None:
    """Every node that was stopped let its clients go in order, and none of them missed a message or an answer."""
    sessions = [session for visitor in visitors for session in visitor.sessions if session.numbers]
    closes = [json.loads(line) for log in logs for line in log.splitlines() if line.startswith('{"closed"')]
    assert {close["reason"] for close in closes} == {"server_shutdown"}
    closed_by_node = {close["closed"]: close["at"] for close in closes}
    assert len(closed_by_node) >= CLIENTS
    for session in sessions:
        check_session(session, published, closed_by_node)
    assert sum(len(session.finished) for session in sessions) > WORKERS
    assert max(session.numbers[-1] for session in sessions) == published[-1].n


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_three_nodes_are_replaced_under_load_without_hurting_anyone(server: Redis, tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    servers = [start(tmp_path / f"node{index}", port, server.url) for index, port in enumerate(ports)]
    try:
        for node in servers:
            await asyncio.to_thread(node.wait)
        async with visiting(ports) as visitors:
            with publishing(tmp_path, server.url) as published:
                await settled(visitors)
                logs = await roll(visitors, tmp_path, ports, server.url, servers)
            await asyncio.sleep(2 * IN_FLIGHT)
        check_nobody_was_hurt(visitors, published, logs)
    finally:
        for node in servers:
            node.kill()
