"""``socketspec serve`` where something runs out: connections, and what the log may show of secrets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from tests.support import Server, client, serving_app

APP = """
import gc
import logging
from fastapi import FastAPI
from socketspec import Connection, Identity, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.adapters.prometheus import mount_metrics
from socketspec.security.auth import APIKeyAuth

app = FastAPI()
mount_metrics(app)
socket = SocketApp()
keys = APIKeyAuth({"SECRET-key": Identity(user_id="ada")}, header="X-Odd-One")
guarded = SocketApp(health_url=None, namespace="/guarded", auth=keys)
mount(socket, app, "/ws")
mount(guarded, app, "/guarded")


@guarded.on_connect
@socket.on_connect
async def log(conn: Connection) -> None:
    logger = logging.getLogger("httpx")  # one of those that log headers, each in its own way
    pairs = list(conn.headers.items())
    logger.debug("came %s", conn.headers)
    logger.debug("came %s", dict(pairs))
    logger.warning("came %s", [(name.encode(), value.encode()) for name, value in pairs])
    for name, value in pairs:
        logger.info("%s: %s", name, value)


@app.get("/frozen")
async def frozen() -> int:
    return gc.get_freeze_count()


@socket.on("echo")
async def echo(conn, payload: dict):
    return payload
"""


served = partial(serving_app, APP)


async def echoes(server: Server, times: int = 10) -> None:
    async with client(server.url("/ws")) as ada:
        for number in range(times):
            assert await ada.call("echo", {"n": number}) == {"n": number}


def live(server: Server) -> int:
    return server.get("/socket-health?check=live").status


async def test_a_full_node_refuses_clients_and_answers_probes(tmp_path: Path) -> None:
    with served(tmp_path / "full", "--max-connections", "2") as server:
        async with client(server.url("/ws")) as ada, client(server.url("/ws")):
            with pytest.raises(InvalidStatus) as refused:
                await connect(server.url("/ws"), proxy=None)
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["Retry-After"] == "5"
            assert live(server) == 200
            ready = server.get("/socket-health")
            assert (ready.status, ready.json()["status"], ready.json()["live"]) == (503, "busy", True)
            assert await ada.call("echo", {"n": 1}) == {"n": 1}
            metrics = server.get("/metrics").text
            assert "\nsocketspec_max_connections 2.0\n" in metrics
            assert "\nsocketspec_full_refused_total 1.0\n" in metrics
            assert "\nsocketspec_made_room_total 0.0\n" in metrics
        await echoes(server, 1)
        assert server.get("/socket-health").status == 200


@pytest.mark.parametrize(("trusted", "warned"), [("*", True), ("127.0.0.1", False)])
async def test_a_limit_by_address_that_clients_can_get_round_is_warned_of(
    trusted: str, warned: bool, tmp_path: Path
) -> None:
    options = ("--max-connections-per-address", "2", "--forwarded-allow-ips", trusted)
    with served(tmp_path / "believing", *options) as server:
        assert ("--max-connections-per-address can be got round" in server.log) is warned


async def test_an_address_may_have_so_many_connections_as_trusted_proxies_tell_it(tmp_path: Path) -> None:
    with served(tmp_path / "addresses", "--max-connections-per-address", "2") as server:

        def from_address(address: str) -> connect:
            return connect(server.url("/ws"), additional_headers={"X-Forwarded-For": address}, proxy=None)

        async with from_address("192.0.2.1"), from_address("2001:db8::1"), from_address("2001:db8::2"):
            async with from_address("192.0.2.1"):
                for address in ("192.0.2.1", "2001:db8::3", "::ffff:192.0.2.1"):
                    with pytest.raises(InvalidStatus) as refused:
                        await from_address(address)
                    assert refused.value.response.status_code == 429
                    assert refused.value.response.headers["Retry-After"] == "5"
                assert "\nsocketspec_address_refused_total 3.0\n" in server.get("/metrics").text
                async with from_address("192.0.2.2"), from_address("2001:db8:0:1::1"):
                    pass
            async with from_address("192.0.2.1"):
                pass


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
async def test_the_garbage_collector_leaves_alone_what_was_imported(options: Sequence[str], tmp_path: Path) -> None:
    with served(tmp_path / "frozen", *options) as server:
        assert server.get("/frozen").json() > 10_000


async def test_no_level_of_the_log_shows_credentials(tmp_path: Path) -> None:
    sent = {"Authorization": "Bearer SECRET-1", "X-Odd-One": "SECRET-key", "Cookie": "sid=SECRET-3"}
    sent |= {"X-API-Key": "SECRET-8", "X-Service-Token": "SECRET-9"}
    with served(tmp_path / "debug", "--log-level", "debug") as server:
        for path in ("/ws?token=SECRET-5", "/guarded?api_key=SECRET-6"):
            offered = [Subprotocol("socketspec.bearer.SECRET-4"), Subprotocol("socketspec.json")]
            async with connect(server.url(path), additional_headers=sent, subprotocols=offered, proxy=None):
                server.get("/socket-health?token=SECRET-7", sent)
        assert server.stop() == 0
        assert "SECRET" not in server.log
        assert server.log.count("[accepted]") == 2
        for shown in ("x-odd-one: [redacted]", "'cookie': [redacted]", "(b'x-service-token', [redacted])"):
            assert server.log.count(shown) == 2
