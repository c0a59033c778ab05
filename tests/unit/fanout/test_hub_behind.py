"""The hub asks whoever delivers to wait while a topic's fan-out is behind."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from socketspec.backend.memory import MemoryBackend
from socketspec.concurrency.tasks import Tasks
from socketspec.fanout.channel import MESSAGES_A_WRITE, MESSAGES_BEHIND
from socketspec.fanout.hub import PENDING_WRITES, WRITES_A_TURN, Hub
from socketspec.protocol.encoding import Write
from socketspec.protocol.publications import Publication, Topic
from socketspec.telemetry.counters import Counters

TOPIC = Topic("/", "room", "hall")
OTHER = Topic("/", "room", "corner")


def add(hub: Hub, topic: Topic, member: Any, write: Write | None = None) -> None:
    hub.add(topic, member.id, write or member.transport.write)


def remove(hub: Hub, topic: Topic, member: Any) -> None:
    """The member leaves; one that is lost is not written to any more."""
    hub.remove(topic, member.id, write_rest=member.is_open)


async def hub_with(members: int) -> tuple[Hub, list[int]]:
    hub = Hub(MemoryBackend().broker, Tasks(), Counters())
    written = [0]

    def write(*messages: Any) -> None:
        written[0] += len(messages)

    for number in range(members):
        await hub.acquire(TOPIC)
        conn = SimpleNamespace(id=str(number), transport=SimpleNamespace(write=write))
        add(hub, TOPIC, conn)
    return hub, written


def burst(count: int) -> list[Publication]:
    return [Publication(event="x", payload=b"{}")] * count


@pytest.mark.parametrize("members", [1, WRITES_A_TURN // 10])
async def test_a_long_queue_gives_something_to_await_until_it_has_been_written(members: int) -> None:
    hub, written = await hub_with(members)
    assert hub.deliver(TOPIC, burst(MESSAGES_BEHIND - 1)) is None
    behind = hub.deliver(TOPIC, burst(1))
    assert behind is not None
    await asyncio.wait_for(behind, 5)
    assert written[0] == members * MESSAGES_BEHIND
    assert hub.deliver(TOPIC, burst(1)) is None, "it is not behind any more"


async def test_one_that_stops_waiting_does_not_end_the_waiting_of_others() -> None:
    hub, written = await hub_with(WRITES_A_TURN)
    one, two = hub.deliver(TOPIC, burst(MESSAGES_BEHIND)), hub.deliver(TOPIC, burst(1))
    assert one is not None
    assert two is not None
    asyncio.ensure_future(one).cancel()
    await asyncio.wait_for(two, 5)
    assert written[0] == WRITES_A_TURN * (MESSAGES_BEHIND + 1)


async def test_a_topic_that_everybody_has_left_is_not_behind() -> None:
    hub, _ = await hub_with(1)
    behind = hub.deliver(TOPIC, burst(MESSAGES_BEHIND))
    remove(hub, TOPIC, SimpleNamespace(id="0", is_open=True))
    await hub.release(TOPIC)
    assert behind is not None
    await asyncio.wait_for(behind, 5)
    assert hub.deliver(TOPIC, burst(MESSAGES_BEHIND)) is None


async def test_who_publishes_to_a_topic_without_members_lets_the_loop_turn_while_much_waits_for_others() -> None:
    hub, _ = await hub_with(WRITES_A_TURN)
    hub.deliver(TOPIC, burst(PENDING_WRITES // WRITES_A_TURN))
    turned: list[bool] = []
    asyncio.get_running_loop().call_soon(turned.append, True)
    await hub.breathe(OTHER)
    assert turned == [True]


async def test_a_publisher_does_not_wait_for_a_long_queue_whose_turn_has_not_come() -> None:
    hub, written = await hub_with(WRITES_A_TURN)
    got: list[int] = []
    await hub.acquire(OTHER)
    hub.add(OTHER, "somebody", lambda *messages: got.append(len(messages)))
    hub.deliver(TOPIC, burst(1))  # as many writes as one turn allows
    hub.deliver(OTHER, burst(MESSAGES_A_WRITE))
    await hub.breathe(OTHER)
    assert (written, got) == ([WRITES_A_TURN], [])
    await asyncio.sleep(0)
    assert got == [MESSAGES_A_WRITE]
