"""Callers of `subscribe` that share a channel: nobody who gives up takes it from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from socketspec.errors import BackendError
from tests.played_redis import PlayedNode, hearing, resp
from tests.virtual_time import in_virtual_time, now
from tests.watching import turns

ROOM = b"room"


async def given_up(caller: asyncio.Task[None]) -> None:
    """Cancel a caller, and let it end."""
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def hears(node: PlayedNode, data: bytes) -> None:
    await node.publish(ROOM, data)
    await turns(lambda: (ROOM, data) in node.heard)


async def waiting_while_it_does_not_stand(node: PlayedNode) -> asyncio.Task[None]:
    """A second caller for `ROOM`, which stood for the first and is lost for now."""
    (server,) = node.servers
    await node.subscriptions.subscribe(ROOM)
    server.mute.add(b"SSUBSCRIBE")
    server.cut()
    await turns(lambda: not node.is_healthy)
    second = asyncio.create_task(node.subscriptions.subscribe(ROOM))
    await asyncio.sleep(0.1)
    assert not second.done()
    server.mute.clear()
    return second


@in_virtual_time
async def test_a_second_caller_that_gives_up_leaves_the_channel_to_the_first() -> None:
    async with hearing() as node:
        second = await waiting_while_it_does_not_stand(node)
        await given_up(second)
        node.servers[0].cut()
        await asyncio.sleep(5)
        assert node.restored == [ROOM]
        await hears(node, b"hello")
        assert node.servers[0].count(b"SUNSUBSCRIBE") == 0


@in_virtual_time
async def test_a_second_caller_whose_time_is_up_leaves_the_channel_to_the_first() -> None:
    async with hearing() as node:
        second = await waiting_while_it_does_not_stand(node)
        node.servers[0].mute.add(ROOM)
        began = now()
        with pytest.raises(BackendError, match=r"'room' was not confirmed within 5 s: .*1 subscriptions are missing"):
            await second
        assert now() - began == pytest.approx(4.9)
        node.servers[0].mute.clear()
        node.servers[0].cut()
        await asyncio.sleep(5)
        await hears(node, b"hello")


@in_virtual_time
async def test_a_second_caller_that_waits_returns_when_the_channel_stands_again() -> None:
    async with hearing() as node:
        second = await waiting_while_it_does_not_stand(node)
        node.servers[0].cut()
        await second
        assert node.servers[0].has(ROOM)


@in_virtual_time
async def test_a_caller_who_was_told_that_it_stands_keeps_it_from_one_who_gives_up_in_that_moment() -> None:
    """The second comes between the server's answer and the first one's waking up, which then is cancelled."""
    async with hearing() as node:
        (server,) = node.servers
        server.mute.add(ROOM)
        first = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await turns(lambda: server.count(b"SSUBSCRIBE", ROOM))
        second = node.subscriptions.subscribe(ROOM)

        def in_between(_messages: Sequence[tuple[bytes, bytes]]) -> None:
            with pytest.raises(StopIteration):  # it stands: nothing to wait for
                second.send(None)
            first.cancel()

        node.on_received = in_between
        server.link.channels.add(ROOM)
        server.link.say(resp(b"ssubscribe", ROOM, 2), resp(b"smessage", ROOM, b"now"))
        with pytest.raises(asyncio.CancelledError):
            await first
        node.on_received = lambda _: None
        await hears(node, b"later")
        await asyncio.sleep(1)
        assert server.count(b"SUNSUBSCRIBE") == 0


@in_virtual_time
async def test_a_caller_that_gives_up_leaves_the_channel_to_those_who_still_wait() -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.mute.add(ROOM)
        callers = [asyncio.create_task(node.subscriptions.subscribe(ROOM)) for _ in range(3)]
        await turns(lambda: server.count(b"SSUBSCRIBE", ROOM))
        await given_up(callers.pop(0))
        await given_up(callers.pop())
        server.confirm(server.link, b"SSUBSCRIBE", ROOM)
        await callers[0]
        await hears(node, b"hello")


@in_virtual_time
async def test_the_last_caller_to_give_up_takes_the_channel_along() -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.mute.add(ROOM)
        callers = [asyncio.create_task(node.subscriptions.subscribe(ROOM)) for _ in range(2)]
        await turns(lambda: server.count(b"SSUBSCRIBE", ROOM))
        for caller in callers:
            await given_up(caller)
        server.mute.clear()
        server.confirm(server.link, b"SSUBSCRIBE", ROOM)
        await asyncio.sleep(1)
        assert not server.has(ROOM)
        assert node.subscriptions.health() == (True, "hears 0 channels on 1 connections")


@in_virtual_time
async def test_one_that_gives_up_after_it_was_unsubscribed_does_not_touch_who_came_next() -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.mute.add(ROOM)
        first = asyncio.create_task(node.subscriptions.subscribe(ROOM))
        await turns(lambda: server.count(b"SSUBSCRIBE", ROOM))

        async def begin_anew() -> None:
            node.subscriptions.unsubscribe(ROOM)
            await node.subscriptions.subscribe(ROOM)

        next_one = asyncio.create_task(begin_anew())
        with pytest.raises(BackendError, match="unsubscribed from meanwhile"):
            await first
        server.mute.clear()
        server.confirm(server.link, b"SSUBSCRIBE", ROOM)
        await next_one
        await hears(node, b"hello")


@in_virtual_time
async def test_one_that_gives_up_while_it_is_unsubscribed_does_not_keep_the_others_waiting() -> None:
    async with hearing() as node:
        (server,) = node.servers
        server.mute.add(ROOM)
        callers = [asyncio.create_task(node.subscriptions.subscribe(ROOM)) for _ in range(3)]
        await turns(lambda: server.count(b"SSUBSCRIBE", ROOM))
        for caller in callers[:2]:
            caller.cancel()
        node.subscriptions.unsubscribe(ROOM)
        with pytest.raises(BackendError, match="unsubscribed from meanwhile"):
            await callers[2]
        for caller in callers[:2]:
            with pytest.raises(asyncio.CancelledError):
                await caller
