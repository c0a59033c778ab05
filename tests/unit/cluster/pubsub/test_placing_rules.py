"""On which server a channel is heard: placing, moving, and looking the servers up.

Servers are played in memory and in virtual time, with the options that a node really has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import pairwise

import pytest

from socketspec.cluster.options import Address
from socketspec.cluster.servers.shard import ReplicaError
from tests.played_redis import BRIEF, OPTIONS, ROOM, PlayedNode, PlayedServer, hearing
from tests.virtual_time import in_virtual_time, listen, now
from tests.watching import levels, turns

LOOK_EVERY = 4.0
"""Seconds after which the servers are looked up even though nothing seems wrong."""


# Places


def on(node: PlayedNode, channel: bytes) -> list[str]:
    """The servers that have `channel`."""
    return [server.address.host for server in node.servers if server.has(channel)]


@in_virtual_time
async def test_each_channel_is_on_the_server_that_owns_it() -> None:
    async with hearing(2) as node:
        node.topology.places[b"right"] = node.servers[1]
        await node.subscriptions.subscribe(b"left")
        await node.subscriptions.subscribe(b"right")
        assert (on(node, b"left"), on(node, b"right")) == (["a"], ["b"])
        assert node.subscriptions.health() == (True, "hears 2 channels on 2 connections")


@in_virtual_time
async def test_a_channel_whose_place_has_moved_is_moved_by_the_next_look() -> None:
    async with hearing(2) as node:
        await node.subscriptions.subscribe(ROOM)
        await node.subscriptions.subscribe(b"stays")
        node.topology.places[ROOM] = node.servers[1]
        await asyncio.sleep(LOOK_EVERY + 1)
        assert (on(node, ROOM), on(node, b"stays")) == (["b"], ["a"])
        assert node.servers[0].count(b"SUNSUBSCRIBE", ROOM) == 1
        assert node.restored == [ROOM]
        assert node.subscriptions.losses == 1
        assert node.is_healthy


@in_virtual_time
async def test_a_channel_whose_place_is_not_known_for_now_stays_where_it_is() -> None:
    async with hearing(2) as node:
        await node.subscriptions.subscribe(ROOM)
        node.topology.places[ROOM] = None
        await asyncio.sleep(3 * LOOK_EVERY)
        assert on(node, ROOM) == ["a"]
        assert node.restored == []


@in_virtual_time
async def test_thousands_of_channels_move_and_the_loop_has_its_turn_meanwhile() -> None:
    async with hearing(2) as node:
        channels = [b"%d" % number for number in range(3500)]
        await asyncio.gather(*map(node.subscriptions.subscribe, channels))
        asked = 0
        longest = 0

        def place(channel: bytes) -> Address:
            nonlocal asked, longest
            asked += 1
            longest = max(longest, asked)
            return node.servers[1].address

        node.topology.address_for = place  # type: ignore[method-assign] # as a topology that has learned it
        node.subscriptions.refresh_soon()
        for _ in range(2000):
            asked = 0
            await asyncio.sleep(0)
        assert len(node.servers[1].link.channels) == 3501
        assert len(node.restored) == 3500
        assert longest == 2 * 1000  # each is looked up, and placed


@in_virtual_time
async def test_what_is_given_up_while_thousands_move_moves_nowhere() -> None:
    async with hearing(2) as node:
        channels = [b"%d" % number for number in range(2500)]
        await asyncio.gather(*map(node.subscriptions.subscribe, channels))
        asked = 0

        def place(channel: bytes) -> Address:
            nonlocal asked
            asked += 1
            return node.servers[1].address

        node.topology.address_for = place  # type: ignore[method-assign] # as a topology that has learned it
        node.subscriptions.refresh_soon()
        await turns(lambda: asked)
        assert asked < 2500
        node.subscriptions.unsubscribe(channels[-1])
        await asyncio.sleep(2)
        assert node.servers[1].count(b"SSUBSCRIBE", channels[-1]) == 0
        assert node.subscriptions.health() == (True, "hears 2499 channels on 2 connections")


@in_virtual_time
async def test_a_server_that_is_no_primary_any_more_is_left_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "socketspec.cluster")
    async with hearing(2) as node:
        old, new = node.servers
        await node.subscriptions.subscribe(ROOM)
        node.topology.servers = [new]
        node.subscriptions.refresh_soon()
        await asyncio.sleep(1)
        assert not old.links
        assert on(node, ROOM) == ["b"]
        assert node.restored == [ROOM]
        assert levels(caplog, "a:6379 is no primary any more") == ["INFO"]
        assert node.subscriptions.health() == (True, "hears 1 channels on 1 connections")
        await asyncio.sleep(60)
        assert old.accepted == 1


@in_virtual_time
async def test_a_server_that_is_no_primary_any_more_is_not_heard_from_that_moment_on() -> None:
    async with hearing(2) as node:
        old, new = node.servers
        await node.subscriptions.subscribe(ROOM)

        def addresses() -> Sequence[Address]:
            old.publish(ROOM, b"on its way")
            return [new.address]

        node.topology.addresses = addresses  # type: ignore[method-assign] # as a topology that has learned it
        node.subscriptions.refresh_soon()
        await asyncio.sleep(1)
        assert node.heard == []


@in_virtual_time
async def test_while_no_server_is_known_the_old_ones_are_kept() -> None:
    async with hearing() as node:
        await node.subscriptions.subscribe(ROOM)
        node.topology.servers = []
        node.topology.places[ROOM] = node.servers[0]
        await asyncio.sleep(3 * LOOK_EVERY)
        assert node.is_healthy
        await node.publish(ROOM, b"x")
        await turns(lambda: node.heard == [(ROOM, b"x")])
        assert node.servers[0].accepted == 1


@in_virtual_time
async def test_a_new_server_is_connected_to_before_any_channel_is_there() -> None:
    async with hearing() as node:
        joining = PlayedServer("joining")
        listen(*joining.address, joining.accept)
        node.topology.servers = [*node.servers, joining]
        node.servers = [*node.servers, joining]
        await asyncio.sleep(LOOK_EVERY + 1)
        assert joining.accepted == 1
        assert node.subscriptions.health() == (True, "hears 0 channels on 2 connections")


@in_virtual_time
async def test_a_lost_link_costs_only_the_channels_of_its_own_server() -> None:
    async with hearing(2) as node:
        node.topology.places[b"right"] = node.servers[1]
        await node.subscriptions.subscribe(b"left")
        await node.subscriptions.subscribe(b"right")
        node.servers[1].cut()
        await asyncio.sleep(2)
        assert node.restored == [b"right"]
        assert node.subscriptions.losses == 1


@in_virtual_time
async def test_a_channel_that_moved_away_is_no_loss_of_the_server_it_left() -> None:
    async with hearing(2) as node:
        first, second = node.servers
        await node.subscriptions.subscribe(ROOM)
        first.mute.add(b"SUNSUBSCRIBE")  # so that the link goes while it still has the channel
        node.topology.places[ROOM] = second
        node.subscriptions.refresh_soon()
        await asyncio.sleep(1)
        assert second.has(ROOM)
        assert node.subscriptions.losses == 1
        first.cut()
        await asyncio.sleep(2)
        assert node.subscriptions.losses == 1
        assert node.restored == [ROOM]
        assert node.is_healthy


# Looking the servers up


@in_virtual_time
async def test_the_servers_are_looked_up_now_and_then_though_nothing_seems_wrong() -> None:
    async with hearing() as node:
        await asyncio.sleep(60)
        gaps = [after - before for before, after in pairwise(node.topology.looks)]
        assert len(gaps) >= 13
        assert all(LOOK_EVERY <= gap < LOOK_EVERY + 0.1 for gap in gaps)


async def quiet_for(node: PlayedNode, seconds: float) -> None:
    """Let so much time go by since the servers were looked up as a matter of course."""
    looks = len(node.topology.looks)
    while len(node.topology.looks) == looks:  # noqa: ASYNC110 # a look has no event
        await asyncio.sleep(0.05)
    await asyncio.sleep(seconds)


@pytest.mark.parametrize(("quiet", "pauses"), [(1.8, [0.1, 0.2, 0.4]), (2.2, [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])])
@in_virtual_time
async def test_trouble_is_looked_into_at_once_and_then_less_and_less_often(quiet: float, pauses: list[float]) -> None:
    """New trouble, that is: what comes within two seconds of the last look goes on where that was."""
    async with hearing() as node:
        await asyncio.sleep(20)
        await quiet_for(node, quiet)
        node.topology.places[ROOM] = None  # nobody has it: cause enough to look again each time
        node.topology.looks.clear()
        began = now()
        waiting = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(4.9)
        waiting.cancel()
        assert node.topology.looks[0] - began < BRIEF
        gaps = [after - before for before, after in pairwise(node.topology.looks)]
        for gap, least in zip(gaps, pauses, strict=False):
            assert least <= gap <= 1.25 * least + BRIEF
        assert len(gaps) >= 5


@in_virtual_time
async def test_a_lookup_has_so_much_time_and_its_failure_is_told_only_where_something_is_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing() as node:

        async def hang() -> None:
            await asyncio.sleep(1000)

        node.topology.on_refresh = hang
        await asyncio.sleep(60)
        assert node.is_healthy  # every probe comes back
        text = "Looking up the servers failed: no answer within 5 s"
        assert levels(caplog, text) == ["WARNING"]  # once, not each time
        gaps = [after - before for before, after in pairwise(node.topology.looks)]
        assert all(LOOK_EVERY + 5 <= gap < LOOK_EVERY + 5.1 for gap in gaps[2:])
        node.servers[0].is_down = True
        node.servers[0].cut()
        await asyncio.sleep(BRIEF)
        assert node.trouble.endswith("; looking up the servers failed: no answer within 5 s")


@pytest.mark.parametrize(
    ("error", "words"), [(ConnectionError("nobody there"), "nobody there"), (KeyError(), "KeyError()")]
)
@in_virtual_time
async def test_a_lookup_may_fail_in_any_way(error: Exception, words: str, caplog: pytest.LogCaptureFixture) -> None:
    async with hearing() as node:
        trouble: Exception | None = error

        async def fail() -> None:
            if trouble is not None:
                raise trouble

        node.topology.on_refresh = fail
        await node.subscriptions.subscribe(ROOM)
        node.servers[0].cut()
        await asyncio.sleep(BRIEF)
        assert node.trouble.endswith(f"; looking up the servers failed: {words}")
        await asyncio.sleep(10)
        assert node.restored == [ROOM]
        assert node.is_healthy
        assert levels(caplog, f"Looking up the servers failed: {words}") == ["WARNING"]
        trouble = None
        await asyncio.sleep(10)
        node.servers[0].is_down = True
        node.servers[0].cut()
        await asyncio.sleep(BRIEF)
        assert "looking up" not in node.trouble
        assert levels(caplog, "Looking up the servers failed") == ["WARNING"]


@in_virtual_time
async def test_a_server_that_became_a_replica_is_trouble_and_is_looked_into_until_it_is_none() -> None:
    async with hearing() as node:
        error: ReplicaError | None = ReplicaError(node.servers[0].address)

        async def fail() -> None:
            if error is not None:
                raise error

        node.topology.on_refresh = fail
        await asyncio.sleep(LOOK_EVERY + 1)
        assert node.trouble.startswith("looking up the servers failed: a:6379 ")
        looks = len(node.topology.looks)
        await asyncio.sleep(5)
        assert len(node.topology.looks) - looks >= 4  # no wait for the next turn
        error = ReplicaError(Address("elsewhere", 1))
        await asyncio.sleep(LOOK_EVERY + 1)
        assert node.is_healthy  # what is not used here does not matter
        error = None
        await asyncio.sleep(LOOK_EVERY + 2)
        assert node.is_healthy


@in_virtual_time
async def test_an_error_of_our_own_while_placing_is_logged_and_it_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing() as node:
        node.topology.places[ROOM] = None
        waiting = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(BRIEF)
        addresses = node.topology.addresses

        def fail() -> Sequence[Address]:
            raise RuntimeError("a bug in the topology")

        node.topology.addresses = fail  # type: ignore[method-assign] # a bug
        await asyncio.sleep(0.3)
        assert "ERROR" in levels(caplog, "Placing subscriptions met an error of our own")
        assert len(levels(caplog, "Placing subscriptions")) >= 2
        node.topology.addresses = addresses  # type: ignore[method-assign] # and its end
        del node.topology.places[ROOM]
        await waiting


@in_virtual_time
async def test_who_lost_its_link_connects_again_only_after_the_servers_were_looked_up() -> None:
    async with hearing() as node:
        (server,) = node.servers
        gate = asyncio.Event()

        async def wait() -> None:
            await gate.wait()

        await asyncio.sleep(20)
        node.topology.on_refresh = wait
        server.cut()
        await asyncio.sleep(2)
        assert server.accepted == 1
        gate.set()
        await asyncio.sleep(1)
        assert server.accepted == 2


@in_virtual_time
async def test_who_lost_its_link_waits_for_a_lookup_no_longer_than_a_connection_may_take() -> None:
    async with hearing() as node:
        (server,) = node.servers

        async def hang() -> None:
            await asyncio.sleep(1000)

        await asyncio.sleep(20)
        node.topology.on_refresh = hang
        server.cut()
        await asyncio.sleep(OPTIONS.connect_timeout - BRIEF)
        assert server.accepted == 1
        await asyncio.sleep(0.1)
        assert server.accepted == 2
