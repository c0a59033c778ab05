"""`socketspec bench` against a real server on the fast protocol: what it counts is what happened."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.adapters.uvicorn.frames import frame_header
from socketspec.cli.bench.counting import Histogram, Seen, Sequences
from socketspec.cli.bench.frames import Frames
from socketspec.cli.main import main
from tests.servers import Server as Redis
from tests.servers import free_port
from tests.support import ROOT, Server, jwt, serving
from tests.support_demo import COMMAND

SECRET = "a secret of at least thirty-two bytes"
APP = f"""
import os

from fastapi import FastAPI
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.security.auth import JWTAuth
from socketspec.security.ratelimit import RateLimit

app = FastAPI()
socket = SocketApp(allowed_origins=["https://good.example"])
guarded = SocketApp(namespace="/guarded", health_url=None, auth=JWTAuth(secret={SECRET!r}))
limited = SocketApp(namespace="/limited", health_url=None, rate_limit=RateLimit(rate=1, capacity=10))
said = {{}}
opened = 0


def declare(app):
    @app.on("join")
    async def join(conn: Connection, payload: dict):
        await app.rooms.join(conn, payload["room"])

    @app.on("say")
    async def say(conn: Connection, payload: dict):
        await app.rooms.broadcast(payload["room"], "said", payload)

    @app.on("say_badly")
    async def say_badly(conn: Connection, payload: dict):
        room = payload["room"]
        said[room] = number = said.get(room, 0) + 1
        if number == 5:  # the preflight is 1
            return
        for _ in range(2 if number == 8 else 1):
            await app.rooms.broadcast(room, "said", payload)

    @app.on("say_to_others")
    async def say_to_others(conn: Connection, payload: dict):
        await app.rooms.broadcast(payload["room"], "said", payload, exclude=conn.id)
        return payload  # an answer with the same text is no delivery

    @app.on("join_and_leave")
    async def join_and_leave(conn: Connection, payload: dict):
        global opened
        opened += 1
        if opened == 3:
            await conn.disconnect("enough")
            return
        await app.rooms.join(conn, payload["room"])

    @app.on("say_and_close_one")
    async def say_and_close_one(conn: Connection, payload: dict):
        room = payload["room"]
        said[room] = number = said.get(room, 0) + 1
        await app.rooms.broadcast(room, "said", payload)
        if number == 4:
            other = next(each for each in app.engine.connections.values() if each.id != conn.id)
            await other.disconnect("enough")


for each, path in ((socket, "/ws"), (guarded, "/guarded"), (limited, "/limited")):
    declare(each)
    mount(each, app, path=path)


class Choosy:
    \"\"\"Lets in five connections of /choosy, the preflight's included, and refuses the others.\"\"\"

    def __init__(self, inner):
        self.inner, self.seen = inner, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket" and scope["path"] == "/choosy":
            self.seen += 1
            if self.seen > 5:
                await receive()
                await send({{"type": "websocket.close", "code": 1008}})  # before accept: HTTP 403
                return
            scope = {{**scope, "path": "/ws"}}
        await self.inner(scope, receive, send)


app.add_middleware(Choosy)
"""

CLUSTERED = """
from fastapi import FastAPI
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount

app = FastAPI()
socket = SocketApp()


@socket.on_connect
async def on_connect(conn: Connection):
    await socket.rooms.join(conn, "bench-0")


