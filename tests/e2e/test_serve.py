"""``socketspec serve`` as a user runs it: a real process, real clients, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support import Server, client, fetch, free_port, serving, serving_app
from tests.support_demo import run

APP = """
import asyncio
import logging
import time

from fastapi import FastAPI, WebSocket
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount

app = FastAPI()
socket = SocketApp(drain_url="/drain", drain_token="let me drain")
nothing = "not an app"


@socket.on("join")
async def join(conn: Connection, payload: dict):
    await socket.rooms.join(conn, payload["room"])


@socket.on("work")
async def work(conn: Connection, payload: dict):
    print("works", flush=True)
    await asyncio.sleep(payload["seconds"])
    return {"work": "done"}


@socket.on("block")
async def block(conn: Connection):
    print("works", flush=True)
    await asyncio.to_thread(time.sleep, 50)


@socket.on("refuse")
async def refuse(conn: Connection):
    print("works", flush=True)
    while True:
        try:
            await asyncio.sleep(50)
        except asyncio.CancelledError:
            continue


@socket.on("fail")
async def fail(conn: Connection):
    logging.getLogger("socketspec.mine").info("about to fail")
    raise ValueError("broken")


@socket.on_disconnect
async def gone(conn, reason):
    print("gone", reason, flush=True)


mount(socket, app)


@app.websocket("/plain")
async def plain(websocket: WebSocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)
"""


served = partial(serving_app, APP)


@asynccontextmanager
async def many(server: Server, count: int) -> AsyncIterator[list[float]]:
    """`count` clients; the list gets the time at which each was closed with 1012."""
    closed: list[float] = []
    ready = asyncio.Semaphore(0)

    async def one() -> None:
        async with client(server.url("/ws")) as each:
            ready.release()
            goodbye = await each.receive(within=30)
            assert goodbye["event"] == "__server_shutdown__"
            assert goodbye["payload"]["reconnect_in"] > 0
            with pytest.raises(ConnectionClosed) as ended:
                await each.receive(within=30)
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == 1012
            closed.append(time.monotonic())

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())
        for _ in range(count):
            await ready.acquire()
        yield closed


async def ended(server: Server) -> int:
    """The exit status of a server that was told to stop: another signal would end it at once."""
    return await asyncio.to_thread(server.process.wait, 15)


async def test_it_serves_pages_the_socket_and_other_routes_on_the_fast_protocol(tmp_path: Path) -> None:
    with served(tmp_path / "serves") as server:
        async with client(server.url("/ws?token=SECRET123"), subprotocols=["socketspec.v1.json"]) as ada:
            assert (await ada.receive())["payload"]["heartbeat"]["frames"] is True
            assert (await ada.call("work", {"seconds": 0})) == {"work": "done"}
        async with client(server.url("/plain")) as plain:
            await plain.connection.send("echo")
            assert await plain.connection.recv() == "echo"
        assert (await fetch(server, "/socket-health?token=SECRET123")).json()["ready"] is True
        assert server.stop() == 0
        assert "SECRET123" not in server.log
        assert '"GET /socket-health' in server.log


async def test_sigterm_lets_connections_leave_over_the_window_and_health_says_so(tmp_path: Path) -> None:
    with served(tmp_path / "drains", "--drain-window", "2") as server:
        async with many(server, 60) as closed:
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            await server.logged("Draining: 60 connections")
            health = await fetch(server, "/socket-health")
            assert (health.status, health.json()["status"]) == (503, "stopping")
        times = sorted(moment - began for moment in closed)
        assert times[0] < 0.5
        assert 1.5 < times[-1] < 4
        bins = [sum(0.25 * n <= moment < 0.25 * (n + 1) for moment in times) for n in range(8)]
        assert max(bins) <= 2 * 60 / 8, bins
        assert await ended(server) == 0
        assert server.log.count("gone server_shutdown") == 60


async def test_a_handler_under_way_finishes_and_its_reply_arrives(tmp_path: Path) -> None:
    with served(tmp_path / "finishes", "--drain-window", "0.1") as server:
        async with client(server.url("/ws")) as ada:
            await ada.send("work", {"seconds": 1}, id=1)
            await server.logged("works")
            server.process.send_signal(signal.SIGTERM)
            assert (await ada.receive())["event"] == "__server_shutdown__"
            assert (await ada.receive())["payload"] == {"work": "done"}
            assert (await ada.closed())[0] == 1012
        assert await ended(server) == 0


async def test_other_websocket_routes_are_closed_with_1012(tmp_path: Path) -> None:
    with served(tmp_path / "plain") as server:
        async with client(server.url("/plain")) as plain:
            server.process.send_signal(signal.SIGTERM)
            assert (await plain.closed())[0] == 1012
        assert await ended(server) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_signal_ends_it_at_once(tmp_path: Path, workers: int) -> None:
    options = ("--drain-window", "60", "--drain-grace", "60", "--workers", str(workers))
    with served(tmp_path / "twice", *options) as server:
        async with client(server.url("/ws")) as ada:
            await ada.send("work", {"seconds": 50}, id=1)
            await server.logged("works")
            server.process.send_signal(signal.SIGTERM)
            await server.logged("Draining: 1 connections")
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert await ended(server) == 0
            assert time.monotonic() - began < 5
        assert "Told twice to stop" in server.log


async def test_one_ctrl_c_drains_the_workers(tmp_path: Path) -> None:
    with served(tmp_path / "interrupted", "--workers", "2", "--drain-window", "0.1") as server:
        await server.logged("(?s)Application startup complete.*Application startup complete", within=20)
        workers = re.findall(r"Started server process \[(\d+)\]", server.log)
        async with client(server.url("/ws")) as ada:
            await ada.send("work", {"seconds": 2}, id=1)
            await server.logged("works")
            for pid in (server.process.pid, *map(int, workers)):  # as a terminal does
                os.kill(pid, signal.SIGINT)
            assert (await ada.receive())["event"] == "__server_shutdown__"
            assert (await ada.receive())["payload"] == {"work": "done"}
            assert (await ada.closed())[0] == 1012
        assert await ended(server) == 0


@pytest.mark.parametrize("event", ["block", "refuse"])
async def test_what_never_ends_does_not_keep_the_process(tmp_path: Path, event: str) -> None:
    with served(tmp_path / event, "--drain-window", "0.1", "--drain-grace", "0.3") as server:
        async with client(server.url("/ws")) as ada:
            await ada.send(event, id=1)
            await server.logged("works")
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert await ended(server) == 0
            assert time.monotonic() - began < 12
        assert "something of the application does not end" in server.log


async def test_the_drain_url_drains_and_answers_when_it_is_done(tmp_path: Path) -> None:
    with served(tmp_path / "url", "--drain-window", "1") as server:
        assert (await fetch(server, "/drain")).status == 401
        assert (await fetch(server, "/drain", {"Authorization": "Bearer guess"})).status == 401
        async with many(server, 20) as closed:
            began = time.monotonic()
            answer = await fetch(server, "/drain", {"Authorization": "Bearer let me drain"})
            assert answer.json() == {"drained": 20}
            assert time.monotonic() - began > 0.5
        assert len(closed) == 20
        assert (await fetch(server, "/socket-health")).status == 503
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5


async def test_json_logs_say_which_connection_event_and_request(tmp_path: Path) -> None:
    with served(tmp_path / "json", "--log-format", "json") as server:
        async with client(server.url("/ws?token=SECRET123")) as ada:
            assert (await ada.call("work", {"seconds": 0})) == {"work": "done"}
            await ada.send("fail", id=1)
            error = await ada.error()
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        failed = next(line for line in lines if line["level"] == "error")
        assert failed["request"] == error["request_id"]
        assert failed["event"] == "fail"
        assert failed["namespace"] == "/"
        assert "ValueError: broken" in failed["exception"]
        told = next(line for line in lines if line["message"] == "about to fail")
        assert told["connection"] == failed["connection"]
        assert told["logger"] == "socketspec.mine"
        assert "SECRET123" not in server.log


SHOP = """
import logging
import logging.config
import os
import sys
import warnings

