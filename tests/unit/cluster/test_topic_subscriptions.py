"""How long a node hears a topic: from the first who wants it until some time after the last."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from socketspec.backend.protocols import HistoryStore
from socketspec.cluster.broker import RedisBroker
from socketspec.cluster.commands.keys import Keys
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Position, Publication, Topic
from tests.node_frames import frame
from tests.virtual_time import in_virtual_time
from tests.watching import turns

KEYS = Keys("p")
ROOM = Topic("/", "room", "lobby")
CHANNEL = KEYS.channel(ROOM)
LINGER = 10.0


class NoHistory(HistoryStore):
    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        raise NotImplementedError


class Links:
    """Notes what is asked of the subscriptions; a subscribe waits for `gate`, and fails with `error`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def subscribe(self, channel: bytes) -> None:
        assert channel == CHANNEL
        self.asked.append("subscribe")
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    def unsubscribe(self, channel: bytes) -> None:
        assert channel == CHANNEL
        self.asked.append("unsubscribe")


class Node:
    def __init__(self, linger: float = LINGER) -> None:
        self.links = Links()
        self.heard: list[str] = []
        self.broker = RedisBroker(cast("Any", None), KEYS, NoHistory(), Tasks(), linger=linger)
        self.broker.connect(cast("Any", self.links))
        self.broker.listeners.attach("/", self._deliver)

    def _deliver(self, topic: Topic, items: Sequence[Publication]) -> None:
        self.heard += [item.event for item in items]

    @property
    def asked(self) -> list[str]:
        """What was asked of the subscriptions since the last look."""
        asked, self.links.asked = self.links.asked, []
        return asked

    def hears(self, event: str) -> bool:
        """Whether a publication that comes in is delivered."""
        self.broker.received([(CHANNEL, frame(Publication(event, b"{}")))])
        return self.heard[-1:] == [event]


@in_virtual_time
async def test_several_who_want_a_topic_share_one_subscription_which_ends_after_the_last() -> None:
    node = Node()
    await node.broker.subscribe(ROOM)
    await node.broker.subscribe(ROOM)
    assert node.asked == ["subscribe"]
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(10 * LINGER)
    assert node.asked == []
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(LINGER - 0.01)
    assert node.asked == []
    assert node.hears("while it lingers")
    await asyncio.sleep(0.02)
    assert node.asked == ["unsubscribe"]
    assert not node.hears("after it")
    await asyncio.sleep(10 * LINGER)
    assert node.asked == []


@in_virtual_time
async def test_a_topic_that_is_left_and_wanted_again_in_time_costs_nothing() -> None:
    node = Node()
    await node.broker.subscribe(ROOM)
    assert node.asked == ["subscribe"]
    for _ in range(3):
        await node.broker.unsubscribe(ROOM)
        await asyncio.sleep(LINGER - 1)
        await node.broker.subscribe(ROOM)
    await asyncio.sleep(10 * LINGER)
    assert node.asked == []
    assert node.hears("still")
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(LINGER - 0.01)
    assert node.asked == []  # the whole time, counted anew
    await asyncio.sleep(0.02)
    assert node.asked == ["unsubscribe"]


@in_virtual_time
async def test_a_topic_that_is_wanted_again_too_late_is_subscribed_to_again() -> None:
    node = Node()
    await node.broker.subscribe(ROOM)
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(LINGER + 1)
    await node.broker.subscribe(ROOM)
    assert node.asked == ["subscribe", "unsubscribe", "subscribe"]
    assert node.hears("again")


@in_virtual_time
async def test_without_lingering_it_ends_at_once() -> None:
    node = Node(linger=0)
    await node.broker.subscribe(ROOM)
    await node.broker.unsubscribe(ROOM)
    await turns(lambda: node.links.asked == ["subscribe", "unsubscribe"])


@in_virtual_time
async def test_one_unsubscribe_too_many_is_none_of_the_next_ones_business() -> None:
    node = Node()
    await node.broker.unsubscribe(ROOM)
    await node.broker.subscribe(ROOM)
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(LINGER / 2)
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(LINGER / 2 + 0.01)
    assert node.asked == ["subscribe", "unsubscribe"]  # counted from the first, and once
    await asyncio.sleep(10 * LINGER)
    assert node.asked == []


