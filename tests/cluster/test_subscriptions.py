"""Subscriptions against real servers, and what can befall those: nothing is lost for longer than it takes to find."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from redis.crc import key_slot

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.runner import Runner
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.pubsub.subscriptions import Subscriptions
from socketspec.cluster.servers.topology import make_topology
from socketspec.cluster.urls import parse_url
from socketspec.errors import BackendError
from tests.servers import Cluster, Proxy, Sentinels, Server
from tests.watching import WatchedTasks, open_sockets, until

FOUND_WITHIN = 6.0
"""What the product promises, with default options."""
CHANNELS = [b"test:{room%d}" % number for number in range(700)]


class Node:
    """Subscriptions, how they publish, and what they heard. `publish_url` is where publishes go, if elsewhere."""

    def __init__(self, url: str, publish_url: str | None = None, **options: Any) -> None:
        servers, configured = parse_url(url)
        self.options: RedisOptions = replace(configured, **options)
        self.tasks = WatchedTasks()
        self.topology = make_topology(servers, self.options)
        self.publishing = self.topology
        if publish_url is not None:
            self.publishing = make_topology(parse_url(publish_url)[0], self.options)
        self.runner = Runner(self.publishing, self.options, self.tasks)
        self.heard: list[tuple[bytes, bytes]] = []
        self.restored: list[bytes] = []
        self.behind: Callable[[], Awaitable[None] | None] = lambda: None
        self.subscriptions = Subscriptions(
            self.topology,
            self.tasks,
            receive=self._receive,
            probe=self.publish,
            probe_channel=lambda tag: Keys("test").probe("node", tag),
            restored=self.restored.extend,
            options=self.options,
        )

    async def publish(self, channel: bytes, data: bytes) -> Any:
        return await self.runner.run(Command("SPUBLISH", None, (channel,), (data,)))

    def _receive(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[None] | None:
        self.heard.extend(messages)
        return self.behind()

    @property
    def is_healthy(self) -> bool:
        return self.subscriptions.health()[0]

    async def hears(self, channel: bytes, data: bytes = b"hello") -> None:
        """Publish once, and wait for it."""
        assert await self.publish(channel, data) == 1
        await self.heard_of(channel, data)

    async def heard_of(self, channel: bytes, data: bytes) -> None:
        await until(lambda: (channel, data) in self.heard)

    async def start(self) -> None:
        await self.topology.start()
        if self.publishing is not self.topology:
            await self.publishing.start()
        await self.runner.start()
        await self.subscriptions.start()

    async def stop(self) -> None:
        await self.subscriptions.stop()
        await self.runner.stop()
        await self.tasks.close(1)
        await self.publishing.stop()
        await self.topology.stop()


@asynccontextmanager
async def running(url: str, publish_url: str | None = None, **options: Any) -> AsyncIterator[Node]:
    node = Node(url, publish_url, **options)
    try:
        await node.start()
        yield node
        assert not node.tasks.failures
    finally:
        await node.stop()


def subscribers(server: Server, channel: bytes) -> int:
    return int(server.ask("PUBSUB", "SHARDNUMSUB", channel)[1])


async def test_a_subscription_stands_when_subscribe_returns(standalone_server: Server) -> None:
    async with running(standalone_server.url) as node:
        for number in range(20):
            channel = b"test:{stands}%d" % number
            await node.subscriptions.subscribe(channel)
            assert standalone_server.ask("SPUBLISH", channel, "now") == 1
            await node.heard_of(channel, b"now")
        node.subscriptions.unsubscribe(channel)
        await until(lambda: subscribers(standalone_server, channel) == 0)
        assert subscribers(standalone_server, b"test:{stands}0") == 1


async def test_callers_share_a_subscription_and_thousands_are_quick(server: Server) -> None:
    async with running(server.url) as node:
        channels = [b"test:{many%d}" % number for number in range(5000)]
        began = time.monotonic()
        await asyncio.gather(*(node.subscriptions.subscribe(channel) for channel in channels * 3))
        assert time.monotonic() - began < 5
        calls = server.info("commandstats")["cmdstat_ssubscribe"]
        assert calls.startswith("calls=5001,")


async def test_everything_stands_again_after_the_server_was_killed_and_came_back(server: Server) -> None:
    async with running(server.url) as node:
        await asyncio.gather(*map(node.subscriptions.subscribe, CHANNELS))
        server.kill()
        await until(lambda: not node.is_healthy, within=1)
        await asyncio.sleep(1)
        server.restart()
        await until(lambda: sorted(node.restored) == sorted(CHANNELS), within=5)
        await until(lambda: node.is_healthy, within=3)
        await node.hears(CHANNELS[0])
        await node.hears(CHANNELS[-1])


async def test_a_killed_connection_is_replaced_at_once(server: Server) -> None:
    async with running(server.url) as node:
        await asyncio.gather(*map(node.subscriptions.subscribe, CHANNELS))
        for times in (1, 2, 3):
            assert server.drop_clients("TYPE", "pubsub") == 1
            expected = times * len(CHANNELS)
            await until(lambda: len(node.restored) == expected, within=1)  # noqa: B023 # awaited in this round
        await until(lambda: node.is_healthy, within=2)
        await node.hears(CHANNELS[0])


@pytest.mark.slow
async def test_a_frozen_server_is_found_and_forgiven(server: Server) -> None:
    async with running(server.url) as node:
        await node.subscriptions.subscribe(CHANNELS[0])
        server.stop_for()
        frozen_at = time.monotonic()
        took = await until(lambda: not node.is_healthy, within=FOUND_WITHIN)
        await asyncio.sleep(max(5 - (time.monotonic() - frozen_at), 0))
        assert not node.is_healthy
        server.cont()
        await until(lambda: node.is_healthy, within=3)
        assert took <= FOUND_WITHIN
        assert node.restored == CHANNELS[:1]
        await node.hears(CHANNELS[0])


@pytest.mark.slow
async def test_a_link_into_a_black_hole_is_found_and_replaced(server: Server, proxy: Proxy) -> None:
    async with running(proxy.url, server.url) as node:
        await asyncio.gather(*map(node.subscriptions.subscribe, CHANNELS))
        proxy.black_hole()
        await until(lambda: node.subscriptions.losses == len(CHANNELS), within=FOUND_WITHIN)
        assert not node.is_healthy
        proxy.pass_on()
        await until(lambda: node.is_healthy and len(node.restored) == len(CHANNELS), within=5)
        await node.hears(CHANNELS[0])


@pytest.mark.slow
async def test_one_way_black_holes_are_found_as_well(server: Server, proxy: Proxy) -> None:
    async with running(proxy.url, server.url) as node:
        await node.subscriptions.subscribe(CHANNELS[0])
        proxy.black_hole("down")
        await until(lambda: node.subscriptions.losses, within=FOUND_WITHIN)
        assert not node.is_healthy
        proxy.pass_on()
        await until(lambda: node.is_healthy, within=5)
        await node.hears(CHANNELS[0])


@pytest.mark.slow
async def test_a_link_to_a_live_server_that_nobody_publishes_to_is_found_and_moved(
    new_server: Callable[..., Server],
) -> None:
    old, new = new_server(), new_server()
    with Proxy(old.port) as links, Proxy(old.port) as commands:
        async with running(links.url, commands.url) as node:
            await node.subscriptions.subscribe(CHANNELS[0])
            commands.aim(new.port)
            commands.reset()
            links.aim(new.port)  # the open link stays where it is, and alive
            await until(lambda: node.restored == CHANNELS[:1], within=FOUND_WITHIN)
            await until(lambda: node.is_healthy, within=2)
            assert subscribers(old, CHANNELS[0]) == 0
            await node.hears(CHANNELS[0])


async def test_a_link_cut_for_reading_too_slowly_is_replaced_once_reading_goes_on(
    new_server: Callable[..., Server],
) -> None:
    server = new_server("--client-output-buffer-limit", "pubsub 256kb 0 0")
    async with running(server.url) as node:
        await node.subscriptions.subscribe(CHANNELS[0])
        gate = asyncio.Event()
        node.behind = lambda: None if gate.is_set() else _open(gate)
        await node.publish(CHANNELS[0], b"first")
        await until(lambda: node.heard)
        await asyncio.gather(*(node.publish(CHANNELS[0], bytes(8000)) for _ in range(2500)))
        await until(lambda: server.ask("CLIENT", "LIST", "TYPE", "pubsub") == "")
        assert node.heard == [(CHANNELS[0], b"first")]
        gate.set()  # (8 kB: larger ones Valkey 9 shares between clients, and does not count)
        await until(lambda: node.restored == CHANNELS[:1] and node.is_healthy)
        await node.hears(CHANNELS[0])


async def test_backpressure_pauses_reading_and_loses_nothing(server: Server) -> None:
    async with running(server.url) as node:
        await node.subscriptions.subscribe(CHANNELS[0])
        gate = asyncio.Event()
        node.behind = lambda: None if gate.is_set() else _open(gate)
        sent = [b"%d" % number for number in range(5000)]
        await node.publish(CHANNELS[0], sent[0])
        await until(lambda: node.heard)
        taken = len(node.heard)
        await asyncio.gather(*(node.publish(CHANNELS[0], data) for data in sent[1:]))
        assert len(node.heard) == taken
        gate.set()
        await until(lambda: len(node.heard) == len(sent))
        assert [data for _, data in node.heard] == sent
        assert node.restored == []


async def _open(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_stop_leaves_no_task_and_no_socket(standalone_server: Server) -> None:
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    async with running(standalone_server.url, client_name="stops") as node:
        await asyncio.gather(*map(node.subscriptions.subscribe, CHANNELS))
        assert "name=stops" in standalone_server.ask("CLIENT", "LIST")
    await until(lambda: open_sockets() <= sockets)
    assert asyncio.all_tasks() <= tasks
    await until(lambda: "name=stops" not in standalone_server.ask("CLIENT", "LIST"))


async def test_the_link_speaks_tls(tls_server: Server) -> None:
    assert tls_server.certificates is not None
    async with running(tls_server.url, ca_certs=str(tls_server.certificates.ca)) as node:
        await node.subscriptions.subscribe(CHANNELS[0])
        await node.hears(CHANNELS[0])
        assert tls_server.drop_clients("TYPE", "pubsub") == 1
        await until(lambda: node.restored == CHANNELS[:1])


async def test_the_link_logs_in_and_a_channel_the_acl_forbids_is_named(new_server: Callable[..., Server]) -> None:
    server = new_server(password="right horse")
    server.ask("ACL", "SETUSER", "ann", "on", ">ann's", "+@all", "~*", "&test:*")
    async with running(server.url, username="ann", password="ann's") as node:
        await node.subscriptions.subscribe(CHANNELS[0])
        with pytest.raises(BackendError, match="refused: NOPERM"):
            await node.subscriptions.subscribe(b"other:{room}")
        await node.hears(CHANNELS[0])


async def test_a_start_without_permission_to_subscribe_says_so(new_server: Callable[..., Server]) -> None:
    server = new_server(password="right horse")
    server.ask("ACL", "SETUSER", "ann", "on", ">ann's", "+@all", "~*", "resetchannels")
    node = Node(server.url, username="ann", password="ann's", command_timeout=1.0)
    try:
        with pytest.raises(BackendError, match="NOPERM"):
            await node.start()
    finally:
        await node.stop()


async def test_a_channel_follows_its_slot_to_another_shard(healthy_cluster: Cluster) -> None:
    async with running(healthy_cluster.url) as node:
        await asyncio.gather(*map(node.subscriptions.subscribe, CHANNELS))
        channel = CHANNELS[7]
        slot = key_slot(channel)
        source = healthy_cluster.owner(slot)
        target = next(server for server in healthy_cluster.primaries if server is not source)
        healthy_cluster.move_slot(slot, target)
        try:
            await until(lambda: channel in node.restored, within=3)
            assert subscribers(target, channel) == 1
            assert {key_slot(one) for one in node.restored} == {slot}
            await until(lambda: node.is_healthy, within=3)
            await node.hears(channel)
        finally:
            healthy_cluster.move_slot(slot, source)
        await until(lambda: subscribers(source, channel) == 1, within=3)
        await node.hears(channel, b"back")


async def test_when_the_probes_slot_moves_no_connection_is_given_up(healthy_cluster: Cluster) -> None:
    async with running(healthy_cluster.url) as node:
        await asyncio.gather(*map(node.subscriptions.subscribe, CHANNELS[:50]))
        address = node.topology.addresses()[0]
        slot = key_slot(node.topology.tag_for(address).encode())
        source = healthy_cluster.owner(slot)
        target = next(server for server in healthy_cluster.primaries if server is not source)
        await asyncio.to_thread(healthy_cluster.move_slot, slot, target)
        try:
            await asyncio.sleep(node.options.probe_interval)  # the next probe is on its way by then
            await until(lambda: node.is_healthy, within=5)
            assert [channel for channel in node.restored if key_slot(channel) != slot] == []
        finally:
            await asyncio.to_thread(healthy_cluster.move_slot, slot, source)


@pytest.mark.slow
async def test_subscriptions_follow_a_shards_failover(healthy_cluster: Cluster) -> None:
    async with running(healthy_cluster.url) as node:
        await asyncio.gather(*map(node.subscriptions.subscribe, CHANNELS))
        killed = healthy_cluster.kill_primary()
        await until(lambda: not node.is_healthy, within=2)
        await asyncio.to_thread(healthy_cluster.wait_failover, killed)
        await until(lambda: node.is_healthy, within=FOUND_WITHIN)
        lost = set(node.restored)
        assert 0 < len(lost) < len(CHANNELS)
        for channel in (CHANNELS[0], next(iter(lost))):
            await node.hears(channel)


@pytest.mark.slow
async def test_subscriptions_follow_the_primary_that_sentinels_name(healthy_sentinels: Sentinels) -> None:
    async with running(healthy_sentinels.url) as node:
        await asyncio.gather(*map(node.subscriptions.subscribe, CHANNELS))
        old = healthy_sentinels.primary
        new = await asyncio.to_thread(healthy_sentinels.switch)
        await until(lambda: len(set(node.restored)) == len(CHANNELS), within=FOUND_WITHIN)
        await until(lambda: node.is_healthy, within=FOUND_WITHIN)
        assert subscribers(new, CHANNELS[0]) == 1
        assert subscribers(old, CHANNELS[0]) == 0
        await node.hears(CHANNELS[0])