import httpx
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.security.auth import JWTAuth

if "OWN" in os.environ:
    own = {"format": "own %(name)s %(message)s"}
    root = {"handlers": ["own"], "level": "INFO"}
    handler = {"class": "logging.StreamHandler", "formatter": "own"}
    logging.config.dictConfig({"version": 1, "formatters": {"own": own}, "handlers": {"own": handler}, "root": root})
log = logging.getLogger("shop")
log.warning("imported")
warnings.warn("old wheels")
app = FastAPI()
JWTAuth("short", "HS256")  # it warns
socket = SocketApp()
mount(socket, app)


@socket.on_connect
async def on_connect(conn):
    log.info("connects")


@socket.on("buy")
async def buy(conn):
    log.info("buys at %s", httpx.URL("http://pay/now?key=SECRET123"))
    log.debug("not at this level")
    warnings.warn("old handles")
    return {}


@socket.on("sell")
async def sell(conn):
    raise ValueError("nothing left")


@socket.on_disconnect
async def on_disconnect(conn, reason):
    log.info("leaves")
"""


@contextmanager
def shop(folder: Path, *options: str, **environment: str) -> Iterator[Server]:
    port = free_port()
    command = ["socketspec.cli.main", "serve", "main:app", "--port", str(port), *options]
    server = Server(folder, {"main.py": SHOP}, command, port, environment)
    with serving(server):
        yield server


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_json_logs_are_all_that_is_written_whoever_logs(workers: str, tmp_path: Path) -> None:
    with shop(tmp_path / "shop", "--log-format", "json", "--workers", workers) as server:
        async with client(server.url("/ws?token=SECRET123")) as ada:
            await ada.call("buy")
        await server.logged("leaves")
        assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    said = {line["message"]: line for line in lines}
    bought = said["buys at http://pay/now?[redacted]"]
    accepted = next(line for line in lines if "[accepted]" in line["message"])
    assert (bought["logger"], bought["level"], bought["event"]) == ("shop", "info", "buy")
    assert bought["request"]
    of_ada = (bought, accepted, said["connects"], said["leaves"])
    assert {line["connection"] for line in of_ada} == {bought["connection"]}
    assert any("the secret has 5 bytes" in message for message in said)
    assert said["imported"]["level"] == "warning"
    warned = [line["message"] for line in lines if line["logger"] == "py.warnings"]
    assert any("old wheels" in message for message in warned)
    assert any("old handles" in message for message in warned)
    assert "SECRET123" not in server.log
    assert "not at this level" not in server.log


async def test_text_logs_show_the_applications_own_lines_without_queries(tmp_path: Path) -> None:
    with shop(tmp_path / "text") as server:
        async with client(server.url("/ws")) as ada:
            await ada.call("buy")
        assert server.stop() == 0
    assert re.search(r"INFO.* buys at http://pay/now\?\[redacted\]", server.log)


async def test_a_set_up_of_the_applications_own_stays_and_silences_nobody(tmp_path: Path) -> None:
    with shop(tmp_path / "own", "--log-format", "json", OWN="1") as server:
        async with client(server.url("/ws")) as ada:
            await ada.send("sell")
            await ada.error()
        assert server.stop() == 0
    lines = server.log.splitlines()
    assert "own shop connects" in lines
    rest = [json.loads(line)["message"] for line in lines if line.startswith("{")]
    assert any("Application startup complete" in message for message in rest)
    assert any("Handling 'sell' failed" in message for message in rest)


async def both_have_connections(server: Server) -> bool:
    """Whether two workers say so; which one answers is the kernel's choice."""
    found: dict[str, int] = {}
    for _ in range(30):
        report = (await fetch(server, "/socket-health")).json()
        found[report["node"]] = report["connections"]
    return len(found) == 2 and all(found.values())


