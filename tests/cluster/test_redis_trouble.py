"""What Redis can do to a cluster, with real processes: clients stay, health tells the truth, all is restored."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.cluster.nodes import Nodes, ask, drain, eventually_async, nodes
from tests.servers import Proxy, Server
from tests.support import Client

ROOMS = [f"room{number}" for number in range(40)]
COMMAND_TIMEOUT = 3.0


class Scene(NamedTuple):
    """Two nodes, each with a client in every room, and one room with history."""

    server: Server
    nodes: Nodes
    speaker: Client
    listener: Client


@asynccontextmanager
async def scene(server: Server, folder: Path, urls: list[str] | None = None) -> AsyncIterator[Scene]:
    options = {"backend": {"command_timeout": COMMAND_TIMEOUT}}
    with nodes(folder, urls or [server.url] * 2, options) as two:
        async with two.client(0, *ROOMS, "log:1") as speaker, two.client(1, *ROOMS, "log:1") as listener:
            await works(Scene(server, two, speaker, listener))
            yield Scene(server, two, speaker, listener)


async def works(scene: Scene) -> None:
    """Every room still reaches both nodes, over the connections that were there from the beginning."""
    await drain(scene.speaker)
    await drain(scene.listener)
    for room in [*ROOMS, "log:1"]:
        await scene.speaker.send("say", {"room": room, "n": room})
    for client in (scene.speaker, scene.listener):
        heard: set[str] = set()
        while len(heard) < len(ROOMS) + 1:
            message = await client.receive(5)
            assert message["event"] in ("said", "__ack__"), message
            if message["event"] == "said":
                heard.add(message["payload"]["n"])

    async def count() -> object:
        return await ask(scene.speaker, "count", {"room": ROOMS[0]})

    await eventually_async(count, {"count": 2}, 8, "both are present, at the latest with the next renewal of a lease")


async def a_broadcast_ends_in_time(client: Client) -> object:
    began = time.monotonic()
    outcome = await ask(client, "say", {"room": ROOMS[0], "n": 0}, COMMAND_TIMEOUT + 2)
    assert time.monotonic() - began < COMMAND_TIMEOUT + 1
    return outcome


async def still_here(scene: Scene) -> None:
    """Clients are connected and events that need no Redis are answered."""
    for client in (scene.speaker, scene.listener):
        assert await ask(client, "echo", {"n": 1}) == {"n": 1}


async def recovered(scene: Scene, within: float = 10.0) -> None:
    await scene.nodes.until_ready(0, within=within)
    await scene.nodes.until_ready(1, within=within)
    await works(scene)


async def test_redis_killed_and_back_after_three_seconds(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as s:
        server.kill()
        await s.nodes.until_ready(0, False, 6)
        await s.nodes.until_ready(1, False, 6)
        await still_here(s)
        assert await a_broadcast_ends_in_time(s.speaker) == "HANDLER_ERROR"
        server.restart()
        await recovered(s)


async def test_a_server_that_was_made_a_replica_is_said_within_six_seconds_and_heals(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server, primary = new_server(), new_server()
    async with scene(server, tmp_path) as s:
        server.ask("REPLICAOF", "127.0.0.1", primary.port)
        took = [await s.nodes.until_ready(number, False, 7) for number in range(2)]
        assert sum(took) <= 6
        await still_here(s)
        server.ask("REPLICAOF", "NO", "ONE")
        await recovered(s)


async def test_redis_frozen_for_five_seconds(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as s:
        server.stop_for(5.0)
        await still_here(s)
        await a_broadcast_ends_in_time(s.speaker)
        await s.nodes.until_ready(0, False, 6)
        await recovered(s, 12)


async def test_a_half_open_link_is_found_within_six_seconds(server: Server, tmp_path: Path) -> None:
    with Proxy(server.port) as proxy:
        async with scene(server, tmp_path, [server.url, proxy.url]) as s:
            proxy.black_hole()
            took = await s.nodes.until_ready(1, False, 7)
            assert took <= 6
            assert await s.nodes.ready(0)
            await still_here(s)
            assert await a_broadcast_ends_in_time(s.listener) == "HANDLER_ERROR"
            proxy.pass_on()
            await recovered(s)


async def test_a_reset_network_is_survived(server: Server, tmp_path: Path) -> None:
    with Proxy(server.port) as proxy:
        async with scene(server, tmp_path, [server.url, proxy.url]) as s:
            for _ in range(3):
                proxy.reset()
                await still_here(s)
            await recovered(s)


async def test_subscribers_killed_by_the_server_come_back_and_catch_up(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as s:
        await drain(s.listener)
        for number in range(30):
            if number % 10 == 5:
                server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await ask(s.speaker, "say", {"room": "log:1", "n": number})
        heard: list[int] = []
        while len(heard) < 30:
            message = await s.listener.receive(10)
            heard.append(message["payload"]["n"])
        assert heard == list(range(30))
        await recovered(s)


async def test_the_output_buffer_limit_cuts_a_subscriber_and_it_comes_back(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as s:
        server.ask("CONFIG", "SET", "client-output-buffer-limit", "pubsub 256kb 0 0")
        channel = next(name for name in server.ask("PUBSUB", "SHARDCHANNELS") if "room0" in name)
        s.nodes[1].process.send_signal(signal.SIGSTOP)
        for _ in range(4000):  # the kernel's buffers come first; what is in these is nothing a node knows, and ignored
            server.ask("SPUBLISH", channel, "x" * 60_000)
            if int(server.info("stats")["client_output_buffer_limit_disconnections"]):
                break
        s.nodes[1].process.send_signal(signal.SIGCONT)
        assert int(server.info("stats")["client_output_buffer_limit_disconnections"]) >= 1
        await recovered(s, 20)


async def test_a_full_redis_refuses_history_and_nothing_else(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as s:
        server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.ask("CONFIG", "SET", "maxmemory", "1")
        assert await ask(s.speaker, "say", {"room": "log:1", "n": 1}) == "HANDLER_ERROR"
        await still_here(s)
        assert await ask(s.speaker, "say", {"room": ROOMS[0], "n": 1}) == {"nodes": 2, "offset": None}
        assert await s.nodes.ready(0)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        await recovered(s)


async def test_flushall_and_script_flush_are_made_good(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as s:
        server.ask("FLUSHALL")
        server.ask("SCRIPT", "FLUSH")

        async def count() -> object:
            return await ask(s.speaker, "count", {"room": ROOMS[0]})

        await eventually_async(count, {"count": 2}, 8, "presence is back")
        await recovered(s)


async def test_no_redis_at_start_is_waited_for_and_said(server: Server, tmp_path: Path) -> None:
    server.kill()
    with nodes(tmp_path, [server.url], {"backend": {"start_timeout": 20.0}}, wait=False) as one:
        await one[0].logged(r"(?i)refused|cannot reach|out of reach", 10)
        server.restart()
        one[0].wait()
        await one.until_ready(0)
        async with one.client(0, "room") as client:
            assert await ask(client, "count", {"room": "room"}) == {"count": 1}


async def test_memory_stays_bounded_while_redis_is_away(server: Server, tmp_path: Path) -> None:
    async with scene(server, tmp_path) as s:
        server.kill()
        before = (await s.nodes.get(0, "/rss"))["kib"]
        text = "x" * 10_000
        for _ in range(3000):
            await s.speaker.send("say", {"room": ROOMS[0], "n": 0, "text": text})
        await asyncio.sleep(COMMAND_TIMEOUT + 1)
        assert (await s.nodes.get(0, "/rss"))["kib"] - before < 60_000
        server.restart()
        await recovered(s, 20)


async def test_a_node_whose_lease_cannot_be_renewed_is_not_ready_though_it_hears(
    server: Server, tmp_path: Path
) -> None:
    """Nobody could enter there. Redis refuses to write, and the links stand."""
    options = {"backend": {"lease": 2.0, "command_timeout": 1.0}}
    with nodes(tmp_path, [server.url], options) as one:
        server.ask("CONFIG", "SET", "min-replicas-to-write", 1)
        await one.until_ready(0, False, 6)
        server.ask("CONFIG", "SET", "min-replicas-to-write", 0)
        await one.until_ready(0, True, 4)
