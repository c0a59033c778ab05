"""Which channels a node hears: starting and stopping, asking and giving up, standing again, and what health says of it.

Servers are played in memory and in virtual time, with the options that a node really has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from socketspec.errors import BackendError
from tests.played_redis import BRIEF, OPTIONS, ROOM, PlayedNode, PlayedServer, hearing, resp
from tests.virtual_time import in_virtual_time, listen, now
from tests.watching import levels, turns

# Start


@in_virtual_time
async def test_a_start_returns_when_every_primary_is_heard() -> None:
    node = PlayedNode([PlayedServer("a"), PlayedServer("b")], OPTIONS)
    slow = node.servers[1]
    slow.mute.add(b"SSUBSCRIBE")
    starting = asyncio.create_task(node.subscriptions.start())
    await asyncio.sleep(1)
    assert not starting.done()
    slow.mute.clear()
    slow.confirm(slow.link, b"SSUBSCRIBE", b"probe:b")
    await starting
    assert now() < 1.3
    assert node.subscriptions.health() == (True, "hears 0 channels on 2 connections")
    await node.subscriptions.stop()


@in_virtual_time
async def test_a_start_takes_no_longer_than_the_servers_do() -> None:
    async with hearing(3) as node:
        assert now() < BRIEF
        began = now()
        await node.subscriptions.subscribe(ROOM)
        assert now() - began < BRIEF


@in_virtual_time
async def test_a_start_that_hears_too_little_raises_in_time_says_why_and_leaves_nothing() -> None:
    node = PlayedNode([PlayedServer("a"), PlayedServer("b")], OPTIONS)
    node.servers[1].mute.add(b"SSUBSCRIBE")
    began = now()
    with pytest.raises(BackendError, match=r"^Cannot hear what is published: b:6379: connected, but has not heard"):
        await node.subscriptions.start()
    assert now() - began == pytest.approx(OPTIONS.command_timeout, abs=BRIEF)
    await asyncio.sleep(BRIEF)
    assert len(node.tasks) == 0
    assert not any(server.links for server in node.servers)
    assert node.subscriptions.health() == (False, "the subscriptions are not started")


@in_virtual_time
async def test_a_start_returns_as_soon_as_a_server_that_is_not_heard_is_found_to_be_none() -> None:
    node = PlayedNode([PlayedServer("a"), PlayedServer("b")], OPTIONS)
    node.servers[1].is_down = True
    starting = asyncio.create_task(node.subscriptions.start())
    await asyncio.sleep(0.5)
    assert not starting.done()
    node.topology.servers = node.topology.servers[:1]
    node.subscriptions.refresh_soon()
    looks = len(node.topology.looks)
    while len(node.topology.looks) == looks:  # noqa: ASYNC110 # a look has no event
        await asyncio.sleep(BRIEF)
    await asyncio.sleep(BRIEF)
    assert starting.done()
    await node.subscriptions.stop()


@in_virtual_time
async def test_a_start_without_any_server_says_so() -> None:
    node = PlayedNode([], OPTIONS)
    with pytest.raises(BackendError, match=r"^Cannot hear what is published: no server is known$"):
        await node.subscriptions.start()


@in_virtual_time
async def test_nothing_is_subscribed_to_before_the_start_or_after_the_stop() -> None:
    node = PlayedNode([PlayedServer("a")], OPTIONS)
    for _ in range(2):
        with pytest.raises(BackendError, match=r"^The subscriptions are not started; start the SocketApp first\.$"):
            await node.subscriptions.subscribe(ROOM)
        assert node.subscriptions.health() == (False, "the subscriptions are not started")
        await node.subscriptions.start()
        await node.subscriptions.stop()


@in_virtual_time
async def test_a_stop_fails_who_waits_and_forgets_what_stood() -> None:
    node = PlayedNode([PlayedServer("a")], OPTIONS)
    await node.subscriptions.start()
    await node.subscriptions.subscribe(ROOM)
    node.servers[0].mute.add(b"other")
    waiting = asyncio.create_task(node.subscriptions.subscribe(b"other"))
    await asyncio.sleep(BRIEF)
    await node.subscriptions.stop()
    with pytest.raises(BackendError, match=r"^The Redis backend was stopped\.$"):
        await waiting
    assert not node.servers[0].links
    await node.subscriptions.start()
    assert node.subscriptions.health() == (True, "hears 0 channels on 1 connections")
    assert node.subscriptions.losses == 0
    await node.subscriptions.stop()


@in_virtual_time
async def test_a_stop_delivers_nothing_more() -> None:
    node = PlayedNode([PlayedServer("a")], OPTIONS)
    await node.subscriptions.start()
    await node.subscriptions.subscribe(ROOM)
    await node.publish(ROOM, b"on its way")
    await node.subscriptions.stop()
    assert node.heard == []


# Subscribing


@in_virtual_time
async def test_what_stands_already_needs_no_server() -> None:
    async with hearing() as node:
        await node.subscriptions.subscribe(ROOM)
        node.servers[0].mute.add(b"SSUBSCRIBE")
        began = now()
        await node.subscriptions.subscribe(ROOM)
        assert now() == began
        assert node.servers[0].count(b"SSUBSCRIBE", ROOM) == 1


@in_virtual_time
async def test_a_subscription_that_is_not_confirmed_in_time_says_what_is_wrong() -> None:
    async with hearing() as node:
        node.topology.places[ROOM] = None
        began = now()
        words = (
            r"^The subscription to 'room' was not confirmed within 5 s: 1 subscriptions are missing, one for 5\.0 s$"
        )
        with pytest.raises(BackendError, match=words):
            await node.subscriptions.subscribe(ROOM)
        assert now() - began == pytest.approx(OPTIONS.command_timeout, abs=BRIEF)
        assert node.is_healthy


@in_virtual_time
async def test_a_channel_of_any_bytes_can_be_named_in_an_error() -> None:
    async with hearing() as node:
        node.servers[0].mute.add(b"\xff")
        with pytest.raises(BackendError, match="The subscription to '\ufffd' was not confirmed"):
            await node.subscriptions.subscribe(b"\xff")


@in_virtual_time
async def test_a_refusal_for_good_is_raised_at_once_logged_and_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async with hearing() as node:
        node.servers[0].refusals[ROOM] = "NOPERM this user has no permissions"
        began = now()
        with pytest.raises(BackendError, match=r"^The subscription was refused: NOPERM this user has no permissions$"):
            await node.subscriptions.subscribe(ROOM)
        assert now() - began < BRIEF
        assert levels(caplog, "The subscription to b'room' was refused: NOPERM") == ["ERROR"]
        await asyncio.sleep(60)
        assert node.servers[0].count(b"SSUBSCRIBE", ROOM) == 1
        assert node.subscriptions.health() == (True, "hears 0 channels on 1 connections")


@pytest.mark.parametrize(
    "refusal",
    ["MOVED 1 b:6379", "ASK 1 b:6379", "CLUSTERDOWN Hash slot not served", "LOADING", "MASTERDOWN", "READONLY",
     "TRYAGAIN", "BUSY Redis is busy running a script"],
)  # fmt: skip
@in_virtual_time
async def test_a_refusal_that_passes_is_met_by_looking_again_and_nobody_is_told(
    refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.refusals[ROOM] = refusal
        subscribing = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(2)
        assert not subscribing.done()
        assert 3 <= server.count(b"SSUBSCRIBE", ROOM) <= 7
        server.refusals.clear()
        await subscribing
        assert levels(caplog, "refused") == []
        assert node.restored == []


@in_virtual_time
async def test_a_channel_that_stood_and_is_refused_stays_wanted_and_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        server.refusals[ROOM] = "NOPERM this user has no permissions any more"
        server.cut()
        await asyncio.sleep(10)
        assert "1 subscriptions are missing" in node.trouble
        assert levels(caplog, "no permissions any more")[0] == "ERROR"
        server.refusals.clear()
        await asyncio.sleep(2)
        assert node.restored == [ROOM]
        assert node.is_healthy
        assert node.subscriptions.losses == 1


@in_virtual_time
async def test_a_channel_that_is_taken_back_without_a_word_is_no_refusal(caplog: pytest.LogCaptureFixture) -> None:
    async with hearing() as node:
        await node.subscriptions.subscribe(ROOM)
        node.servers[0].take_back(ROOM)
        await asyncio.sleep(2)
        assert node.restored == [ROOM]
        assert levels(caplog, "refused") == []
        assert node.subscriptions.losses == 1


@in_virtual_time
async def test_a_channel_that_no_server_owns_waits_until_one_does() -> None:
    async with hearing() as node:
        node.topology.places[ROOM] = None
        subscribing = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(2)
        assert not subscribing.done()
        assert len(node.topology.looks) >= 3  # it looks again by itself
        del node.topology.places[ROOM]
        await subscribing
        assert now() < 4
        assert node.servers[0].has(ROOM)
        assert node.restored == []


@in_virtual_time
async def test_a_channel_of_a_server_that_is_not_known_yet_is_placed_when_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with hearing(2) as node:
        late = PlayedServer("late")
        listen(*late.address, late.accept)
        node.topology.places[ROOM] = late
        subscribing = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(2)
        assert levels(caplog, "Placing subscriptions") == []

        async def learn() -> None:
            node.topology.servers = [*node.servers, late]

        node.topology.on_refresh = learn
        await subscribing
        assert late.has(ROOM)
        assert not node.servers[0].has(ROOM)
        assert node.servers[0].count(b"SSUBSCRIBE", ROOM) == 0


@in_virtual_time
async def test_an_unsubscribe_ends_it_for_all_and_fails_who_still_waits() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        await node.subscriptions.subscribe(ROOM)
        node.subscriptions.unsubscribe(ROOM)
        node.subscriptions.unsubscribe(ROOM)
        node.subscriptions.unsubscribe(b"never heard of")
        await asyncio.sleep(BRIEF)
        assert server.count(b"SUNSUBSCRIBE") == 1
        server.mute.add(b"other")
        waiting = [asyncio.create_task(node.subscriptions.subscribe(b"other")) for _ in range(2)]
        await asyncio.sleep(BRIEF)
        node.subscriptions.unsubscribe(b"other")
        for one in waiting:
            with pytest.raises(BackendError, match=r"^It was unsubscribed from meanwhile\.$"):
                await one
        assert node.subscriptions.health() == (True, "hears 0 channels on 1 connections")


@in_virtual_time
async def test_a_channel_that_waits_for_a_place_and_is_given_up_is_never_asked_for() -> None:
    async with hearing() as node:
        node.topology.places[ROOM] = None
        waiting = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await asyncio.sleep(BRIEF)
        node.subscriptions.unsubscribe(ROOM)
        with pytest.raises(BackendError, match="unsubscribed"):
            await waiting
        del node.topology.places[ROOM]
        await asyncio.sleep(20)
        assert node.servers[0].count(b"SSUBSCRIBE", ROOM) == 0


# Restored


@in_virtual_time
async def test_what_stands_again_is_told_once_and_what_stands_for_the_first_time_is_not() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        server.mute.add(b"new")
        first_time = asyncio.create_task(node.subscriptions.subscribe(b"new"))
        await asyncio.sleep(BRIEF)
        server.mute.clear()
        server.cut()
        await first_time
        await asyncio.sleep(2)
        assert node.restored == [ROOM]
        assert node.subscriptions.losses == 1
        server.cut()
        await asyncio.sleep(2)
        assert sorted(node.restored) == [b"new", ROOM, ROOM]
        assert node.subscriptions.losses == 3


@in_virtual_time
async def test_channels_that_stand_again_together_are_told_together() -> None:
    async with hearing() as node:
        calls: list[list[bytes]] = []
        node.on_restored = lambda channels: calls.append(sorted(channels))
        for channel in (b"a", b"b", b"c"):
            await node.subscriptions.subscribe(channel)
        node.servers[0].mute |= {b"a", b"b", b"c"}
        node.servers[0].cut()
        await asyncio.sleep(1)
        link = node.servers[0].link
        link.channels |= {b"a", b"b", b"c"}
        link.say(*(resp(b"ssubscribe", channel, 1) for channel in (b"a", b"b", b"c")))
        await asyncio.sleep(BRIEF)
        assert calls == [[b"a", b"b", b"c"]]


@in_virtual_time
async def test_a_catch_up_that_fails_is_logged_and_the_channel_stands(caplog: pytest.LogCaptureFixture) -> None:
    async with hearing() as node:

        def fail(channels: Sequence[bytes]) -> None:
            raise RuntimeError("a bug in catching up")

        node.on_restored = fail
        await node.subscriptions.subscribe(ROOM)
        node.servers[0].cut()
        await asyncio.sleep(2)
        assert levels(caplog, "Catching up with 1 restored subscriptions failed") == ["ERROR"]
        assert node.is_healthy
        await node.publish(ROOM, b"x")
        await turns(lambda: node.heard == [(ROOM, b"x")])
        assert node.servers[0].accepted == 2


@in_virtual_time
async def test_a_channel_that_was_given_up_while_the_link_was_lost_does_not_come_back() -> None:
    async with hearing() as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(ROOM)
        server.is_down = True
        server.cut()
        await asyncio.sleep(1)
        node.subscriptions.unsubscribe(ROOM)
        server.is_down = False
        await asyncio.sleep(5)
        assert node.restored == []
        assert server.count(b"SSUBSCRIBE", ROOM) == 1
        assert node.is_healthy


# Health


async def missing_for(node: PlayedNode, *channels: bytes, seconds: float) -> list[asyncio.Task[None]]:
    """Callers that wait for channels that no server owns."""
    waiting = []
    for channel in channels:
        node.topology.places[channel] = None
        waiting.append(asyncio.create_task(node.subscriptions.subscribe(channel)))
        await asyncio.sleep(seconds)
    return waiting


@in_virtual_time
async def test_a_channel_that_is_missing_for_a_second_is_no_trouble_and_for_longer_it_is() -> None:
    async with hearing() as node:
        waiting = await missing_for(node, ROOM, seconds=0.99)
        assert node.is_healthy
        await asyncio.sleep(0.02)
        assert node.trouble == "1 subscriptions are missing, one for 1.0 s"
        for one in waiting:
            one.cancel()


@in_virtual_time
async def test_of_several_that_are_missing_the_oldest_counts() -> None:
    async with hearing() as node:
        waiting = await missing_for(node, b"a", b"b", b"c", seconds=0.5)
        assert node.trouble == "3 subscriptions are missing, one for 1.5 s"
        node.subscriptions.unsubscribe(b"a")
        assert node.trouble == "2 subscriptions are missing, one for 1.0 s"
        node.subscriptions.unsubscribe(b"b")
        assert node.is_healthy
        node.subscriptions.unsubscribe(b"c")
        await asyncio.gather(*waiting, return_exceptions=True)


@in_virtual_time
async def test_each_server_that_is_not_heard_is_named() -> None:
    async with hearing(3) as node:
        for server in node.servers[:2]:
            server.is_down = True
            server.cut()
        await asyncio.sleep(10)
        assert node.trouble == (
            "a:6379: a:6379 cannot be reached: connection refused; b:6379: b:6379 cannot be reached: connection refused"
        )


@in_virtual_time
async def test_the_lag_is_what_each_probe_took() -> None:
    async with hearing() as node:
        await asyncio.sleep(15)
        lag = node.subscriptions.lag
        probes = sum(lag.counts)
        assert 9 <= probes <= 11  # one for each interval
        assert lag.sum < BRIEF

        async def slowly(channel: bytes, nonce: bytes) -> None:
            await asyncio.sleep(0.4)
            await node.publish(channel, nonce)

        node.publishing = slowly
        await asyncio.sleep(2)
        assert lag.sum == pytest.approx(0.4, abs=BRIEF)
        assert sum(lag.counts) == probes + 1


@pytest.mark.parametrize("data", [b"", b"x" * 100_000])
@in_virtual_time
async def test_what_is_published_to_a_channel_comes_with_its_channel(data: bytes) -> None:
    async with hearing() as node:
        await node.subscriptions.subscribe(ROOM)
        await node.publish(ROOM, data)
        await turns(lambda: node.heard == [(ROOM, data)])


@in_virtual_time
async def test_reading_waits_for_a_fan_out_that_is_behind() -> None:
    async with hearing() as node:
        await node.subscriptions.subscribe(ROOM)
        gate = asyncio.Event()

        async def wait() -> None:
            await gate.wait()

        node.on_received = lambda _: wait()
        await node.publish(ROOM, b"1")
        await asyncio.sleep(BRIEF)
        node.on_received = lambda _: None
        await node.publish(ROOM, b"2")
        await asyncio.sleep(1)
        assert node.heard == [(ROOM, b"1")]
        gate.set()
        await turns(lambda: node.heard == [(ROOM, b"1"), (ROOM, b"2")])