async def test_workers_share_the_port_and_drain_as_well(tmp_path: Path) -> None:
    with served(tmp_path / "workers", "--workers", "2", "--drain-window", "1") as server:
        await server.logged("(?s)Application startup complete.*Application startup complete", within=20)
        async with AsyncExitStack() as crowds:
            opened = 0
            while not await both_have_connections(server):
                await crowds.enter_async_context(many(server, 20))
                opened += 20
                assert opened <= 400, "one worker takes every connection"
            server.process.send_signal(signal.SIGTERM)
            await server.logged("(?s)Draining: .*Draining: ")
            assert (await fetch(server, "/socket-health")).status == 503
        assert await ended(server) == 0
        assert len(re.findall(r"Draining: \d+ connections", server.log)) == 2
        assert server.log.count("gone server_shutdown") == opened


FAILING = """
from contextlib import asynccontextmanager

from fastapi import FastAPI


@asynccontextmanager
async def lifespan(app):
    raise RuntimeError("nothing to start with")
    yield


app = FastAPI(lifespan=lifespan)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["main"], 2, "write main:app"),
        (["absent:app"], 1, "absent"),
        (["main:absent"], 1, "absent"),
        (["main:nothing"], 1, "is str, not an ASGI application"),
        (["broken:app"], 1, "importing 'broken' failed"),
        (["failing:app"], 1, "nothing to start with"),
        (["failing:app", "--workers", "2"], 1, "nothing to start with"),
        (["main:app", "--port", "99999"], 2, "'99999' is not a port"),
        (["main:app", "--workers", "0"], 2, "0 is too few processes; it must be at least 1"),
        (["main:app", "--drain-window", "soon"], 2, "'soon' is not a number of seconds; use 0 to 86,399"),
        (["main:app", "--drain-window", "1e6"], 2, "1e6 is too many seconds; at most 86,399"),
        (["main:app", "--wrokers", "2"], 2, "usage: socketspec serve"),
    ],
)
def test_what_cannot_be_served_is_said(tmp_path: Path, arguments: Sequence[str], status: int, said: str) -> None:
    (tmp_path / "main.py").write_text(APP)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "failing.py").write_text(FAILING)
    result = run("serve", "--port", str(free_port()), *arguments, folder=tmp_path)
    assert result.returncode == status
    assert said in result.stderr


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "main:app", "--port", str(port), folder=tmp_path)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in result.stderr
