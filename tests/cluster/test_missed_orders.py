"""Orders that were given while a node had no link: they are carried out as soon as it has one again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.protocol.orders import control_topic
from socketspec.session.revocation import revocation_subjects
from tests.cluster.nodes import ask, nodes
from tests.servers import Proxy, Server
from tests.support import Client

CHANNEL = Keys().channel(control_topic("/"))


async def gone(server: Server) -> None:
    """Until the node has lost its link."""
    deadline = time.monotonic() + 5
    while server.ask("PUBSUB", "SHARDNUMSUB", CHANNEL)[1]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def are_in(*clients: Client) -> None:
    """Until they are let in: a node that loses its link before that refuses them."""
    for client in clients:
        assert await ask(client, "echo", {"n": 1}) == {"n": 1}


@pytest.mark.parametrize("heard_before", [False, True])
@pytest.mark.parametrize("order", ["disconnect", "revoke"])
async def test_an_order_during_a_moment_without_a_link_is_carried_out(
    server: Server, tmp_path: Path, order: str, heard_before: bool
) -> None:
    with (
        Proxy(server.port) as proxy,
        nodes(tmp_path, [proxy.url], {"auth": True}) as one,
        Publisher(server.url) as publisher,
    ):
        async with one.client(0, user="ada") as ada, one.client(0, user="eve") as eve:
            await are_in(ada, eve)
            if heard_before:
                publisher.disconnect_user("nobody")
                await asyncio.sleep(0.3)
            proxy.refuse()
            await gone(server)
            if order == "disconnect":
                publisher.disconnect_user("ada", code=4100, reason="kicked")
            else:
                publisher.revoke(user="ada")
            proxy.pass_on()
            began = time.monotonic()
            assert (await ada.closed())[0] == (4100 if order == "disconnect" else 4005)
            assert time.monotonic() - began < 1.0
            assert await ask(eve, "echo", {"n": 1}) == {"n": 1}
        if order == "disconnect":  # it is not carried out again
            async with one.client(0, user="ada") as ada:
                await are_in(ada)
                proxy.reset()
                await asyncio.sleep(1.0)
                assert await ask(ada, "echo", {"n": 1}) == {"n": 1}


async def test_a_revocation_whose_order_is_lost_is_found(server: Server, tmp_path: Path) -> None:
    (subject,) = revocation_subjects("/", user="ada")
    with Proxy(server.port) as proxy, nodes(tmp_path, [proxy.url], {"auth": True}) as one:
        async with one.client(0, user="ada") as ada, one.client(0, user="eve") as eve:
            await are_in(ada, eve)
            proxy.refuse()
            await gone(server)
            server.ask("FLUSHALL")
            server.ask(
                "SET", Keys().revoked(subject), "1", "PX", 60_000
            )  # as earlier versions give no order that is kept
            proxy.pass_on()
            assert (await ada.closed())[0] == 4005
            assert await ask(eve, "echo", {"n": 1}) == {"n": 1}


@pytest.mark.parametrize("setting", ["maxmemory", "min-replicas-to-write"])
async def test_an_order_is_carried_out_though_the_server_refuses_to_write(
    server: Server, tmp_path: Path, setting: str
) -> None:
    with nodes(tmp_path, [server.url], {"auth": True}) as one, Publisher(server.url) as publisher:
        async with one.client(0, user="ada") as ada:
            await are_in(ada)
            server.ask("CONFIG", "SET", setting, "1")
            try:
                publisher.disconnect_user("ada", code=4100, reason="kicked")
                assert (await ada.closed())[0] == 4100
            finally:
                server.ask("CONFIG", "SET", setting, "0")
