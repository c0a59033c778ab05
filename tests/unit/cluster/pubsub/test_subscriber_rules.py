"""The subscriptions at one primary: asked for within bounds, and asked for again after a loss.

Servers are played in memory and in virtual time, with the options that a node really has.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from socketspec.errors import BackendError
from tests.played_redis import BRIEF, OPTIONS, PROBE, ROOM, PlayedNode, PlayedServer, hearing, resp
from tests.virtual_time import in_virtual_time, now
from tests.watching import levels, turns

INTERVAL = OPTIONS.probe_interval
MAX_OUTSTANDING = 500
"""Channels asked for or given up without an answer."""


async def hanging(channel: bytes, nonce: bytes) -> None:
    await asyncio.Event().wait()


# Asking


@in_virtual_time
async def test_what_is_asked_in_one_turn_goes_out_together_and_in_order() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(b"old")
        server.commands.clear()
        callers = [asyncio.create_task(node.subscriptions.subscribe(channel)) for channel in (b"a", b"b", b"c")]
        await asyncio.sleep(0)
        node.subscriptions.unsubscribe(b"old")
        await asyncio.gather(*callers)
        assert server.commands == [
            (b"SUNSUBSCRIBE", b"old"),
            (b"SSUBSCRIBE", b"a"),
            (b"SSUBSCRIBE", b"b"),
            (b"SSUBSCRIBE", b"c"),
        ]


@in_virtual_time
async def test_a_channel_that_leaves_and_comes_back_within_a_turn_costs_nothing() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        server.commands.clear()
        node.subscriptions.unsubscribe(ROOM)
        await node.subscriptions.subscribe(ROOM)
        await asyncio.sleep(BRIEF)
        assert server.commands == []
        assert node.restored == []


@in_virtual_time
async def test_a_channel_that_comes_and_goes_within_a_turn_costs_nothing() -> None:
    async with hearing() as node:
        node.servers[0].commands.clear()
        subscribing = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(0)
        node.subscriptions.unsubscribe(ROOM)
        with pytest.raises(BackendError):
            await subscribing
        await asyncio.sleep(BRIEF)
        assert node.servers[0].commands == []


@in_virtual_time
async def test_a_channel_that_goes_while_it_is_asked_for_is_given_up_when_the_answer_is_here() -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.mute.add(ROOM)
        subscribing = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await turns(lambda: server.count(b"SSUBSCRIBE", ROOM))
        node.subscriptions.unsubscribe(ROOM)
        with pytest.raises(BackendError):
            await subscribing
        await asyncio.sleep(BRIEF)
        assert server.count(b"SUNSUBSCRIBE") == 0
        server.mute.clear()
        server.confirm(server.link, b"SSUBSCRIBE", ROOM)
        await asyncio.sleep(BRIEF)
        assert server.count(b"SUNSUBSCRIBE", ROOM) == 1
        assert not server.has(ROOM)


@in_virtual_time
async def test_a_channel_that_comes_back_while_it_is_given_up_is_asked_for_when_the_answer_is_here() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        server.mute.add(ROOM)
        node.subscriptions.unsubscribe(ROOM)
        await turns(lambda: server.count(b"SUNSUBSCRIBE", ROOM))
        subscribing = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(BRIEF)
        assert server.count(b"SSUBSCRIBE", ROOM) == 1
        assert not subscribing.done()
        server.mute.clear()
        looks = len(node.topology.looks)
        server.confirm(server.link, b"SUNSUBSCRIBE", ROOM)
        await subscribing
        assert server.count(b"SSUBSCRIBE", ROOM) == 2
        assert node.restored == []
        assert len(node.topology.looks) == looks  # that was no surprise


@in_virtual_time
async def test_a_refusal_of_what_was_given_up_meanwhile_is_nobodys_business(caplog: pytest.LogCaptureFixture) -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.mute.add(ROOM)
        subscribing = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await turns(lambda: server.count(b"SSUBSCRIBE", ROOM))
        node.subscriptions.unsubscribe(ROOM)
        with pytest.raises(BackendError, match="unsubscribed"):
            await subscribing
        server.link.say(b"-NOPERM no permissions\r\n")
        await asyncio.sleep(1)
        assert levels(caplog, "refused") == []
        assert server.accepted == 1
        assert node.is_healthy


@in_virtual_time
async def test_no_more_than_so_many_are_asked_for_without_an_answer() -> None:
    async with hearing() as node:
        (server,) = node.servers
        link = server.link
        server.mute.add(b"SSUBSCRIBE")
        server.commands.clear()
        channels = [b"%d" % number for number in range(MAX_OUTSTANDING + 100)]
        callers = [asyncio.create_task(node.subscriptions.subscribe(channel)) for channel in channels]
        await asyncio.sleep(BRIEF)
        assert server.commands == [(b"SSUBSCRIBE", channel) for channel in channels[:MAX_OUTSTANDING]]
        link.channels.update(channels[:30])
        link.say(*(resp(b"ssubscribe", channel, 1) for channel in channels[:30]))
        await asyncio.sleep(BRIEF)
        assert len(server.commands) == MAX_OUTSTANDING + 30
        for command in server.commands[30:]:
            server.confirm(link, *command)
        server.mute.clear()
        await asyncio.gather(*callers)
        assert node.subscriptions.health()[1] == f"hears {len(channels)} channels on 1 connections"


@in_virtual_time
async def test_what_is_given_up_counts_among_what_is_not_answered() -> None:
    async with hearing() as node:
        (server,) = node.servers
        channels = [b"%d" % number for number in range(300)]
        await asyncio.gather(*map(node.subscriptions.subscribe, channels))
        server.mute |= {b"SSUBSCRIBE", b"SUNSUBSCRIBE"}
        server.commands.clear()
        callers = [asyncio.create_task(node.subscriptions.subscribe(b"new%d" % number)) for number in range(300)]

        async def give_up() -> None:
            for channel in channels:
                node.subscriptions.unsubscribe(channel)

        await asyncio.create_task(give_up())  # in the turn in which the others ask
        await asyncio.sleep(BRIEF)
        assert (server.count(b"SSUBSCRIBE"), server.count(b"SUNSUBSCRIBE")) == (300, 200)
        for caller in callers:
            caller.cancel()


@in_virtual_time
async def test_a_channel_that_goes_and_comes_back_while_it_is_asked_for_is_asked_for_once() -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.mute.add(ROOM)
        first = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await turns(lambda: server.count(b"SSUBSCRIBE", ROOM))
        node.subscriptions.unsubscribe(ROOM)
        second = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(BRIEF)
        assert server.count(b"SSUBSCRIBE", ROOM) == 1
        server.mute.clear()
        server.confirm(server.link, b"SSUBSCRIBE", ROOM)
        await second
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.sleep(BRIEF)
        assert (server.count(b"SSUBSCRIBE", ROOM), server.count(b"SUNSUBSCRIBE", ROOM)) == (1, 0)


@in_virtual_time
async def test_a_channel_that_goes_and_comes_back_while_it_is_given_up_is_given_up_once() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        server.mute.add(ROOM)
        node.subscriptions.unsubscribe(ROOM)
        await turns(lambda: server.count(b"SUNSUBSCRIBE", ROOM))
        again = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(BRIEF)
        node.subscriptions.unsubscribe(ROOM)
        await asyncio.gather(again, return_exceptions=True)
        await asyncio.sleep(BRIEF)
        assert server.count(b"SUNSUBSCRIBE", ROOM) == 1
        server.confirm(server.link, b"SUNSUBSCRIBE", ROOM)
        await asyncio.sleep(BRIEF)
        assert (server.count(b"SSUBSCRIBE", ROOM), server.count(b"SUNSUBSCRIBE", ROOM)) == (1, 1)


@in_virtual_time
async def test_what_is_asked_for_at_any_moment_of_a_loss_stands_in_the_end() -> None:
    async with hearing() as node:
        (server,) = node.servers
        callers: list[asyncio.Task[None]] = []
        server.cut()
        for number in range(20):
            callers.append(asyncio.create_task(node.subscriptions.subscribe(b"%d" % number)))
            await asyncio.sleep(0)
        await asyncio.gather(*callers)
        assert server.link.channels == {PROBE, *(b"%d" % number for number in range(20))}
        assert node.restored == []


@in_virtual_time
async def test_a_refusal_to_give_up_means_that_it_is_gone() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        server.refusals[ROOM] = "MOVED 1 b:6379"
        node.subscriptions.unsubscribe(ROOM)
        await asyncio.sleep(BRIEF)
        assert node.is_healthy
        server.refusals.clear()
        await node.subscriptions.subscribe(ROOM)
        assert server.count(b"SSUBSCRIBE", ROOM) == 2
        assert server.accepted == 1


@in_virtual_time
async def test_what_stood_is_asked_for_again_on_the_next_link_in_one_go() -> None:
    async with hearing() as node:
        (server,) = node.servers
        channels = [b"a", b"b", b"c"]
        for channel in channels:
            await node.subscriptions.subscribe(channel)
        server.cut()
        server.commands.clear()
        await asyncio.sleep(1)
        asked = [command[1] for command in server.commands if command[0] == b"SSUBSCRIBE"]
        assert sorted(asked) == [*channels, PROBE]


# Losing and connecting again


@in_virtual_time
async def test_a_lost_link_is_replaced_at_once_and_then_less_and_less_often() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await asyncio.sleep(20)
        accepted: list[float] = []
        server.mute |= {b"PING", b"SSUBSCRIBE"}
        began = now()
        for _ in range(6):
            server.cut()
            accepted.append(await node.replaced_at())
        gaps = [after - before for before, after in pairwise([began, *accepted])]
        for gap, least in zip(gaps, [0.05, 0.1, 0.2, 0.4, 0.8, 1.0], strict=True):
            assert gap >= least - BRIEF
        assert gaps[0] < 0.2
        server.mute.clear()
        await asyncio.sleep(10)
        assert node.is_healthy


@pytest.mark.parametrize(("lived", "is_quick"), [(1.0, False), (10.0, True)])
@in_virtual_time
async def test_a_link_that_heard_for_a_while_is_replaced_without_delay(lived: float, is_quick: bool) -> None:
    async with hearing() as node:
        (server,) = node.servers
        for _ in range(6):
            await asyncio.sleep(lived)
            server.cut()
            began = now()
            took = await node.replaced_at() - began
        assert (took < 0.2) is is_quick
        assert is_quick or took >= 1.0


@in_virtual_time
async def test_the_same_trouble_is_logged_once_and_new_trouble_again(caplog: pytest.LogCaptureFixture) -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.is_down = True
        server.cut()
        await asyncio.sleep(30)
        refused = "No subscription connection to a:6379: a:6379 cannot be reached: connection refused"
        assert levels(caplog, refused) == ["WARNING"]
        server.is_down = False
        server.refusals[b"PING"] = "NOAUTH Authentication required."
        await asyncio.sleep(30)
        assert levels(caplog, "did not take the connection: NOAUTH") == ["WARNING"]
        server.refusals.clear()
        await asyncio.sleep(5)
        assert node.is_healthy
        server.is_down = True
        server.cut()
        await asyncio.sleep(10)
        assert levels(caplog, refused) == ["WARNING"] * 2


@in_virtual_time
async def test_until_it_is_heard_again_health_says_why_the_last_link_went() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await asyncio.sleep(10)
        node.publishing = hanging
        server.cut()
        await asyncio.sleep(BRIEF)
        assert node.trouble == "a:6379: the server closed the connection"
        await asyncio.sleep(0.5)
        reason = "the server closed the connection"
        assert node.trouble == f"a:6379: connected, but has not heard itself yet ({reason})"
        node.publishing = node.publish
        await asyncio.sleep(10)
        server.is_down = True
        server.cut()
        await asyncio.sleep(2)
        server.is_down = False
        node.publishing = hanging
        await asyncio.sleep(1.5)
        reason = "a:6379 cannot be reached: connection refused"
        assert node.trouble == f"a:6379: connected, but has not heard itself yet ({reason})"
        node.publishing = node.publish
        await asyncio.sleep(10)
        assert node.is_healthy


@in_virtual_time
async def test_a_new_node_has_not_connected_yet_and_then_not_heard_itself_yet() -> None:
    node = PlayedNode([PlayedServer("a")], OPTIONS)
    node.servers[0].mute.add(b"PING")
    node.publishing = hanging
    starting = asyncio.create_task(node.subscriptions.start())
    await asyncio.sleep(BRIEF)
    assert node.trouble == "a:6379: not connected yet"
    node.servers[0].mute.clear()
    node.servers[0].link.say(b"+PONG\r\n")
    await asyncio.sleep(BRIEF)
    assert node.trouble == "a:6379: connected, but has not heard itself yet"
    node.publishing = node.publish
    await asyncio.sleep(4)
    await starting
    await node.subscriptions.stop()


@in_virtual_time
async def test_an_error_of_our_own_costs_the_link_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with hearing() as node:
        (server,) = node.servers
        node.topology.tags[server.address] = RuntimeError("a bug in finding tags")
        await asyncio.sleep(INTERVAL + BRIEF)
        assert "ERROR" in levels(caplog, "The subscription connection to a:6379 met an error of our own")
        assert node.trouble.startswith("a:6379: RuntimeError('a bug in finding tags')")
        assert not server.links
        del node.topology.tags[server.address]
        await asyncio.sleep(5)
        assert node.is_healthy


@in_virtual_time
async def test_a_lane_that_is_not_needed_any_more_hears_nothing() -> None:
    async with hearing(2) as node:
        old, _ = node.servers
        await node.subscriptions.subscribe(ROOM)
        link = old.link
        node.topology.servers = [node.servers[1]]
        node.topology.places[ROOM] = node.servers[1]
        node.subscriptions.refresh_soon()
        await asyncio.sleep(1)
        assert not link.is_open
        link.say(resp(b"smessage", ROOM, b"from the old one"))
        await asyncio.sleep(1)
        assert node.heard == []
        await asyncio.sleep(30)
        assert old.accepted == 1
        assert node.is_healthy


# Whom to connect to again


@in_virtual_time
async def test_a_server_whose_link_was_lost_is_not_connected_to_before_it_is_known_to_be_the_primary() -> None:
    async with hearing() as node:
        (server,) = node.servers
        assert node.topology.confirmed == []

        async def replaced() -> None:
            raise BackendError("It is no primary any more.")

        node.topology.on_confirm = replaced
        lost_at, looks = now(), len(node.topology.looks)
        server.cut()
        await asyncio.sleep(2)
        assert server.accepted == 1
        asked, since = node.topology.confirmed[0]
        assert asked == server.address
        assert since == pytest.approx(lost_at, abs=BRIEF)
        assert len(node.topology.looks) > looks
        node.topology.on_confirm = None
        await asyncio.sleep(2)
        assert server.accepted == 2


@in_virtual_time
async def test_a_link_that_could_not_be_opened_is_asked_about_again() -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.is_down = True
        server.cut()
        await asyncio.sleep(1)
        times = [since for _, since in node.topology.confirmed]
        assert len(times) > 2
        assert times == sorted(set(times))
