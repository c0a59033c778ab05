"""On a real server: what is larger than may be costs tokens, and before authentication the connection."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.support import Client, Server, client, free_port, serving

SOURCE = """
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.adapters.prometheus import mount_metrics
from socketspec.security.auth import APIKeyAuth
from socketspec.security.ratelimit import RateLimit

app = FastAPI()
auth = APIKeyAuth({"k" * 1000}, first_message=True)
mount(SocketApp(namespace="/closed", auth=auth, health_url=None), app, "/closed")
limit = RateLimit(rate=0.01, capacity=5, scope="connection", max_violations=20)
mount(SocketApp(namespace="/limited", rate_limit=limit), app, "/limited")
mount(SocketApp(namespace="/open"), app, "/open")
mount_metrics(app)

@app.get("/memory")
def memory() -> int:
    with open("/proc/self/statm") as figures:
        return int(figures.read().split()[1]) * 4096
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    command = ["socketspec.cli.main", "serve", "main:app", "--deflate", "--port", str(port)]
    made = Server(tmp_path_factory.mktemp("refused"), {"main.py": SOURCE}, command, port)
    with serving(made):
        yield made


@pytest.mark.parametrize(
    ("size", "compression"),
    [(21_000, None), (70_000, None), (300_000, None), (21_000, "deflate"), (70_000, "deflate"), (5_000_000, "deflate")],
)
async def test_before_authentication_a_long_message_is_refused_with_4001(
    server: Server, size: int, compression: str | None
) -> None:
    async with connect(server.url("/closed"), compression=compression, proxy=None) as connection:
        peer = Client(connection)
        await connection.send("x" * size)
        assert (await peer.error())["code"] == "AUTH_ERROR"
        assert await peer.closed() == (4001, "auth_error")


async def test_after_it_messages_may_be_as_long_as_ever(server: Server) -> None:
    async with client(server.url("/closed")) as peer:
        await peer.call("__refresh_auth__", {"token": "k" * 1000})
        await peer.connection.send("x" * 900_000)
        assert (await peer.error())["code"] == "PAYLOAD_TOO_LARGE"
        await peer.send("__ping__")
        assert (await peer.receive())["event"] == "__pong__"


async def test_messages_that_inflate_to_too_much_are_limited_and_close_in_the_end(server: Server) -> None:
    async with connect(server.url("/limited"), compression="deflate", proxy=None) as connection:
        assert connection.protocol.extensions
        peer = Client(connection)
        answers: list[str] = []
        while len(answers) < 21:
            await connection.send("x" * 1_000_000)
            answers.append((await peer.error())["code"])
        assert answers == ["PAYLOAD_TOO_LARGE"] * 5 + ["RATE_LIMIT_ERROR"] * 16
        assert await peer.closed() == (4007, "rate_limited")


def upgraded(server: Server, path: str) -> socket.socket:
    """An open WebSocket, on which frames can be sent byte by byte."""
    made = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    made.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        received = made.recv(4096)
        assert received, answer
        answer += received
    return made


def received_bytes(server: Server) -> float:
    """Bytes of messages that the node of `/open` has counted."""
    pattern = r'^socketspec_received_bytes_total\{namespace="/open"\} (\S+)$'
    found = re.search(pattern, server.get("/metrics").text, re.MULTILINE)
    assert found, server.get("/metrics").text
    return float(found[1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("is_final", [True, False], ids=["a frame", "a fragment"])
async def test_of_unfinished_messages_little_is_held_and_nothing_once_they_are_gone(
    server: Server, is_final: bool
) -> None:
    size, number = 1_000_000, 40
    frame = struct.pack("!BBQ", 0x81 if is_final else 0x01, 0xFF, size) + bytes(4) + b" " * (size - is_final)
    before, counted = int(server.get("/memory").text), received_bytes(server)
    for _ in range(2):
        with ExitStack() as opened:
            for _ in range(number):
                each = opened.enter_context(await asyncio.to_thread(upgraded, server, "/open"))
                await asyncio.to_thread(each.sendall, frame)
            counted += number * (size - 65_536 - 10)
            await until_counted(server, counted)
            assert int(server.get("/memory").text) - before < number * 250_000


async def until_counted(server: Server, wanted: float) -> None:
    """Wait until so many bytes of messages have come."""
    deadline = time.monotonic() + 20
    while (found := received_bytes(server)) < wanted:
        assert time.monotonic() < deadline, f"{found:,} of {wanted:,} bytes have come"
        await asyncio.sleep(0.05)


async def test_all_bytes_of_a_message_that_is_not_held_are_counted(server: Server) -> None:
    before = received_bytes(server)
    async with client(server.url("/open")) as peer:
        await peer.connection.send("x" * 900_000)
        assert (await peer.error())["code"] == "PAYLOAD_TOO_LARGE"
        await peer.connection.send(["x" * 90_000] * 10)
        assert (await peer.error())["code"] == "PAYLOAD_TOO_LARGE"
    assert received_bytes(server) - before == 1_800_000
