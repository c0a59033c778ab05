"""``socketspec dev`` as a user runs it: a real process, real files, real signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support import client
from tests.support_demo import COMMAND, ROOT, run

APP = """
from fastapi import FastAPI
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount

app = FastAPI()
socket = SocketApp(OPTIONS)

@socket.on("say")
async def say(conn: Connection) -> dict:
    return {"text": "TEXT"}
"""
MOUNTED = APP + "\nmount(socket, app, path='/live')\n"
PATIENCE = 30.0


class Dev:
    """A running ``socketspec dev`` and what it prints."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """Everything that it printed so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, times: int = 1) -> str:
        """The log, once `text` is in it so many times."""
        deadline = time.monotonic() + PATIENCE
        while self.log.count(text) < times:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.log}"
            time.sleep(0.05)
        return self.log

    def url(self, what: str) -> str:
        """The last printed address of this kind."""
        found: list[str] = re.findall(rf"^ *{what} +(\S+)$", self.log, re.MULTILINE)
        return found[-1]


@contextmanager
def developing(folder: Path, source: str, target: str = "main:app", *options: str) -> Iterator[Dev]:
    """`socketspec dev` with the application of `source` in `folder`; ended at the end."""
    (folder / "main.py").write_text(source)
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "dev", target, "--port", "0", *options],
            cwd=folder,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield Dev(process, log)
    finally:
        process.kill()  # the serving process ends with it, see below
        process.wait()


def _gone(url: str) -> bool:
    host, port = re.findall(r"//([^:/]+):(\d+)", url)[0]
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) != 0:
                return True
        time.sleep(0.05)
    return False


async def test_it_prints_addresses_that_work_with_docs_and_debug_on(tmp_path: Path) -> None:
    with developing(tmp_path, MOUNTED.replace("OPTIONS", "")) as dev:
        dev.wait_for("Ctrl-C stops it.")
        async with client(dev.url("WebSocket")) as conn:
            assert await conn.call("say") == {"text": "TEXT"}
        for page in ("docs", "debug", "health"):
            async with httpx.AsyncClient() as http:
                assert (await http.get(dev.url(page))).status_code == 200
        assert dev.url("WebSocket").startswith("ws://127.0.0.1:")
        assert dev.url("WebSocket").endswith("/live")


def test_what_the_code_says_stays(tmp_path: Path) -> None:
    with developing(tmp_path, MOUNTED.replace("OPTIONS", "docs=False, debug=False")) as dev:
        log = dev.wait_for("Ctrl-C stops it.")
        assert "socket-docs" not in log
        assert "socket-debug" not in log


async def test_a_change_is_served_and_a_mistake_is_waited_out(tmp_path: Path) -> None:
    source = MOUNTED.replace("OPTIONS", "")
    with developing(tmp_path, source) as dev:
        dev.wait_for("Ctrl-C stops it.")
        (tmp_path / "main.py").write_text(source + "\noops(\n")
        dev.wait_for("Waiting for a change.")
        (tmp_path / "main.py").write_text(source.replace("TEXT", "another"))
        dev.wait_for("Ctrl-C stops it.", times=2)
        async with client(dev.url("WebSocket")) as conn:
            assert await conn.call("say") == {"text": "another"}


async def test_ctrl_c_ends_it_at_once_with_its_child_whoever_is_connected(tmp_path: Path) -> None:
    with developing(tmp_path, MOUNTED.replace("OPTIONS", "drain_window=500")) as dev:
        dev.wait_for("Ctrl-C stops it.")
        async with client(dev.url("WebSocket")) as conn:
            await conn.call("say")
            dev.process.send_signal(signal.SIGINT)
            assert dev.process.wait(PATIENCE) == 0
        assert _gone(dev.url("WebSocket"))
        assert "Traceback" not in dev.log


def test_the_serving_process_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    with developing(tmp_path, MOUNTED.replace("OPTIONS", "")) as dev:
        dev.wait_for("Ctrl-C stops it.")
        dev.process.kill()
        assert _gone(dev.url("WebSocket"))


async def test_a_socket_app_is_served_by_itself_or_by_the_application_that_has_it(tmp_path: Path) -> None:
    with developing(tmp_path, APP.replace("OPTIONS", ""), "main:socket") as dev:
        assert "served by itself" in dev.wait_for("Ctrl-C stops it.")
        async with client(dev.url("WebSocket")) as conn:
            assert await conn.call("say") == {"text": "TEXT"}
        assert dev.url("WebSocket").endswith("/ws")
    with developing(tmp_path, MOUNTED.replace("OPTIONS", ""), "main:socket") as dev:
        assert "main:socket is mounted on main:app, which is served." in dev.wait_for("Ctrl-C stops it.")
        assert dev.url("WebSocket").endswith("/live")


@pytest.mark.parametrize("command", ["dev", "serve"])
def test_a_socket_mounted_as_it_is_is_refused_at_the_start(tmp_path: Path, command: str) -> None:
    source = APP.replace("OPTIONS", "") + "\napp.mount('/live', socket)\n"
    wanted = "app.mount('/live', socket) serves nothing: a SocketApp is no ASGI application. Write mount(socket, app"
    if command == "dev":
        with developing(tmp_path, source) as dev:
            assert wanted in dev.wait_for("Waiting for a change.")
    else:
        (tmp_path / "main.py").write_text(source)
        result = run("serve", "main:app", "--port", "0", folder=tmp_path)
        assert (result.returncode, wanted in result.stderr) == (1, True)


def test_a_taken_port_is_one_sentence_with_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(MOUNTED.replace("OPTIONS", ""))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("dev", "main:app", "--port", str(port), folder=tmp_path)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert f"write --port {port + 1}" in result.stderr
