"""Servers as they are in the field: commands switched off, full, evicting, behind a balancer, with TLS of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from socketspec.cluster.backend import RedisBackend, from_url
from socketspec.cluster.options import Address
from socketspec.cluster.publishers.async_publisher import AsyncPublisher
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.cluster.servers.discovery import Connector, finder_for
from socketspec.cluster.servers.topology import make_topology
from socketspec.cluster.urls import configured
from socketspec.errors import BackendError
from tests.server_process import HOST
from tests.servers import Certificates, Cluster, Server, free_port, make_certificates, redis_binary


def nothing(*_: object) -> None:
    return None


async def as_node(url: str) -> None:
    backend = RedisBackend(url, start_timeout=0)
    await backend.start("/", nothing, nothing)
    await backend.stop("/", nothing)


async def as_async_publisher(url: str) -> None:
    async with AsyncPublisher(url, timeout=4) as publisher:
        await publisher.broadcast("room", "event", {})


async def as_publisher(url: str) -> None:
    def publish() -> None:
        with Publisher(url, timeout=4) as publisher:
            publisher.broadcast("room", "event", {})

    await asyncio.to_thread(publish)


everybody = pytest.mark.parametrize("use", [as_node, as_async_publisher, as_publisher])
Use = Callable[[str], Awaitable[None]]


async def trouble(use: Use, url: str) -> str:
    with pytest.raises(BackendError) as raised:
        await use(url)
    return str(raised.value)


# Commands that are not there


@pytest.mark.parametrize("commands", [("HELLO",), ("CLIENT",), ("CONFIG",), ("HELLO", "CLIENT", "CONFIG")], ids=str)
@everybody
async def test_what_can_be_done_without_may_be_switched_off(use: Use, commands: tuple[str, ...]) -> None:
    config = "".join(f'rename-command {command} ""\n' for command in commands)
    with Server(binary=redis_binary(), config=config) as server:
        await use(server.url)


@pytest.mark.parametrize("command", ["EVAL", "EVALSHA"])
@everybody
async def test_what_cannot_be_done_without_is_named(use: Use, command: str) -> None:
    with Server(binary=redis_binary(), config=f'rename-command {command} ""\n') as server:
        said = await trouble(use, server.url)
    assert f"does not know {command}, which is switched off there, or renamed" in said
    assert "rename-command" in said


@everybody
async def test_a_user_without_scripts_is_told_what_to_allow(use: Use, server: Server) -> None:
    server.ask("ACL", "SETUSER", "shy", "reset", "on", ">word", "~*", "&*", "+@all", "-eval", "-evalsha", "-client")
    assert "ACL SETUSER" in await trouble(use, f"redis://shy:word@{HOST}:{server.port}")


# A full server


@everybody
@pytest.mark.parametrize("query", ["", "?client_name="])
async def test_a_server_with_too_many_clients_says_so(use: Use, new_server: Callable[..., Server], query: str) -> None:
    server = new_server("--maxclients", "4")
    others = [await asyncio.open_connection(HOST, server.port) for _ in range(4)]
    for reader, writer in others:
        writer.write(b"PING\r\n")
        await reader.read(1)
    said = await trouble(use, server.url + query)
    for _, writer in others:
        writer.close()
    assert "max number of clients (maxclients in its configuration): raise that" in said


# TLS


@everybody
async def test_tls_that_fails_says_whose_certificate_is_wrong(
    use: Use, tls_server: Server, certificates: Certificates, tmp_path: Path
) -> None:
    trusted = f"{tls_server.url}?ca_certs={certificates.ca}"
    strangers = make_certificates(tmp_path)
    assert "is not trusted" in await trouble(use, tls_server.url)
    assert "pass ca_certs=" in await trouble(use, tls_server.url)
    assert "use rediss://" in await trouble(use, f"redis://{HOST}:{tls_server.port}")
    tls_server.ask("CONFIG", "SET", "tls-auth-clients", "yes")
    try:
        assert "asks for a certificate of ours" in await trouble(use, trusted)
        foreign = f"{trusted}&certfile={strangers.client}&keyfile={strangers.client_key}"
        assert "does not trust the authority of our certificate" in await trouble(use, foreign)
        await use(f"{trusted}&certfile={certificates.client}&keyfile={certificates.client_key}")
    finally:
        tls_server.ask("CONFIG", "SET", "tls-auth-clients", "optional")


@everybody
async def test_a_server_without_tls_is_told_from_one_with_it(use: Use, server: Server) -> None:
    assert "use redis://" in await trouble(use, f"rediss://{HOST}:{server.port}?connect_timeout=0.5")


# A server that forgets


@pytest.mark.parametrize("denied", ["", "-info"])
@pytest.mark.parametrize("use", [as_node, as_async_publisher])
async def test_a_server_that_evicts_is_warned_of(
    use: Use, denied: str, new_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    server = new_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    server.ask("ACL", "SETUSER", "user", "reset", "on", ">word", "~*", "&*", "+@all", *denied.split())
    with caplog.at_level(logging.WARNING, "socketspec.cluster"):
        await use(f"redis://user:word@{HOST}:{server.port}")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "maxmemory-policy is allkeys-lru" in said
    assert "revocations" in said
    assert said.endswith("maxmemory-policy noeviction")


async def test_a_server_that_keeps_all_is_not_warned_of(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "socketspec.cluster"):
        await as_node(server.url)
    assert not caplog.records


# Finding them


async def test_the_name_in_the_url_is_asked_however_many_nodes_are_known(cluster_servers: Cluster) -> None:
    servers, options = configured("test", f"redis+cluster://{HOST}:{cluster_servers.servers[0].port}", {})
    gone = [Address(HOST, free_port()) for _ in range(30)]
    connector = Connector(servers, options)
    await connector.begin_search(routine=False)
    layout = await finder_for("cluster")(connector, gone)
    await connector.close()
    assert {owner.port for owner in layout.owners if owner} == {server.port for server in cluster_servers.primaries}


class Balancer:
    """Forwards connections to a port; those that are there when it forgets lead nowhere from then on."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._age = 0
        self._tasks: list[asyncio.Task[None]] = []

    def forget(self) -> None:
        self._age += 1

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._forward(reader, writer)))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(HOST, self._to)
        try:
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        finally:
            writer.close()
            back.close()

    async def _carry(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        age = self._age
        while data := await source.read(65_536):
            if age == self._age:
                to.write(data)
        to.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_connection_that_a_balancer_dropped_costs_no_doubt(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socketspec.cluster.servers.shard.UNUSED", 0.0)
    balancer = Balancer(server.port)
    listening = await asyncio.start_server(balancer.accept, HOST, 0)
    url = f"redis://{HOST}:{listening.sockets[0].getsockname()[1]}"
    topology = make_topology(*configured("test", url, {"start_timeout": 0}))
    await topology.start()
    try:
        await topology.execute([("SET", "k", "1")])
        balancer.forget()
        began = asyncio.get_running_loop().time()
        assert await topology.execute([("GET", "k")]) == [b"1"]
        assert asyncio.get_running_loop().time() - began < 3
    finally:
        await topology.stop()
        await balancer.close()
        listening.close()


async def test_a_node_that_idles_keeps_its_connections(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socketspec.cluster.pubsub.subscriptions.REFRESH_EVERY", 0.1)
    backend = from_url(server.url)
    await backend.start("/", nothing, nothing)
    before = int(server.info("stats")["total_connections_received"])
    await asyncio.sleep(2)  # some twenty searches, unless the pauses between them have grown
    opened = int(server.info("stats")["total_connections_received"]) - before - 1  # this question's own
    await backend.stop("/", nothing)
    assert opened <= 1


def test_a_publisher_does_not_take_a_replica_for_the_primary_where_hello_is_switched_off() -> None:
    config = 'rename-command HELLO ""\nreplicaof 127.0.0.1 1\n'
    with (
        Server(binary=redis_binary(), config=config) as server,
        Publisher(server.url, timeout=2) as publisher,
        pytest.raises(BackendError, match="it is a replica now"),
    ):
        publisher.broadcast("lobby", "news", {})