@in_virtual_time
async def test_one_unsubscribe_too_many_while_it_lingers_does_not_end_it_under_the_next_ones() -> None:
    node = Node()
    await node.broker.subscribe(ROOM)
    for _ in range(3):
        await node.broker.unsubscribe(ROOM)
        await asyncio.sleep(1)
    for _ in range(2):
        await node.broker.subscribe(ROOM)
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(10 * LINGER)
    assert node.asked == ["subscribe"]
    assert node.hears("somebody is still here")
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(LINGER + 1)
    assert node.asked == ["unsubscribe"]


@in_virtual_time
async def test_whoever_comes_while_the_first_waits_waits_as_well() -> None:
    node = Node()
    node.links.gate.clear()
    callers = [asyncio.create_task(node.broker.subscribe(ROOM)) for _ in range(2)]
    await asyncio.sleep(1)
    assert not any(caller.done() for caller in callers)
    node.links.gate.set()
    await asyncio.gather(*callers)
    await node.broker.subscribe(ROOM)
    assert node.asked == ["subscribe", "subscribe"]


@in_virtual_time
async def test_a_subscribe_that_fails_is_raised_and_undone() -> None:
    node = Node()
    node.links.error = BackendError("refused")
    with pytest.raises(BackendError, match="refused"):
        await node.broker.subscribe(ROOM)
    await asyncio.sleep(LINGER + 1)
    assert node.asked == ["subscribe", "unsubscribe"]
    node.links.error = None
    await node.broker.subscribe(ROOM)
    assert node.asked == ["subscribe"]
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(LINGER + 1)
    assert node.asked == ["unsubscribe"]


@in_virtual_time
async def test_a_subscribe_that_fails_is_tried_again_by_the_next_one() -> None:
    node = Node()
    node.links.error = BackendError("refused")
    with pytest.raises(BackendError, match="refused"):
        await node.broker.subscribe(ROOM)
    node.links.error = None
    await node.broker.subscribe(ROOM)
    await asyncio.sleep(10 * LINGER)
    assert node.asked == ["subscribe", "subscribe"]
    assert node.hears("now")


@in_virtual_time
async def test_a_subscribe_that_is_cancelled_is_undone() -> None:
    node = Node()
    node.links.gate.clear()
    caller = asyncio.create_task(node.broker.subscribe(ROOM))
    await asyncio.sleep(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(LINGER + 1)
    assert node.asked == ["subscribe", "unsubscribe"]


@in_virtual_time
async def test_one_who_fails_does_not_take_the_topic_from_the_others() -> None:
    node = Node()
    node.links.gate.clear()
    patient, impatient = (asyncio.create_task(node.broker.subscribe(ROOM)) for _ in range(2))
    await asyncio.sleep(1)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    node.links.gate.set()
    await patient
    await asyncio.sleep(10 * LINGER)
    assert node.asked == ["subscribe", "subscribe"]
    assert node.hears("still")


@in_virtual_time
async def test_a_closed_broker_forgets_everything_and_asks_for_nothing_more() -> None:
    node = Node()
    await node.broker.subscribe(ROOM)
    await node.broker.unsubscribe(ROOM)
    node.broker.close()
    assert not node.hears("after the end")
    await asyncio.sleep(10 * LINGER)
    assert node.asked == ["subscribe"]
    await node.broker.subscribe(ROOM)
    assert node.asked == ["subscribe"]
    assert node.hears("after a new beginning")
    node.broker.close()
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(10 * LINGER)
    assert node.asked == []


@in_virtual_time
async def test_what_is_closed_and_wanted_again_is_not_given_up_by_what_lingered_before() -> None:
    node = Node()
    await node.broker.subscribe(ROOM)
    await node.broker.unsubscribe(ROOM)
    await asyncio.sleep(LINGER - 1)
    node.broker.close()
    await node.broker.subscribe(ROOM)
    await asyncio.sleep(10 * LINGER)
    assert node.asked == ["subscribe", "subscribe"]
    assert node.hears("still")


@in_virtual_time
async def test_a_broker_that_is_not_started_says_so() -> None:
    broker = RedisBroker(cast("Any", None), KEYS, NoHistory(), Tasks(), linger=LINGER)
    with pytest.raises(BackendError, match=r"^The Redis backend is not started; start the SocketApp first\.$"):
        await broker.subscribe(ROOM)
    broker.close()
