"""On a real server: what is larger than may be costs tokens, and before authentication the connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect

from tests.support import Client, Server, client, free_port, serving

SOURCE = """
from fastapi import FastAPI
from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.security.auth import APIKeyAuth
from socketspec.security.ratelimit import RateLimit

app = FastAPI()
auth = APIKeyAuth({"k" * 1000}, first_message=True)
mount(SocketApp(namespace="/closed", auth=auth, health_url=None), app, "/closed")
limit = RateLimit(rate=0.01, capacity=5, scope="connection", max_violations=20)
mount(SocketApp(namespace="/limited", rate_limit=limit), app, "/limited")
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
