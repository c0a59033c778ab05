"""Which channels a node hears, on which server: placing, losing, finding again, and what health says of it.

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
from socketspec.errors import BackendError
from tests.played_redis import OPTIONS, PlayedNode, PlayedServer, hearing, resp
from tests.virtual_time import in_virtual_time, listen, now
from tests.watching import turns

ROOM = b"room"
LOOK_EVERY = 4.0
"""Seconds after which the servers are looked up even though nothing seems wrong."""
BRIEF = 0.01
"""Seconds in which everything that needs no pause has happened."""


def levels(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """The levels of the log records that hold `text`."""
    return [record.levelname for record in caplog.records if text in record.getMessage()]


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
