"""Three nodes behind each of the proxies that the documentation shows, with the very files it shows."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.cluster.test_rolling import (
    IN_FLIGHT,
    Visitor,
    check_nobody_was_hurt,
    publishing,
    settled,
    start,
    visiting,
)
from tests.deploy.proxies import (
    FOLDER,
    HEARTBEAT,
    IDLE,
    KINDS,
    SUBPROTOCOL,
    Fleet,
    Proxy,
    guest,
    guest_from,
    guests_on_all,
    proxied,
)
from tests.servers import Server as Redis
from tests.support import ROOT, Server, client, fetch, free_port

pytestmark = pytest.mark.slow

CHECKED = 1.5
"""Seconds after which every proxy has found out that a node drains: the checks' interval, and some."""

DEAD = (502, 503, 504)
"""What proxies answer when no node does."""


@pytest.fixture(scope="module")
def fleet(standalone_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three nodes for all the proxies."""
    made = Fleet(tmp_path_factory.mktemp("fleet"), standalone_server.url)
    try:
        made.wait()
        yield made
        made.stop()
    finally:
        made.kill()


@pytest.fixture(scope="module", params=list(KINDS))
def proxy(request: pytest.FixtureRequest, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Each proxy before the three nodes, with a short limit for silent connections."""
    folder = tmp_path_factory.mktemp("proxy") / request.param
    with proxied(KINDS[request.param], folder, fleet.ports, idle=IDLE) as running:
        asyncio.run(fleet.seen_by(running))
        yield running


async def test_a_broadcast_from_one_node_reaches_clients_of_all_nodes(proxy: Proxy) -> None:
    async with guests_on_all(proxy, "across") as guests:
        assert [came.client.connection.subprotocol for came in guests.values()] == [SUBPROTOCOL] * 3
        first = next(iter(guests.values())).client
        await first.send("say", {"room": "across", "text": "hello"})
        for came in guests.values():
            message = await came.client.receive()
            assert (message["event"], message["payload"]["text"]) == ("said", "hello")


async def test_a_megabyte_comes_back_whole_and_compression_is_agreed_on(proxy: Proxy) -> None:
    data = os.urandom(1_000_000)
    async with connect(proxy.url("/echo"), proxy=None, max_size=None) as connection:
        assert [extension.name for extension in connection.protocol.extensions] == ["permessage-deflate"]
        await connection.send(data)
        async with asyncio.timeout(10):
            assert await connection.recv() == data


async def test_a_refused_client_is_told_why_by_close_code(proxy: Proxy) -> None:
    async with client(proxy.url("/private?token=nonsense"), subprotocols=[SUBPROTOCOL]) as came:
        assert (await came.error())["code"] == "AUTH_ERROR"
        assert await came.closed() == (4001, "auth_error")


async def test_a_connection_that_is_only_pinged_outlives_the_limit_for_silence(proxy: Proxy) -> None:
    async def silent() -> float:
        """Seconds until the proxy ends a connection without pings."""
        async with connect(proxy.url("/echo"), proxy=None, ping_interval=None) as connection:
            began = time.monotonic()
            with pytest.raises(ConnectionClosed):
                await connection.recv()
        return time.monotonic() - began

    ended = asyncio.create_task(silent()) if proxy.kind.ends_silent else None
    async with guest(proxy, "silence") as came:
        await came.client.silence(IDLE + 2 * HEARTBEAT)
        await came.client.send("say", {"room": "silence", "text": "still here"})
        assert (await came.client.receive())["payload"]["text"] == "still here"
    if ended is not None:
        assert IDLE * 0.9 <= await ended <= IDLE * 2, "the limit is not in force, and so was not outlived"


async def test_the_app_sees_the_clients_address_and_not_what_the_client_says_of_itself(proxy: Proxy) -> None:
    async with guest_from(proxy, "127.0.0.2", forwarded="192.0.2.66") as came:
        assert came.address == "127.0.0.2"
        assert came.forwarded == ["127.0.0.2"], "a node that trusts everybody would believe the client"


async def test_metrics_and_drain_are_not_reached_from_outside(proxy: Proxy, fleet: Fleet) -> None:
    for path in ("/metrics", "/socket-drain"):
        assert (await fetch(fleet.servers[0], path)).status == 200
        assert (await asyncio.to_thread(proxy.get, path)).status == 404


async def test_a_node_that_drains_gets_no_newcomers_and_keeps_its_clients(proxy: Proxy, fleet: Fleet) -> None:
    async with guest(proxy, "drain") as came:
        draining = fleet.named(came.node)
        await came.client.send("work", {"seconds": CHECKED + 0.5}, id="work")
        async with fleet.drained(draining):
            assert (await came.client.receive())["event"] == "__server_shutdown__"
            await newcomers(proxy, draining)
            answer = await came.client.receive()
            assert (answer["event"], answer["id"]) == ("__ack__", "work"), "the handler was not let finish"
            assert await came.client.closed() == (1012, "server_shutdown")
    await fleet.seen_by(proxy)


async def newcomers(proxy: Proxy, draining: Server) -> None:
    """Connect while `draining` drains. Refused are few: none, or those who came before the check had found it."""
    began = time.monotonic()
    after = 0
    async with AsyncExitStack() as stack:
        while after < 6:
            came_at = time.monotonic() - began
            status = 0
            try:
                came = await stack.enter_async_context(guest(proxy, "drain-too"))
            except InvalidStatus as refused:
                status = refused.response.status_code
            else:
                assert came.node != draining.name
                after += came_at >= CHECKED
            assert status in (0, 503)
            assert not status or not proxy.kind.retries_503, "it did not bring the newcomer to another node"
            assert not status or came_at < CHECKED, "it still sends newcomers to the node that drains"
            await asyncio.sleep(0.05)
        assert draining.process.poll() is None, "it was through before all had come"


@pytest.mark.parametrize("name", KINDS)
async def test_tokens_are_not_in_its_log_even_when_no_node_answers(name: str, tmp_path: Path) -> None:
    with proxied(KINDS[name], tmp_path / name, [free_port() for _ in range(3)], statuses=DEAD) as running:
        with pytest.raises(InvalidStatus) as refused:
            await connect(running.url("/ws?token=do-not-write-me-down"), proxy=None, open_timeout=10)
        assert refused.value.response.status_code in DEAD
    assert "do-not-write-me-down" not in running.log


def test_the_page_shows_every_file_and_no_copy_of_any() -> None:
    page = (ROOT / "docs/deploy/proxies.md").read_text()
    for file in FOLDER.iterdir():
        assert f'--8<-- "deploy/proxies/{file.name}"' in page
    assert {name for kind in KINDS.values() for name in kind.files} == {file.name for file in FOLDER.iterdir()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["haproxy"])
async def test_nodes_are_replaced_behind_it_under_load_without_hurting_anyone(
    name: str, standalone_server: Redis, tmp_path: Path
) -> None:
    ports = [free_port() for _ in range(3)]
    url = standalone_server.url
    servers = [start(tmp_path / f"node{index}", port, url) for index, port in enumerate(ports)]
    try:
        for node in servers:
            await asyncio.to_thread(node.wait)
        with proxied(KINDS[name], tmp_path / name, ports) as running:
            async with visiting([running.port]) as visitors:
                with publishing(tmp_path, url) as published:
                    await settled(visitors)
                    logs = [await replace(visitors, running, servers, index, tmp_path, url) for index in range(3)]
                await asyncio.sleep(2 * IN_FLIGHT)
        check_nobody_was_hurt(visitors, published, logs)
    finally:
        for node in servers:
            node.kill()


async def replace(
    visitors: list[Visitor], proxy: Proxy, servers: list[Server], index: int, folder: Path, url: str
) -> str:
    """Stop a node, start another one in its place, and wait for the proxy to take it; the log of the first."""
    ended = servers[index]
    assert await asyncio.to_thread(ended.stop) == 0
    ended.assert_clean()
    servers[index] = again = start(folder / f"node{index}-again", ended.port, url)
    await asyncio.to_thread(again.wait)
    name = (await fetch(again, "/socket-health")).json()["node"]
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(proxy.get, "/socket-health")).json()["node"] != name:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    await settled(visitors)
    return ended.log
