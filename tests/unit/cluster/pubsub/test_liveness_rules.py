"""A link counts as good only while we hear ourselves on it: how that is found out, and what comes of it.

Servers are played in memory and in virtual time, with the options that a node really has.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest

from socketspec.errors import BackendError
from tests.played_redis import BRIEF, OPTIONS, PROBE, ROOM, PlayedNode, PlayedServer, hearing, resp
from tests.virtual_time import in_virtual_time, now
from tests.watching import levels

INTERVAL, TIMEOUT = OPTIONS.probe_interval, OPTIONS.probe_timeout
LATE = 1.0
"""Seconds a probe has for its way back, even where publishing it took all the time there was."""


async def nothing_arrives(channel: bytes, nonce: bytes) -> None:
    """Published, to a server that the link does not lead to."""


async def failing(channel: bytes, nonce: bytes) -> None:
    raise BackendError("10,000 commands wait already")


async def hanging(channel: bytes, nonce: bytes) -> None:
    await asyncio.Event().wait()


# A link that hears


@in_virtual_time
async def test_a_link_is_tested_by_a_message_of_our_own_every_interval() -> None:
    async with hearing() as node:
        published: list[float] = []
        nonces: set[bytes] = set()

        async def note(channel: bytes, nonce: bytes) -> None:
            assert channel == PROBE
            published.append(now())
            nonces.add(nonce)
            await node.publish(channel, nonce)

        node.publishing = note
        await asyncio.sleep(15.1)
        gaps = [after - before for before, after in pairwise(published)]
        assert len(gaps) >= 8
        assert all(gap == pytest.approx(INTERVAL, abs=BRIEF) for gap in gaps)
        assert len(nonces) == len(published)
        assert all(len(nonce) == 16 for nonce in nonces)
        assert node.heard == []  # probes are nobody else's
        assert node.servers[0].accepted == 1


@in_virtual_time
async def test_a_nonce_of_an_earlier_probe_or_of_somebody_else_proves_nothing() -> None:
    async with hearing() as node:
        said: list[bytes] = []

        async def repeat(channel: bytes, nonce: bytes) -> None:
            said.append(nonce)
            await node.publish(channel, said[0])
            await node.publish(channel, b"somebody else's")

        await node.probed()
        node.publishing = repeat
        await node.probed()  # the first is its own
        began = now()
        assert await node.replaced_at() - began > LATE


@in_virtual_time
async def test_what_is_heard_is_proof_enough_though_publishing_it_has_not_returned() -> None:
    async def slow_to_return(channel: bytes, nonce: bytes) -> None:
        await node.publish(channel, nonce)
        await asyncio.sleep(1000)

    node = PlayedNode([PlayedServer("a")], OPTIONS)
    node.publishing = slow_to_return
    await node.subscriptions.start()
    assert now() < BRIEF
    await asyncio.sleep(10 * INTERVAL)
    assert sum(node.subscriptions.lag.counts) >= 10
    await node.subscriptions.stop()


@in_virtual_time
async def test_what_is_heard_when_its_probe_is_over_proves_nothing() -> None:
    async with hearing() as node:

        async def late(channel: bytes, nonce: bytes) -> None:
            asyncio.get_running_loop().call_later(TIMEOUT + 0.5, node.servers[0].publish, channel, nonce)
            await hanging(channel, nonce)

        await node.probed()
        count = sum(node.subscriptions.lag.counts)
        node.publishing = late
        await asyncio.sleep(INTERVAL + TIMEOUT + 1)
        assert node.trouble == "a:6379: publishing takes more than 3 s"
        assert sum(node.subscriptions.lag.counts) == count
        node.publishing = node.publish
        await asyncio.sleep(INTERVAL + TIMEOUT)


@in_virtual_time
async def test_what_somebody_else_says_before_our_first_probe_proves_nothing_and_does_no_harm() -> None:
    node = PlayedNode([PlayedServer("a")], OPTIONS)
    node.publishing = hanging
    node.servers[0].mute.add(PROBE)
    starting = asyncio.create_task(node.subscriptions.start())
    await asyncio.sleep(BRIEF)
    link = node.servers[0].link
    link.channels.add(PROBE)
    link.say(resp(b"ssubscribe", PROBE, 1), resp(b"smessage", PROBE, b"somebody else's"))
    await asyncio.sleep(BRIEF)
    assert node.trouble == "a:6379: connected, but has not heard itself yet"
    assert not starting.done()
    assert sum(node.subscriptions.lag.counts) == 0
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await node.subscriptions.stop()


@in_virtual_time
async def test_first_heard_is_logged_with_how_long_it_took(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "socketspec.cluster")
    async with hearing() as node:
        assert levels(caplog, "Subscriptions at a:6379: connected and heard after 0.0 s") == ["INFO"]
        await asyncio.sleep(10)
        assert len(levels(caplog, "connected and heard")) == 1
        node.servers[0].is_down = True
        node.servers[0].cut()
        await asyncio.sleep(4)
        node.servers[0].is_down = False
        caplog.clear()
        await asyncio.sleep(2)
        (record,) = [one for one in caplog.records if "connected and heard" in one.getMessage()]
        assert 4.0 <= float(record.getMessage().split()[-2]) <= 5.5


@in_virtual_time
async def test_a_link_that_answers_and_was_not_heard_yet_is_not_said_to_be_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing() as node:
        await asyncio.sleep(10)
        caplog.set_level(logging.INFO, "socketspec.cluster")
        node.publishing = failing
        node.servers[0].cut()
        await asyncio.sleep(10)
        assert levels(caplog, "connected and heard") == []
        node.publishing = node.publish
        await asyncio.sleep(INTERVAL + TIMEOUT)
        assert levels(caplog, "connected and heard") == ["INFO"]


@in_virtual_time
async def test_one_link_is_one_connection_however_long_it_lives() -> None:
    async with hearing() as node:
        await asyncio.sleep(1000)
        assert node.servers[0].accepted == 1
        assert node.is_healthy


# A link that does not hear


@in_virtual_time
async def test_silence_is_found_and_the_link_replaced_though_it_answers_pings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing() as node:
        await node.subscriptions.subscribe(ROOM)
        await node.probed()
        node.publishing = nothing_arrives
        began = now()
        took = await node.replaced_at() - began
        assert took == pytest.approx(INTERVAL + TIMEOUT, abs=0.2)
        silence = "what is published does not arrive on it: it leads to a dead or a wrong server"
        assert levels(caplog, f"No subscription connection to a:6379: {silence}") == ["WARNING"]
        await asyncio.sleep(BRIEF)
        assert node.trouble == f"a:6379: connected, but has not heard itself yet ({silence})"
        node.publishing = node.publish
        await asyncio.sleep(TIMEOUT + 1)
        assert set(node.restored) == {ROOM}
        assert node.is_healthy


@in_virtual_time
async def test_a_probe_has_a_second_for_its_way_back_even_where_publishing_took_long() -> None:
    async with hearing() as node:

        async def slowly(channel: bytes, nonce: bytes) -> None:
            await asyncio.sleep(TIMEOUT - 0.1)

            async def later() -> None:
                await asyncio.sleep(LATE - 0.1)
                await node.publish(channel, nonce)

            node.tasks.spawn(later(), name="a message on its way")

        node.publishing = slowly
        await asyncio.sleep(30)
        assert node.servers[0].accepted == 1
        assert node.subscriptions.lag.sum > 3.7


@in_virtual_time
async def test_a_probe_that_took_long_to_publish_has_no_more_than_that_second() -> None:
    async with hearing() as node:
        published: list[float] = []

        async def slowly(channel: bytes, nonce: bytes) -> None:
            await asyncio.sleep(TIMEOUT - 0.1)
            published.append(now())

        await node.probed()
        node.publishing = slowly
        while node.servers[0].links:  # noqa: ASYNC110 # a lost connection has no event
            await asyncio.sleep(0.005)
        assert now() - published[0] == pytest.approx(LATE, abs=0.05)


@in_virtual_time
async def test_a_short_probe_timeout_is_all_that_a_way_back_has() -> None:
    async with hearing(probe_timeout=0.2) as node:
        await node.probed()
        node.publishing = nothing_arrives
        began = now()
        assert await node.replaced_at() - began == pytest.approx(INTERVAL + 0.2, abs=0.1)


@in_virtual_time
async def test_while_publishing_fails_a_link_that_answers_is_kept_and_health_says_what_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing() as node:
        await node.probed()
        node.publishing = failing
        looks = len(node.topology.looks)
        await asyncio.sleep(INTERVAL + TIMEOUT + 0.5)
        assert node.trouble == "a:6379: 10,000 commands wait already"
        await asyncio.sleep(30)
        assert node.servers[0].accepted == 1
        told = levels(caplog, "Cannot tell whether a:6379 still hears: 10,000 commands wait already")
        assert told == ["WARNING"]  # once
        assert len(node.topology.looks) - looks >= 7
        node.publishing = node.publish
        await asyncio.sleep(INTERVAL + TIMEOUT)
        assert node.is_healthy


@in_virtual_time
async def test_publishing_that_fails_is_looked_into_as_soon_as_it_is_known() -> None:
    async with hearing() as node:
        await asyncio.sleep(10)
        await node.probed()
        node.publishing = failing
        await asyncio.sleep(INTERVAL + TIMEOUT - BRIEF)
        node.topology.looks.clear()
        await asyncio.sleep(0.2)
        assert len(node.topology.looks) == 1
        node.publishing = node.publish
        await asyncio.sleep(INTERVAL + TIMEOUT)


@in_virtual_time
async def test_while_publishing_hangs_a_link_that_answers_is_kept_and_health_says_so() -> None:
    async with hearing() as node:
        node.publishing = hanging
        await asyncio.sleep(30)
        assert node.trouble == "a:6379: publishing takes more than 3 s"
        assert node.servers[0].accepted == 1
        node.publishing = node.publish
        await asyncio.sleep(INTERVAL + TIMEOUT)
        assert node.is_healthy


@in_virtual_time
async def test_publishing_that_fails_is_tried_again_at_once_and_then_less_often() -> None:
    async with hearing() as node:
        tries: list[tuple[float, bytes]] = []

        async def note(channel: bytes, nonce: bytes) -> None:
            tries.append((now(), nonce))
            if len(tries) < 4:
                raise BackendError("not yet")
            await node.publish(channel, nonce)

        await node.probed()
        node.publishing = note
        await node.probed()
        gaps = [after - before for (before, _), (after, _) in pairwise(tries)]
        for gap, least in zip(gaps, [0.05, 0.1, 0.2], strict=True):
            assert least <= gap <= 1.25 * least + BRIEF
        assert len({nonce for _, nonce in tries}) == 1
        assert node.is_healthy
        await asyncio.sleep(INTERVAL)
        assert len(tries) == 5


@in_virtual_time
async def test_publishing_that_fails_in_any_way_is_told_in_words() -> None:
    async with hearing() as node:

        async def fail(channel: bytes, nonce: bytes) -> None:
            raise KeyError

        node.publishing = fail
        await asyncio.sleep(INTERVAL + TIMEOUT + 0.5)
        assert node.trouble == "a:6379: KeyError()"
        node.publishing = node.publish
        await asyncio.sleep(INTERVAL + TIMEOUT)


@in_virtual_time
async def test_nothing_is_left_of_a_publish_that_hangs_when_its_probe_is_over() -> None:
    async with hearing() as node:
        ended: list[bytes] = []

        async def hang(channel: bytes, nonce: bytes) -> None:
            try:
                await hanging(channel, nonce)
            finally:
                ended.append(nonce)

        node.publishing = hang
        await asyncio.sleep(INTERVAL + TIMEOUT + BRIEF)
        assert len(ended) == 1
        node.publishing = node.publish
        await asyncio.sleep(INTERVAL + TIMEOUT)


@in_virtual_time
async def test_a_server_that_answers_nothing_is_given_up_whatever_publishing_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for publishing in (failing, hanging):
        async with hearing() as node:
            await node.probed()
            node.publishing = publishing
            node.servers[0].mute |= {b"PING"}
            began = now()
            while node.servers[0].links:  # noqa: ASYNC110 # a lost connection has no event
                await asyncio.sleep(0.005)
            assert now() - began == pytest.approx(INTERVAL + TIMEOUT, abs=0.2)
            assert "it did not answer for 3 s" in node.trouble
            node.servers[0].mute.clear()
            node.publishing = node.publish
            await asyncio.sleep(TIMEOUT + 2)
            assert node.is_healthy
    assert levels(caplog, "No subscription connection to a:6379: it did not answer for 3 s") == ["WARNING"] * 2


@in_virtual_time
async def test_a_probe_that_comes_back_is_enough_though_no_ping_is_answered() -> None:
    async with hearing() as node:
        await node.probed()
        node.servers[0].mute.add(b"PING")
        await asyncio.sleep(60)
        assert node.is_healthy
        assert node.servers[0].accepted == 1


@in_virtual_time
async def test_a_probe_that_is_never_confirmed_keeps_a_link_that_answers_but_is_trouble() -> None:
    node = PlayedNode([PlayedServer("a")], OPTIONS)
    node.servers[0].mute.add(PROBE)
    starting = asyncio.create_task(node.subscriptions.start())
    await asyncio.sleep(TIMEOUT + 0.5)
    assert node.trouble == "a:6379: the probe's subscription was not confirmed"
    assert node.servers[0].accepted == 1
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await node.subscriptions.stop()


@in_virtual_time
async def test_a_link_that_was_lost_during_a_probe_is_replaced_for_that_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing() as node:
        node.publishing = nothing_arrives
        await asyncio.sleep(INTERVAL + 0.5)
        node.servers[0].cut(ConnectionResetError("reset by peer"))
        await asyncio.sleep(BRIEF)
        assert node.trouble.startswith("a:6379: the connection broke: reset by peer")
        assert levels(caplog, "No subscription connection to a:6379: the connection broke: reset by peer")
        node.publishing = node.publish
        await asyncio.sleep(5)
        assert node.is_healthy


# The probe's channel


@in_virtual_time
async def test_a_probe_channel_that_is_refused_is_trouble_costs_no_link_and_is_asked_for_again() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        looks = len(node.topology.looks)
        server.refusals[PROBE] = "MOVED 1 b:6379"
        server.take_back(PROBE)
        await asyncio.sleep(INTERVAL + 0.5)
        assert node.trouble == "a:6379: the subscription to the probe's channel was refused: MOVED 1 b:6379"
        assert len(node.topology.looks) > looks
        await asyncio.sleep(20)
        assert server.count(b"SSUBSCRIBE", PROBE) >= 10
        server.refusals.clear()
        await asyncio.sleep(INTERVAL + 0.5)
        assert node.is_healthy
        assert server.accepted == 1
        assert node.restored == []
        assert node.subscriptions.losses == 0


@in_virtual_time
async def test_a_probe_channel_that_is_taken_back_between_probes_is_looked_into_at_once() -> None:
    async with hearing() as node:
        await node.probed()
        await asyncio.sleep(0.1)
        looks = len(node.topology.looks)
        node.servers[0].take_back(PROBE)
        await asyncio.sleep(BRIEF)
        assert len(node.topology.looks) == looks + 1
        await asyncio.sleep(2 * INTERVAL)
        assert node.is_healthy


@in_virtual_time
async def test_a_probe_channel_that_is_taken_back_during_a_probe_ends_the_wait() -> None:
    async with hearing() as node:
        (server,) = node.servers
        node.publishing = nothing_arrives
        await probed_soon(node)
        server.refusals[PROBE] = "NOPERM no permissions"
        server.take_back(PROBE)
        await asyncio.sleep(BRIEF)
        assert node.trouble == "a:6379: the subscription to the probe's channel was refused: its slot has moved"
        await asyncio.sleep(INTERVAL + BRIEF)
        assert node.trouble == "a:6379: the subscription to the probe's channel was refused: NOPERM no permissions"
        server.refusals.clear()
        node.publishing = node.publish
        await asyncio.sleep(2 * INTERVAL)
        assert node.is_healthy
        assert server.accepted == 1


async def probed_soon(node: PlayedNode) -> None:
    """Wait until a probe was published that will not come back."""
    pings = node.servers[0].count(b"PING")
    while node.servers[0].count(b"PING") == pings:  # noqa: ASYNC110 # the beginning of a probe has no event
        await asyncio.sleep(0.005)
    await asyncio.sleep(BRIEF)


@in_virtual_time
async def test_after_a_resharding_the_probe_moves_to_a_channel_that_the_server_owns() -> None:
    async with hearing() as node:
        (server,) = node.servers
        node.topology.tags[server.address] = "moved"
        await asyncio.sleep(INTERVAL + BRIEF)
        assert server.link.channels == {b"probe:moved"}
        assert server.count(b"SUNSUBSCRIBE", PROBE) == 1
        await asyncio.sleep(10)
        assert node.is_healthy
        assert server.accepted == 1
        assert node.heard == []
        assert server.count(b"SSUBSCRIBE") == 2


@in_virtual_time
async def test_a_probe_channel_that_is_wanted_again_while_it_is_given_up_was_not_refused() -> None:
    async with hearing() as node:
        (server,) = node.servers
        node.topology.tags[server.address] = "moved"
        server.mute |= {PROBE, b"probe:moved"}
        await asyncio.sleep(INTERVAL + TIMEOUT + 0.5)
        assert node.trouble == "a:6379: the probe's subscription was not confirmed"
        del node.topology.tags[server.address]
        server.mute.add(b"PING")
        await asyncio.sleep(INTERVAL)
        server.mute.clear()
        server.confirm(server.link, b"SUNSUBSCRIBE", PROBE)  # a slow server: all of it comes now, in order
        server.confirm(server.link, b"SSUBSCRIBE", b"probe:moved")
        server.link.say(resp(b"pong", b""))
        await asyncio.sleep(BRIEF)
        assert node.is_healthy
        assert server.link.channels == {PROBE}
        assert server.accepted == 1


@pytest.mark.parametrize("error", [LookupError("a:6379 owns no slot"), BackendError("nobody knows"), ValueError("?")])
@in_virtual_time
async def test_a_server_that_owns_nothing_has_no_probe_and_health_says_why(error: Exception) -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.probed()
        node.topology.tags[server.address] = error
        await asyncio.sleep(INTERVAL - BRIEF)
        node.topology.looks.clear()
        await asyncio.sleep(2 * BRIEF)
        assert len(node.topology.looks) == 1  # at once
        await asyncio.sleep(0.5)
        assert node.trouble == f"a:6379: the subscription to the probe's channel was refused: {error}"
        del node.topology.tags[server.address]
        await asyncio.sleep(2 * INTERVAL)
        assert node.is_healthy
        assert server.accepted == 1


# Health


@in_virtual_time
async def test_silence_is_told_after_the_time_that_a_probe_and_its_interval_may_take() -> None:
    async with hearing() as node:
        await node.subscriptions.subscribe(ROOM)
        await node.probed()
        heard_at = now()
        gate = asyncio.Event()

        async def wait() -> None:
            await gate.wait()

        node.on_received = lambda _: wait()
        await node.publish(ROOM, b"1")
        await asyncio.sleep(INTERVAL + TIMEOUT - BRIEF)
        assert node.is_healthy
        await asyncio.sleep(2 * BRIEF)
        assert node.trouble == (
            f"a:6379: has not heard itself for {now() - heard_at:.1f} s, waiting for deliveries that are behind"
        )
        await asyncio.sleep(30)  # but that is no fault of the link
        assert node.servers[0].accepted == 1
        node.on_received = lambda _: None
        gate.set()
        await asyncio.sleep(BRIEF)
        assert node.is_healthy


@in_virtual_time
async def test_silence_without_anything_behind_is_told_as_it_is() -> None:
    async with hearing(probe_interval=0.1) as node:
        await node.probed()

        async def late(channel: bytes, nonce: bytes) -> None:
            await asyncio.sleep(TIMEOUT - 0.05)

        node.publishing = late
        await asyncio.sleep(0.1 + TIMEOUT + 0.2)
        assert node.trouble == "a:6379: has not heard itself for 3.3 s"
        assert node.servers[0].accepted == 1
        node.publishing = node.publish
        await asyncio.sleep(5)
