"""Who is where after faults: Redis away for longer than a lease, commands that come late, nodes that freeze."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from socketspec.errors import BackendError
from tests.cluster.nodes import Nodes, ask, eventually_async, nodes
from tests.cluster.test_presence import KEYS, LEASE, ROOM, ROOMS, enter_all, flushed, member, node, until
from tests.servers import Proxy, Server

__all__ = ("flushed",)

SHORT = {"backend": {"lease": 2.0, "command_timeout": 2.0}}


async def left(two: Nodes) -> Counter[tuple[str, str]]:
    """How often the leave hooks ran, on any node, by connection and room."""
    entries = [entry for number in range(2) for entry in await two.get(number, "/left")]
    return Counter((entry[0], entry[2]) for entry in entries)


async def test_when_redis_was_away_for_longer_than_a_lease_nobody_is_taken_for_dead(
    server: Server, tmp_path: Path
) -> None:
    with (
        Proxy(server.port) as one,
        Proxy(server.port) as other,
        nodes(tmp_path, [one.url, other.url], SHORT) as two,
    ):
        async with two.client(0, "room") as a, two.client(1, "room") as b:
            await asyncio.sleep(2.5)  # each might judge the other by now
            one.refuse()
            other.refuse()
            await asyncio.sleep(3.0)
            one.pass_on()
            await asyncio.sleep(1.0)  # the other node comes back later
            other.pass_on()

            async def count(of: Any = a) -> object:
                return await ask(of, "count", {"room": "room"})

            await eventually_async(count, {"count": 2}, 10, "both are present")
            await asyncio.sleep(2.5)
            assert await count(b) == {"count": 2}
            assert await left(two) == {}

        async def both_left() -> list[int]:
            return list((await left(two)).values())

        await eventually_async(both_left, [1, 1], 5, "each has left once")
        await asyncio.sleep(2.5)
        assert await both_left() == [1, 1]


async def test_a_frozen_node_gives_its_places_to_others_and_tells_nothing_twice(server: Server, tmp_path: Path) -> None:
    with nodes(tmp_path, [server.url] * 2, SHORT) as two:
        async with two.client(1, "small", "room") as a, two.client(1, "small") as b:
            await asyncio.sleep(2.5)
            two[1].process.send_signal(signal.SIGSTOP)

            async def told() -> list[str]:
                return sorted(entry[2] for entry in await two.get(0, "/left"))

            await eventually_async(told, ["room", "small", "small"], 8, "they are taken for dead")
            async with two.client(0, "small") as c, two.client(0, "small"):
                two[1].process.send_signal(signal.SIGCONT)
                for client in (a, b):
                    assert await client.closed(8) == (1012, "place_lost")
                for _ in range(20):
                    assert await ask(c, "count", {"room": "small"}) == {"count": 2}
                    await asyncio.sleep(0.05)
                assert await two.get(1, "/left") == []
                assert await told() == ["room", "small", "small"]


async def test_where_there_is_room_the_members_of_a_frozen_node_are_back_and_leave_once(
    server: Server, tmp_path: Path
) -> None:
    with nodes(tmp_path, [server.url] * 2, SHORT) as two:
        async with two.client(0, "room") as c:
            async with two.client(1, "room", "small") as a, two.client(1, "room") as gone:
                await asyncio.sleep(2.5)
                two[1].process.send_signal(signal.SIGSTOP)

                async def told() -> int:
                    return len(await two.get(0, "/left"))

                await eventually_async(told, 3, 8, "they are taken for dead")
                gone.connection.transport.abort()  # the frozen node learns of it when it wakes
                two[1].process.send_signal(signal.SIGCONT)

                async def count() -> object:
                    return await ask(c, "count", {"room": "room"})

                await eventually_async(count, {"count": 2}, 8, "who is still connected is back")
                assert await ask(a, "echo", {"n": 1}) == {"n": 1}
                assert await ask(a, "count", {"room": "small"}) == {"count": 1}
            await eventually_async(count, {"count": 1}, 8, "they have left")
        await asyncio.sleep(0.5)
        assert set((await left(two)).values()) == {1}


async def test_a_node_that_was_frozen_and_dies_later_has_nobody_told_twice_and_everybody_once(
    server: Server, tmp_path: Path
) -> None:
    """Who was put back was told when the node was taken for dead; not so who came since, or left and came back."""
    with nodes(tmp_path, [server.url] * 2, SHORT) as two:
        async with (
            two.client(0, "room") as c,
            two.client(1, "room", "small") as stays,
            two.client(1, "room") as returns,
            two.client(1) as comes,
        ):
            await asyncio.sleep(2.5)
            two[1].process.send_signal(signal.SIGSTOP)

            async def told() -> int:
                return len(await two.get(0, "/left"))

            async def count() -> object:
                return await ask(c, "count", {"room": "room"})

            await eventually_async(told, 3, 8, "they are taken for dead")
            two[1].process.send_signal(signal.SIGCONT)
            await eventually_async(count, {"count": 3}, 8, "both are back")
            await comes.call("join", {"room": "room"})
            await returns.call("leave", {"room": "room"})
            await returns.call("join", {"room": "room"})
            assert await ask(stays, "count", {"room": "room"}) == {"count": 4}
            assert await two.get(1, "/left") == []
            two[1].kill()
            await eventually_async(count, {"count": 1}, 8, "they are buried")
            await eventually_async(told, 5, 8, "two more are told")
            await asyncio.sleep(2.5)
            by_room = Counter((connection, room) for connection, _, room, _ in await two.get(0, "/left"))
            assert sorted(by_room.values()) == [1, 1, 1, 2]
            assert [room for (_, room), times in by_room.items() if times == 2] == ["room"]


async def test_a_join_that_comes_late_leaves_no_ghost_and_takes_no_place(flushed: Server) -> None:
    with Proxy(flushed.port) as proxy:
        async with node(flushed.url, "n0") as one, node(proxy.url, "n1", lease=8.0, command_timeout=0.5) as other:
            await enter_all(other, [ROOM], "b")
            proxy.black_hole("up")
            with pytest.raises(BackendError, match="unknown"):
                await other.presence.enter(ROOM, member("late"), limit=3)
            proxy.pass_on()
            for _ in range(50):
                assert await one.inside(ROOM) == ["b"]
                await asyncio.sleep(0.02)
            assert await one.presence.enter(ROOM, member("a"), limit=2)


async def test_a_leave_that_comes_late_removes_nobody(flushed: Server) -> None:
    with Proxy(flushed.port) as proxy:
        async with node(flushed.url, "n0") as one, node(proxy.url, "n1", lease=8.0, command_timeout=0.5) as other:
            await enter_all(other, [ROOM, *ROOMS], "b", "c")
            proxy.black_hole("up")
            await asyncio.gather(*(other.presence.leave(room, "b") for room in (ROOM, *ROOMS)))
            proxy.refuse()  # what is on its way stays there
            proxy.pass_on()
            assert await other.presence.count(ROOM) > 0  # Redis is back
            await enter_all(other, [ROOM, *ROOMS], "b")
            for _ in range(50):
                for room in (ROOM, *ROOMS):
                    assert "b" in await one.inside(room)
                await asyncio.sleep(0.02)
            index = flushed.ask("SMEMBERS", KEYS.node_topics("/", "n1-0"))
            assert len(index) == 4


async def test_who_was_told_when_a_reaper_stopped_in_the_midst_is_told_by_the_next(flushed: Server) -> None:
    begun = asyncio.Event()
    async with node(flushed.url, "next") as successor, node(flushed.url, "dead") as dead:
        successor.runner.freeze()
        await enter_all(dead, ROOMS, "x")
        async with node(flushed.url, "reaper") as reaper:

            async def never() -> None:
                begun.set()
                await asyncio.Event().wait()

            reaper.hooks = never
            dead.runner.freeze()
            await asyncio.wait_for(begun.wait(), 3 * LEASE)
            assert [await reaper.presence.count(room) for room in ROOMS] == [0, 0, 0]
            await asyncio.sleep(LEASE * 1.5)  # the claim is renewed while hooks run
        successor.runner.wake()
        await until(lambda: len(successor.told) == 3, "the next one tells them", 4 * LEASE)
        assert successor.lost_by_topic == {room: ["x"] for room in ROOMS}


async def test_a_node_that_stops_while_redis_is_away_has_nobody_told_twice(server: Server, tmp_path: Path) -> None:
    """It has run the leave hooks, and stays until Redis knows: else another node would bury it and run them again."""
    options = {"backend": {"lease": 5.0, "command_timeout": 2.0}, "drain_window": 0, "drain_grace": 0.5}
    with nodes(tmp_path, [server.url] * 2, options) as two:
        async with two.client(0, "room") as stays, two.client(1, "room"), two.client(1, "room"):
            server.stop_for()
            await asyncio.sleep(0.2)
            two[1].begin_stop()
            await asyncio.sleep(4.3)
            server.cont()
            await asyncio.to_thread(two[1].process.wait, 10)

            async def count() -> object:
                return await ask(stays, "count", {"room": "room"})

            await eventually_async(count, {"count": 1}, 3, "they are gone with their node, before its lease ends")
            assert len(server.ask("ZRANGE", "socketspec:{nodes:%2F}:leases", 0, -1)) == 1
            assert await two.get(0, "/left") == []
