"""``socketspec serve`` where a process has no file left for a connection: on asyncio and uvloop, plain and over TLS, in
one process and in workers.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.server_process import Certificates, make_certificates
from tests.support import Server, client, free_port, serving

APP = """
import asyncio
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount

app = FastAPI()
socket = SocketApp()
mount(socket, app, "/ws")


@socket.on("echo")
async def echo(conn, payload: dict):
    return payload


@app.get("/loop")
async def loop() -> str:
    return type(asyncio.get_running_loop()).__module__
"""
FEW = 64
LOOPS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop: pip install uvloop")),
]


@dataclass
class Kind:
    """How it is served."""

    loop: str
    workers: int
    certificates: Certificates | None

    @contextmanager
    def served(self, folder: Path, soft: int, hard: int) -> Iterator[Server]:
        port = free_port()
        command = ["tests.e2e.few_files", self.loop, str(soft), str(hard), "serve", "main:app", "--port", str(port)]
        trust = None
        if self.certificates is not None:
            command += ["--ssl-certfile", str(self.certificates.server)]
            command += ["--ssl-keyfile", str(self.certificates.server_key)]
            trust = ssl.create_default_context(cafile=str(self.certificates.ca))
        if self.workers > 1:
            command += ["--workers", str(self.workers)]
        server = Server(folder / "few", {"main.py": APP}, command, port, trust=trust)
        with serving(server):
            assert server.get("/loop").json().startswith(self.loop)
            yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[1, 2], ids=["one process", "workers"])
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(params=["plain", "tls"])
def kind(request: pytest.FixtureRequest, loop: str, workers: int, certificates: Certificates) -> Kind:
    return Kind(loop, workers, certificates if request.param == "tls" else None)


def crowd(stack: ExitStack, port: int, size: int) -> None:
    """Connections that ask for nothing."""
    for _ in range(size):
        one = stack.enter_context(socket.socket())
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))


async def echoes(server: Server, numbers: Sequence[int]) -> None:
    async with client(server.url("/ws"), trust=server.trust) as ada:
        for number in numbers:
            assert await ada.call("echo", {"n": number}) == {"n": number}


def is_live(server: Server) -> bool:
    return server.get("/socket-health?check=live").status == 200


async def test_connections_without_a_request_keep_nobody_out_though_files_are_few(kind: Kind, tmp_path: Path) -> None:
    with kind.served(tmp_path, FEW, FEW) as server, ExitStack() as stack:
        async with client(server.url("/ws"), trust=server.trust) as innocent:
            crowd(stack, server.port, 3 * FEW)
            for number in range(10):
                assert await innocent.call("echo", {"n": number}) == {"n": number}
                assert await asyncio.to_thread(is_live, server)
            await echoes(server, range(3))
        assert server.stop() == 0  # with the crowd still there
        assert "out of system resource" not in server.log  # what asyncio says
        assert server.log.count("Cannot accept connections") <= 2 * kind.workers


async def test_it_opens_as_many_files_as_it_may(kind: Kind, tmp_path: Path) -> None:
    with kind.served(tmp_path, FEW, 4096) as server, ExitStack() as stack:
        crowd(stack, server.port, 2 * FEW)
        await echoes(server, [1])
        assert "Cannot accept" not in server.log


async def test_a_silent_tls_handshake_ends_within_the_deadline(
    loop: str, certificates: Certificates, tmp_path: Path
) -> None:
    with Kind(loop, 1, certificates).served(tmp_path, FEW, FEW) as server:
        silent = socket.create_connection(("127.0.0.1", server.port))
        silent.setblocking(False)
        with silent:
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(silent, 1), 13) == b""