mount(socket, app)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app above, on one uvicorn for the module."""
    made = Server.start(
        tmp_path_factory.mktemp("bench"), APP, options=["--ws", "socketspec.adapters.uvicorn:WebSocketProtocol"]
    )
    with serving(made):
        yield made


class Run(NamedTuple):
    """A `socketspec bench` that has ended."""

    status: int
    output: str
    errors: str
    figures: dict[str, Any]

    @property
    def messages(self) -> dict[str, Any]:
        found: dict[str, Any] = self.figures["messages"]
        return found

    @property
    def connections(self) -> dict[str, Any]:
        found: dict[str, Any] = self.figures["connections"]
        return found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "SOCKETSPEC_BACKEND": "", "SOCKETSPEC_BENCH_TOKEN": ""}


def bench(folder: Path, url: str, *options: str) -> Run:
    """Run it, quickly unless `options` say otherwise."""
    figures = folder / "figures.json"
    quick = ("--connections", "4", "--rate", "20", "--duration", "0.5", "--settle", "0.5", "--json", str(figures))
    done = subprocess.run(
        [*COMMAND, "bench", url, *quick, *options],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=folder,
        check=False,
        env=environment(),
    )
    return Run(done.returncode, done.stdout, done.stderr, json.loads(figures.read_text()) if figures.exists() else {})


def test_everything_published_is_delivered_to_every_member_once(server: Server, tmp_path: Path) -> None:
    options = ("--connections", "20", "--rate", "50", "--duration", "2", "--processes", "2", "--strict")
    run = bench(tmp_path, server.url("/ws"), *options, "--report", "report.html")
    assert run.status == 0, run
    assert run.connections["joined"] == run.connections["opened"] == 20
    assert run.connections["failed"] == run.connections["closed"] == {}
    assert run.connections["connect_ms"]["count"] == 20
    messages = run.messages
    assert messages["published"] == 100
    assert messages["delivered"] == messages["expected"] == 100 * 20
    assert {messages[name] for name in ("lost", "gaps", "duplicates", "misdelivered", "skipped")} == {0}
    latency = run.figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert latency["count"] == 2000
    series = run.figures["series"]
    assert max(point["open"] for point in series) == 20
    each = 0.25  # seconds of a point
    assert sum(point["delivered_per_second"] for point in series) * each == pytest.approx(2000)
    assert sum(point["published_per_second"] for point in series) * each == pytest.approx(100)
    for words in ("20 of 20", "2,000 of 2,000", "0 in 0 gaps", "p50", "p99"):
        assert words in run.output
    assert "publishing" in run.errors
    check_report(tmp_path / "report.html")


def check_report(path: Path) -> None:
    """It stands by itself, and its plots have what was measured."""
    page = path.read_text(encoding="utf-8")
    assert "2,000 of 2,000" in page
    assert not re.search(r"<script|<link|\bsrc=|url\(|@import|\$\w", page)
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 4
    for plot in plots:
        lines = [each for each in ET.fromstring(plot).iter() if each.tag.endswith("polyline")]  # noqa: S314 - our own
        assert lines
        assert all(len(line.attrib["points"].split()) >= 2 for line in lines)
        assert "nan" not in plot


@pytest.mark.parametrize("subprotocol", ["socketspec.v1.json", "socketspec.v1.msgpack"])
def test_rooms_and_publishers_are_counted_apart_in_each_subprotocol(
    server: Server, tmp_path: Path, subprotocol: str
) -> None:
    options = ("--connections", "9", "--rooms", "6", "--rooms-per-connection", "2", "--publishers", "3", "--processes")
    run = bench(tmp_path, server.url("/ws"), *options, "2", "--subprotocol", subprotocol, "--rate", "72", "--strict")
    assert run.status == 0, run
    assert run.messages["published"] == 36
    assert run.messages["delivered"] == 36 * 3  # 18 seats in 6 rooms


def test_the_reference_node_is_measured_without_further_options(tmp_path: Path) -> None:
    node = Server.start(
        tmp_path / "node",
        "from node import app",
        options=["--ws", "socketspec.adapters.uvicorn:WebSocketProtocol"],
        environment={"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'deploy'}", "SOCKETSPEC_ANONYMOUS": "true"},
    )
    with serving(node):
        run = bench(tmp_path, node.url("/ws"), "--strict")
    assert run.status == 0, run
    assert run.messages["delivered"] == run.messages["expected"] == 40


def test_a_message_that_the_app_drops_is_a_gap_and_one_sent_twice_a_duplicate(server: Server, tmp_path: Path) -> None:
    run = bench(tmp_path, server.url("/ws"), "--publish-event", "say_badly", "--room-name", "bad-{n}", "--strict")
    assert run.status == 1, run
    messages = run.messages
    assert (messages["published"], messages["expected"]) == (10, 40)
    assert (messages["lost"], messages["gaps"], messages["duplicates"]) == (4, 4, 4)
    assert messages["delivered"] == 40 - 4
    assert "4 in 4 gaps" in run.output


def test_an_app_that_leaves_the_publisher_out_is_measured_without_it(server: Server, tmp_path: Path) -> None:
    run = bench(tmp_path, server.url("/ws"), "--publish-event", "say_to_others", "--no-echo", "--strict")
    assert run.status == 0, run
    assert run.messages["delivered"] == run.messages["expected"] == 10 * 3


def test_refused_handshakes_are_counted_and_the_others_measured(server: Server, tmp_path: Path) -> None:
    run = bench(tmp_path, server.url("/choosy"), "--connections", "7", "--strict")
    assert run.status == 1, run
    assert run.connections["failed"] == {"HTTP 403": 3}
    assert run.connections["joined"] == 4
    assert run.messages["delivered"] == run.messages["expected"] == run.messages["published"] * 4 > 0
    assert "3 HTTP 403" in run.output


def test_connections_that_the_server_closes_are_counted_by_code(server: Server, tmp_path: Path) -> None:
    options = ("--publish-event", "say_and_close_one", "--room-name", "closing-{n}")
    run = bench(tmp_path, server.url("/ws"), *options)
    assert run.status == 0, run
    assert run.connections["closed"] == {"4000": 1}
    assert "1 4000 disconnected" in run.output
    messages = run.messages
    assert messages["delivered"] + messages["lost"] + messages["missed_by_closed"] == messages["expected"]
    assert messages["missed_by_closed"] > 0
    assert messages["lost"] == 0


def test_a_join_that_closes_is_a_failed_connection(server: Server, tmp_path: Path) -> None:
    run = bench(tmp_path, server.url("/ws"), "--join-event", "join_and_leave")
    assert run.connections["failed"] == {"closed with 4000": 1}
    assert run.messages["delivered"] == run.messages["expected"] == run.messages["published"] * 3


def test_tokens_are_brought_in_each_way(server: Server, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("".join(jwt(SECRET, sub=f"user {number}") + "\n" for number in range(2)))
    for place in ("header", "query", "subprotocol"):
        subprotocol = ("--subprotocol", "socketspec.v1.json") if place == "subprotocol" else ()
        options = ("--token-file", str(tokens), "--token-in", place, "--duration", "0.2", *subprotocol)
        run = bench(tmp_path, server.url("/guarded"), *options, "--strict")
        assert run.status == 0, run
        assert run.figures["options"]["tokens"] == 2
        assert tokens.read_text().split()[0] not in json.dumps(run.figures) + run.output + run.errors


def test_a_rate_limit_is_named_as_what_lost_the_messages(server: Server, tmp_path: Path) -> None:
    run = bench(tmp_path, server.url("/limited"), "--rate", "40")
    refused = run.messages["errors"]["RATE_LIMIT_ERROR"]
    assert run.messages["lost"] == refused * 4 > 0
    assert "The app's rate limit refused messages" in run.output


def test_a_backend_publishes_in_the_place_of_connections(tmp_path: Path, standalone_server: Redis) -> None:
    prefix = f"bench-{os.getpid()}"
    url = f"{standalone_server.url}?prefix={prefix}"
    made = Server.start(
        tmp_path / "clustered",
        CLUSTERED,
        options=["--ws", "socketspec.adapters.uvicorn:WebSocketProtocol"],
        environment={"SOCKETSPEC_BACKEND": url},
    )
    with serving(made):
        run = bench(tmp_path, made.url("/ws"), "--no-join", "--backend", url, "--receive-event", "tick", "--strict")
    assert run.status == 0, run
    assert run.messages["published"] == 10
    assert run.messages["delivered"] == 40
    assert run.figures["options"]["through"] == "backend"
    assert standalone_server.url not in json.dumps(run.figures)


@pytest.mark.parametrize(
    ("path", "options", "complaint"),
    [
        ("/ws", ("--header", "Origin: https://bad.example"), "HTTP 403"),
        ("/guarded", (), "the app wants credentials: --token"),
        ("/nothing", (), "HTTP 403"),
        ("/ws", ("--join-event", "enter"), "join refused: UNKNOWN_EVENT"),
        ("/ws", ("--publish-event", "speak"), "UNKNOWN_EVENT"),
        ("/ws", ("--receive-event", "heard"), "but no 'heard' came within 1 s"),
    ],
)
def test_what_does_not_fit_the_app_is_one_sentence_before_the_run(
    server: Server,
    path: str,
    options: tuple[str, ...],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socketspec.cli.bench.control.FIRST_ANSWER", 1.0)
    status, captured = main(["bench", server.url(path), "--connections", "4", *options]), capsys.readouterr()
    assert (status, captured.out) == (1, "")
    assert captured.err.startswith("socketspec: ")
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


@given(st.permutations([*range(1, 13)]), st.sets(st.integers(1, 12)), st.lists(st.integers(0, 11)))
def test_what_is_missing_late_or_twice_is_known_whatever_comes_in_which_order(
    order: list[int], dropped: set[int], repeated: list[int]
) -> None:
    arriving = [number for number in order if number not in dropped]
    arriving += [arriving[place % len(arriving)] for place in repeated] if arriving else []
    sequences = Sequences([7])
    seen = [sequences.see(7, number) for number in arriving]
    assert sum(each <= Seen.LATE for each in seen) == 12 - len(dropped)
    assert seen.count(Seen.DUPLICATE) == len(arriving) - (12 - len(dropped))
    runs = sum(number - 1 not in dropped for number in dropped)
    assert sequences.missing({7: 12}) == (len(dropped), runs)
    assert sequences.see(8, 1) is Seen.STRANGE


@given(st.lists(st.integers(0, 10**12), min_size=1), st.lists(st.integers(0, 10**12)))
def test_percentiles_are_those_of_the_sorted_times_within_two_percent(first: list[int], second: list[int]) -> None:
    histograms = []
    for values in (first, second):
        histograms.append(Histogram())
        for value in values:
            histograms[-1].add(value)
    histograms[0].merge(histograms[1])
    every = sorted([*first, *second])
    for part in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = every[max(math.ceil(part * len(every)) - 1, 0)]
        assert exact <= histograms[0].percentile(part) <= exact * 1.02
    assert histograms[0].mean == pytest.approx(sum(every) / len(every))


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 40), st.integers(0, 70_000))
def test_frames_are_whole_whatever_the_reads_were(payloads: list[bytes], step: int, large: int) -> None:
    payloads = [*payloads, b"x" * large]
    sent = b"".join(frame_header(2, len(each)) + each for each in payloads)
    frames, step = Frames(), step if large < 1000 else step * 1000
    got = [found for at in range(0, len(sent), step) for found in frames.feed(sent[at : at + step])]
    assert got == [(2, each) for each in payloads]


def test_where_nobody_listens_it_says_so(tmp_path: Path) -> None:
    run = bench(tmp_path, f"ws://127.0.0.1:{free_port()}/ws?token=s3cret")
    assert run.status == 1
    assert "connection refused (nothing listens there)" in run.errors
    assert "s3cret" not in run.errors


def test_a_limit_of_open_files_that_is_too_low_is_said_with_what_to_do(tmp_path: Path) -> None:
    shell = f"ulimit -n 200; exec {sys.executable} -m socketspec.cli.main bench ws://127.0.0.1:1/ws --connections 1000"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, timeout=30, check=False, env=environment(), cwd=ROOT
    )
    assert done.returncode == 2, done
    assert "1,000 connections in 1 process(es) need 1,064 open files each, and this shell allows 200" in done.stderr
    assert "--processes 8" in done.stderr
    assert "ulimit -Hn" in done.stderr


def test_a_soft_limit_of_open_files_is_raised_by_itself(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "socketspec.cli.main", "bench", server.url("/ws"), "--connections", "40"]
    shell = "ulimit -S -n 30; exec " + " ".join([*command, "--duration", "0.2", "--strict"])
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, timeout=30, check=False, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0, done
    assert "40 of 40" in done.stdout


def test_ctrl_c_ends_the_run_early_and_reports_what_there_was(server: Server, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "bench", server.url("/ws"), "--connections", "4", "--duration", "60", "--json", "figures.json"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while not re.search(r"publishing: .*[1-9]\d* published", line := process.stderr.readline()):
            assert line, "it ended by itself"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "interrupted" in output
    messages = json.loads((tmp_path / "figures.json").read_text())["messages"]
    assert messages["delivered"] == messages["expected"] == messages["published"] * 4 > 0
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["http://x/ws"], "is not a WebSocket URL; write ws://host:port/path"),
        (["ws://x:99999/ws"], "is not a URL"),
        (["ws://me:pass@x/ws"], "pass credentials with --token or --header"),
        (["ws://x/ws", "--rooms", "101"], "100 connections cannot fill 101 rooms"),
        (["ws://x/ws", "--rooms", "50", "--publishers", "3"], "the smallest room has only 2 members"),
        (["ws://x/ws", "--rooms-per-connection", "2"], "is more than --rooms 1"),
        (["ws://x/ws", "--size", "10"], "a message needs 51 bytes"),
        (["ws://x/ws", "--processes", "101"], "is more than --connections 100"),
        (["ws://x/ws", "--rooms", "2", "--room-name", "lobby"], "needs {n}"),
        (["ws://x/ws", "--connections", "100000", "--publishers", "100"], "are too many to keep track of"),
        (["ws://x/ws", "--publish-payload", "{}"], "--publish-payload needs {text}"),
        (["ws://x/ws", "--join-payload", "room"], "--join-payload is not JSON"),
        (["ws://x/ws", "--header", "Origin"], "is no header; write 'Name: value'"),
        (["ws://x/ws", "--token-file", "nowhere"], "cannot read nowhere"),
        (["ws://x/ws", "--json", "nowhere/file"], "there is no folder nowhere"),
        (["ws://x/ws", "--rate", "0"], "0 is too few messages a second; it must be at least 0.001"),
        (["ws://x/ws", "--connections", "many"], "'many' is not a number of connections; use 1 to 10,000,000"),
        (["ws://x/ws", "--connections", "0"], "0 is too few connections; it must be at least 1"),
        (["ws://x/ws", "--connections", "-1"], "-1 is too few connections; it must be at least 1"),
        (["ws://x/ws", "--connections", "1e30"], "1e30 is too many connections; at most 10,000,000"),
        (["ws://x/ws", "--processes", "1.5"], "1.5 is not a whole number of processes"),
        (["ws://x/ws", "--duration", "1e9"], "1e9 is too many seconds; at most 86,400"),
        (["ws://x/ws", "--conections", "5"], "usage: socketspec bench"),
    ],
)
def test_a_misuse_is_one_sentence_and_status_2(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""
