"""A primary dies and its replica takes over, under real node processes: clients stay, and what they do works again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from socketspec.cluster.commands.keys import Keys
from socketspec.protocol.publications import Topic
from tests.cluster.nodes import Nodes, ask, eventually_async, nodes
from tests.cluster.test_redis_trouble import COMMAND_TIMEOUT, ROOMS, Scene, scene, still_here, works
from tests.servers import Cluster, Sentinels, Server
from tests.support import Client

WITHIN = 12.0
"""Seconds from the death of a primary until all works again: a second or two until it is called dead, as long for the
election, a few until the nodes have found its successor and heard themselves there."""
TALK = ("talk", "log:talk")
"""Rooms that are talked in all the time; the second has history."""


class Talk:
    """Somebody on node 0 who talks all the time, and somebody on node 1 who listens to it."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[int]] = {room: [] for room in TALK}
        self.heard: dict[str, list[int]] = {room: [] for room in TALK}
        self.failed = 0
        self.number = 0

    async def speak(self, client: Client) -> None:
        while True:
            self.number += 1
            for room in TALK:
                outcome = await ask(client, "say", {"room": room, "n": self.number}, COMMAND_TIMEOUT + 2)
                if isinstance(outcome, dict):
                    self.acknowledged[room].append(self.number)
                else:
                    self.failed += 1
            await asyncio.sleep(0.02)

    async def listen(self, client: Client) -> None:
        while True:
            said = (await client.receive(60))["payload"]
            self.heard[said["room"]].append(said["n"])

    async def goes_on(self) -> None:
        """Return when ten more have been acknowledged in each room, and all of those heard."""
        await asyncio.gather(*map(self._goes_on_in, TALK))

    async def _goes_on_in(self, room: str) -> None:
        first, acknowledged = self.number + 1, self.acknowledged[room]

        async def ten_more() -> bool:
            return len([n for n in acknowledged if n > first]) >= 10

        await eventually_async(ten_more, True, 8, f"more is said in {room}")
        new = {n for n in acknowledged if n > first}

        async def heard() -> bool:
            return new <= set(self.heard[room])

        await eventually_async(heard, True, 8, f"what is said in {room} is heard")

    def assert_nothing_twice(self) -> None:
        """Nothing was heard twice, or before what was said earlier."""
        for room in TALK:
            assert self.heard[room] == sorted(set(self.heard[room])), room


@asynccontextmanager
async def talking(nodes: Nodes) -> AsyncIterator[Talk]:
    async with nodes.client(0) as speaker, nodes.client(1, *TALK) as listener:
        talk = Talk()
        tasks = [asyncio.create_task(talk.speak(speaker)), asyncio.create_task(talk.listen(listener))]
        try:
            await talk.goes_on()
            yield talk
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended


async def newcomers_meet(nodes: Nodes) -> None:
    """Who joins now is counted and heard on the other node."""
    async with nodes.client(0, "fresh") as one, nodes.client(1, "fresh") as other:
        assert await ask(one, "count", {"room": "fresh"}) == {"count": 2}
        await ask(other, "say", {"room": "fresh", "n": 1})
        while (message := await one.receive(5))["event"] != "said":
            pass
        assert message["payload"]["n"] == 1


async def survives_the_death_of(primary: Server, s: Scene) -> None:
    """Kill `primary` and see all of it come back, while people talk."""
    async with talking(s.nodes) as talk:
        began = time.monotonic()
        primary.kill()
        await asyncio.gather(*(s.nodes.until_ready(number, False, 5) for number in range(2)))
        await still_here(s)
        await asyncio.gather(*(s.nodes.until_ready(number, True, WITHIN) for number in range(2)))
        await newcomers_meet(s.nodes)
        await talk.goes_on()
        assert time.monotonic() - began < WITHIN
        await works(s)
        talk.assert_nothing_twice()
    assert not primary.is_running


@pytest.mark.slow
async def test_two_nodes_survive_the_death_of_a_primary_under_sentinel(
    healthy_sentinels: Sentinels, tmp_path: Path
) -> None:
    primary = healthy_sentinels.primary
    async with scene(primary, tmp_path, [healthy_sentinels.url] * 2) as s:
        await survives_the_death_of(primary, s)
    assert healthy_sentinels.primary is not primary


@pytest.mark.slow
async def test_two_nodes_survive_the_death_of_one_primary_of_a_cluster(
    healthy_cluster: Cluster, tmp_path: Path
) -> None:
    primary = healthy_cluster.owner_of(Keys().nodes(Topic("/", "room", ROOMS[0])))
    async with scene(primary, tmp_path, [healthy_cluster.url] * 2) as s:
        await survives_the_death_of(primary, s)
    assert primary not in healthy_cluster.primaries


JSON = ("socketspec.v1.json",)


async def _hear(client: Client, wanted: set[str]) -> list[str]:
    """What comes until all of `wanted` has: what was said, and the reasons of what may be missing."""
    heard: list[str] = []
    while not wanted <= set(heard):
        message = await client.receive(WITHIN)
        if message["event"] == "said":
            heard.append(message["payload"]["n"])
        elif message["event"] == "__resume__":
            heard.append(message["payload"]["rooms"]["log:tail"].get("reason", "recovered"))
    return heard


@pytest.mark.slow
async def test_members_are_told_where_a_failover_has_lost_the_newest_of_what_they_heard(
    healthy_sentinels: Sentinels, tmp_path: Path
) -> None:
    """The replica has not heard the last three when it takes over: their offsets are given to others."""
    primary, replica = healthy_sentinels.primary, healthy_sentinels.replica
    with nodes(tmp_path, [healthy_sentinels.url] * 2) as two:
        async with (
            two.client(0, subprotocols=JSON) as speaker,
            two.client(1, subprotocols=JSON) as stays,
            two.client(1, subprotocols=JSON) as away,
            two.client(1, subprotocols=JSON) as returns,
        ):
            for client in (speaker, stays, away, returns):
                assert (await client.receive(5))["event"] == "__connect__"
            for client in (speaker, stays, away):
                await client.call("join", {"room": "log:tail"})

            async def say(*words: str) -> None:
                for word in words:
                    assert isinstance(await ask(speaker, "say", {"room": "log:tail", "n": word}), dict)

            await say("a1", "a2", "a3")
            assert primary.ask("WAIT", "1", "5000") == 1
            replica.stop_for()
            primary.ask("CLIENT", "KILL", "TYPE", "replica")  # else what it has not read yet waits for it
            await say("a4", "a5", "a6")
            assert await _hear(stays, {"a6"}) == [f"a{number}" for number in range(1, 7)]
            last: dict[str, object] = {}
            while last.get("payload") != {"room": "log:tail", "n": "a6"}:
                last = await away.receive(WITHIN)
            position = {name: last[name] for name in ("offset", "epoch", "tag")}
            await returns.send("__resume__", {"rooms": {"log:tail": position}})
            assert (await returns.receive(WITHIN))["payload"]["rooms"]["log:tail"]["recovered"] is True
            primary.kill()
            replica.cont()
            await asyncio.to_thread(healthy_sentinels.wait_failover, primary)
            await asyncio.gather(*(two.until_ready(number, True, WITHIN) for number in range(2)))
            await say("b4", "b5", "b6", "b7")
            for client in (stays, returns):
                assert await _hear(client, {"b7"}) == ["history_lost", "b4", "b5", "b6", "b7"]
