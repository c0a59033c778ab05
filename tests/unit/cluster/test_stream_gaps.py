"""A gap in a running stream: how a node notices that publications of a topic with history are missing, and catches up.

The node is a `RedisBroker`; what Redis would send it comes in as frames, and what Redis keeps is a list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, cast

import pytest

from socketspec.backend.protocols import HistoryStore
from socketspec.cluster.broker import RedisBroker
from socketspec.cluster.commands.keys import Keys
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import Position, Publication, Topic
from tests.node_frames import frame, payload
from tests.watching import turns, until

KEYS = Keys("p")
LOG = Topic("/", "room", "log")
OTHER = Topic("/", "room", "other")
CATCH_UPS = 8
"""Histories read at once after a loss."""
MAX_HELD = 10_000
"""Live publications of one topic that wait while its history is read."""
MAX_HELD_BYTES = 32 * 2**20
TOLD = "__resume__"
"""The event that tells members that something may be missing."""


def at(offset: int, epoch: str = "one") -> Position:
    return Position(offset, epoch, f"tag{offset}")


def kept(offset: int, epoch: str = "one") -> Publication:
    return Publication(f"{epoch}:{offset}", b"{}", position=at(offset, epoch))


def plain(event: str) -> Publication:
    return Publication(event, b"{}")


def kept_range(first: int, last: int, epoch: str = "one") -> list[Publication]:
    return [kept(offset, epoch) for offset in range(first, last + 1)]


def events(first: int, last: int, epoch: str = "one") -> list[str]:
    return [f"{epoch}:{offset}" for offset in range(first, last + 1)]


def forked(first: int, last: int) -> list[Publication]:
    """What stands at these offsets where a failover lost what stood there before."""
    return [
        Publication(f"other:{offset}", b"{}", position=Position(offset, "one", f"other{offset}"))
        for offset in range(first, last + 1)
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A history that cannot be read is given up at once."""
    monkeypatch.setattr("socketspec.cluster.broker.PATIENCE", 0.0)


class Shelf(HistoryStore):
    """What Redis keeps; a read waits while `gate` is closed, fails with `error`, and verifies as Redis does."""

    def __init__(self) -> None:
        self.kept: dict[Topic, list[Publication]] = {}
        self.later: dict[Topic, list[Publication]] = {}
        """What is kept after the next read."""
        self.error: Exception | None = None
        self.asked: list[tuple[Topic, Position | None]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = 0
        self.most_under_way = 0

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        self.asked.append((topic, since))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        if self.error is not None:
            raise self.error
        is_kept, found = topic in self.kept, self.kept.get(topic, [])
        if topic in self.later:
            self.kept[topic] = self.later.pop(topic)
        if since is None or not is_kept:
            return found if limit is None else found[-limit:]
        positions = [item.position for item in found]
        if since not in positions:
            raise LookupError(f"{topic.name!r} has begun a new history since that position")
        return found[positions.index(since) + 1 :]


class Subscribed:
    """Subscriptions where everything stands at once."""

    async def subscribe(self, channel: bytes) -> None: ...

    def unsubscribe(self, channel: bytes) -> None: ...


class Node:
    """A broker that is subscribed to `LOG`, what it reads, and what it delivered."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.tasks = Tasks()
        self.heard: list[str] = []
        self.behind: Awaitable[None] | None = None
        self.broker = RedisBroker(cast("Any", None), KEYS, self.shelf, self.tasks, linger=0)
        self.broker.connect(cast("Any", Subscribed()))
        self.broker.listeners.attach("/", self._deliver)

    @classmethod
    async def hearing(cls, *items: Publication) -> Node:
        """A node that has heard `items` already."""
        node = cls()
        await node.broker.subscribe(LOG)
        node.hears(*items)
        assert node.heard == [item.event for item in items]
        return node

    def _deliver(self, topic: Topic, items: Sequence[Publication]) -> Awaitable[None] | None:
        self.heard += [item.event for item in items]
        return self.behind

    def hears(self, *items: Publication, topic: Topic = LOG) -> Awaitable[None] | None:
        """What one read of the link brings."""
        channel = KEYS.channel(topic)
        return self.broker.received([(channel, frame(item)) for item in items])

    async def settled(self) -> None:
        """Let every catch-up end."""
        await turns(lambda: len(self.tasks) == 0)


# What is no gap


async def test_what_follows_is_delivered_at_once_and_costs_no_read() -> None:
    node = await Node.hearing(kept(7))
    node.hears(kept(8), kept(9))
    node.hears(kept(10))
    assert node.heard == events(7, 10)
    await node.settled()
    assert node.shelf.asked == []


async def test_the_first_publication_heard_is_where_the_stream_begins_for_this_node() -> None:
    node = await Node.hearing(kept(1000))
    await node.settled()
    assert node.shelf.asked == []


async def test_publications_without_a_position_are_no_gap() -> None:
    node = await Node.hearing(kept(1), plain("a"))
    node.hears(plain("b"), kept(2), plain("c"), kept(3))
    assert node.heard == ["one:1", "a", "b", "one:2", "c", "one:3"]
    await node.settled()
    assert node.shelf.asked == []


# A gap


async def test_a_gap_is_filled_from_the_history_before_what_came_after_it() -> None:
    node = await Node.hearing(kept(1), kept(2))
    node.shelf.kept[LOG] = kept_range(1, 6)
    node.hears(kept(6))
    assert node.heard == events(1, 2)
    await node.settled()
    assert node.heard == events(1, 6)
    assert node.shelf.asked == [(LOG, at(2))]


async def test_a_gap_within_one_read_delivers_what_came_before_it_at_once() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.kept[LOG] = kept_range(1, 5)
    node.hears(kept(2), plain("before"), kept(5), plain("after"))
    assert node.heard == ["one:1", "one:2", "before"]
    await node.settled()
    assert node.heard == ["one:1", "one:2", "before", "one:3", "one:4", "one:5", "after"]
    assert node.shelf.asked == [(LOG, at(2))]


async def test_what_came_before_a_gap_is_delivered_first_though_the_history_fails_at_once(impatient: None) -> None:
    node = await Node.hearing(kept(1))
    node.shelf.error = BackendError("10,000 commands wait for Redis already")
    node.hears(kept(2), kept(5))
    await node.settled()
    assert node.heard == ["one:1", "one:2", TOLD, "one:5"]


async def test_one_missing_publication_is_a_gap() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.kept[LOG] = kept_range(1, 3)
    node.hears(kept(3))
    await node.settled()
    assert node.heard == events(1, 3)


async def test_what_comes_in_meanwhile_is_delivered_behind_it_and_nothing_twice() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.gate.clear()
    node.hears(kept(4))
    node.hears(kept(5), plain("x"))
    node.hears(plain("y"))
    node.hears(kept(6))
    node.shelf.kept[LOG] = kept_range(1, 5)  # as it was when Redis read it
    assert node.heard == ["one:1"]
    node.shelf.gate.set()
    await node.settled()
    assert node.heard == [*events(1, 5), "x", "y", "one:6"]
    assert len(node.shelf.asked) == 1


async def test_a_gap_in_what_came_in_meanwhile_is_filled_as_well() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.gate.clear()
    node.hears(kept(4))
    node.hears(kept(7), plain("x"))
    node.shelf.kept[LOG] = kept_range(1, 5)  # as it was when Redis read it
    node.shelf.later[LOG] = kept_range(1, 7)
    node.shelf.gate.set()
    await node.settled()
    assert node.heard == [*events(1, 7), "x"]
    assert [since for _, since in node.shelf.asked] == [at(1), at(5)]


async def test_a_gap_that_the_history_does_not_fill_is_told_of_once_before_what_follows() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.kept[LOG] = kept_range(1, 3)
    node.hears(kept(6), kept(7))
    await node.settled()
    assert node.heard == [*events(1, 3), TOLD, "one:6", "one:7"]


async def test_the_stream_goes_on_where_the_catch_up_ended() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.kept[LOG] = kept_range(1, 4)
    node.hears(kept(3))
    await node.settled()
    assert node.heard == events(1, 4)
    node.hears(kept(4))  # was read already, and arrives live as well
    node.hears(kept(5))
    assert node.heard == events(1, 5)
    await node.settled()
    assert len(node.shelf.asked) == 1


async def test_a_second_gap_is_filled_as_the_first_was() -> None:
    node = await Node.hearing(kept(1))
    for last in (3, 6):
        node.shelf.kept[LOG] = kept_range(1, last)
        node.hears(kept(last))
        await node.settled()
        assert node.heard == events(1, last)
    assert [since for _, since in node.shelf.asked] == [at(1), at(3)]


async def test_what_was_heard_before_is_not_delivered_again() -> None:
    node = await Node.hearing(*kept_range(1, 5))
    node.shelf.kept[LOG] = kept_range(1, 5)
    node.hears(kept(4), kept(5))
    await node.settled()
    assert node.heard == events(1, 5)
    node.hears(kept(6))
    assert node.heard == events(1, 6)


async def test_gaps_of_other_topics_are_their_own() -> None:
    node = await Node.hearing(kept(1))
    await node.broker.subscribe(OTHER)
    node.hears(kept(8), topic=OTHER)
    node.shelf.gate.clear()
    node.hears(kept(5))
    node.hears(kept(9), topic=OTHER)
    assert node.heard == ["one:1", "one:8", "one:9"]
    node.shelf.gate.set()
    await node.settled()
    assert [topic for topic, _ in node.shelf.asked] == [LOG]


async def test_no_more_than_a_few_histories_are_read_at_once() -> None:
    node = Node()
    topics = [Topic("/", "room", f"log{number}") for number in range(3 * CATCH_UPS)]
    for topic in topics:
        await node.broker.subscribe(topic)
        node.hears(kept(1), topic=topic)
        node.shelf.kept[topic] = kept_range(1, 3)
    node.shelf.gate.clear()
    for topic in topics:
        node.hears(kept(3), topic=topic)
    for _ in range(10):
        await asyncio.sleep(0)
    assert node.shelf.under_way == CATCH_UPS
    node.shelf.gate.set()
    await node.settled()
    assert node.shelf.most_under_way == CATCH_UPS
    assert sorted(node.heard) == sorted(events(1, 3) * len(topics))


@pytest.mark.parametrize(("more", "lost"), [(0, 0), (2, 2)])
async def test_so_many_wait_while_the_history_is_read_and_of_more_the_newest(more: int, lost: int) -> None:
    node = await Node.hearing(kept(1))
    node.shelf.gate.clear()
    waiting = kept_range(3, MAX_HELD + 2 + more)
    half = len(waiting) // 2
    node.hears(*waiting[:half])
    node.hears(*waiting[half:])
    node.shelf.gate.set()
    await node.settled()
    assert node.heard == ["one:1", TOLD, *(item.event for item in waiting[lost:])]


@pytest.mark.parametrize(("size", "lost"), [(MAX_HELD_BYTES // 4, 0), (MAX_HELD_BYTES // 4 + 1, 1)])
async def test_so_many_bytes_wait_while_the_history_is_read_and_of_more_the_newest(size: int, lost: int) -> None:
    node = await Node.hearing(kept(1))
    node.shelf.gate.clear()
    for offset in range(3, 7):
        node.hears(Publication(f"one:{offset}", payload(size - 2), exclude=("a", "b"), position=at(offset)))
    node.shelf.gate.set()
    await node.settled()
    assert node.heard == ["one:1", TOLD, *events(3 + lost, 6)]


# What cannot be filled


async def test_the_first_of_another_life_follows_on_a_link_that_did_not_break() -> None:
    """The history has ended in time, or was deleted: whoever heard all until then misses nothing."""
    node = await Node.hearing(kept(5))
    node.hears(kept(1, "two"), kept(2, "two"))
    assert node.heard == ["one:5", "two:1", "two:2"]
    await node.settled()
    assert node.shelf.asked == []


async def test_another_life_that_has_begun_unheard_is_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    node = await Node.hearing(kept(5))
    node.shelf.kept[LOG] = kept_range(1, 3, "two")
    node.hears(kept(2, "two"), kept(3, "two"))
    assert node.heard == ["one:5"]
    await node.settled()
    assert node.heard == ["one:5", TOLD, "two:1", "two:2", "two:3"]
    assert "'log' has begun a new history" in caplog.text
    assert "is lost to clients of this node" in caplog.text
    node.hears(kept(4, "two"))
    assert node.heard[-1] == "two:4"


async def test_another_life_is_noticed_though_its_offset_would_follow() -> None:
    node = await Node.hearing(kept(5))
    node.shelf.error = LookupError("another epoch")
    node.hears(kept(6, "two"))
    assert node.heard == ["one:5"]
    await node.settled()
    assert node.heard == ["one:5", TOLD, "two:6"]


async def test_an_older_offset_of_another_epoch_is_not_taken_for_known() -> None:
    node = await Node.hearing(kept(5))
    node.shelf.kept[LOG] = kept_range(5, 6)  # the new epoch begins while the old one is read
    node.shelf.gate.clear()
    node.hears(kept(7))
    node.hears(kept(1, "two"))
    node.shelf.gate.set()
    await node.settled()
    assert node.heard == ["one:5", "one:6", "one:7", "two:1"]


@pytest.mark.parametrize("error", [LookupError("trimmed"), BackendError("Redis does not answer")])
async def test_where_nothing_can_be_read_what_came_in_is_delivered_and_the_stream_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    caplog.set_level(logging.WARNING, "socketspec.cluster")
    node = await Node.hearing(kept(1))
    node.shelf.error = error
    node.shelf.gate.clear()
    node.hears(kept(4))
    node.hears(kept(9), plain("x"))
    node.shelf.gate.set()
    await node.settled()
    assert [event for event in node.heard if event != TOLD] == ["one:1", "one:4", "one:9", "x"]
    assert node.heard[:3] == ["one:1", TOLD, "one:4"]
    assert str(error) in caplog.text
    assert "'log'" in caplog.text or "lost to clients" in caplog.text
    node.shelf.error = None
    node.hears(kept(10))
    assert node.heard[-1] == "one:10"


@pytest.mark.parametrize("error", [LookupError("another publication"), BackendError("Redis does not answer")])
@pytest.mark.parametrize(
    "live", [[kept(4), kept(6)], [kept(4), kept(5), kept(4)], [kept(4), kept(2, "two")]], ids=["gap", "back", "life"]
)
async def test_where_nothing_can_be_read_each_gap_in_what_came_in_is_told(
    live: list[Publication], error: Exception, impatient: None
) -> None:
    """The link broke once more, while the history could not be read."""
    node = await Node.hearing(kept(1))
    node.shelf.error = error
    node.shelf.gate.clear()
    node.hears(*live)
    node.shelf.gate.set()
    await node.settled()
    first, last = [item.event for item in live[:-1]], live[-1].event
    assert node.heard == ["one:1", TOLD, *first, TOLD, last]


async def test_a_gap_in_what_came_in_is_filled_where_the_history_can_be_read_by_then(impatient: None) -> None:
    node = await Node.hearing(kept(1))
    node.shelf.error = BackendError("Redis does not answer")
    node.behind = fan_out = asyncio.get_running_loop().create_future()
    node.hears(kept(4), kept(6))
    await turns(lambda: "one:4" in node.heard)
    node.shelf.error = None
    node.shelf.kept[LOG] = kept_range(1, 6)
    fan_out.set_result(None)
    await node.settled()
    assert node.heard == ["one:1", TOLD, *events(4, 6)]


async def test_where_nothing_can_be_read_what_comes_next_still_measures_the_stream(impatient: None) -> None:
    node = await Node.hearing(kept(1))
    node.shelf.error = BackendError("Redis does not answer")
    node.hears(kept(4))
    await node.settled()
    node.shelf.error = None
    node.shelf.kept[LOG] = kept_range(1, 6)
    node.hears(kept(6))
    await node.settled()
    assert node.heard == ["one:1", TOLD, "one:4", "one:5", "one:6"]
    assert node.shelf.asked[-1] == (LOG, at(4))


@pytest.mark.parametrize("error", [LookupError("another publication"), BackendError("Redis does not answer")])
async def test_where_nothing_can_be_read_an_older_offset_may_be_a_new_publication(
    error: Exception, impatient: None
) -> None:
    """A server that took over may lack the newest offsets, and gives them out again."""
    node = await Node.hearing(kept(5))
    node.shelf.error = error
    node.hears(kept(4))
    await node.settled()
    assert node.heard == ["one:5", TOLD, "one:4"]
    node.hears(kept(5))
    assert node.heard == ["one:5", TOLD, "one:4", "one:5"]


async def test_a_history_that_cannot_be_read_at_present_is_asked_again() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.error = BackendError("Redis does not answer")
    node.hears(kept(4))
    await turns(lambda: node.shelf.asked)
    node.shelf.error = None
    node.shelf.kept[LOG] = kept_range(1, 5)
    await until(lambda: len(node.tasks) == 0)
    assert node.heard == events(1, 5)


# A failover that lost the newest: the same offsets again, in the same epoch


async def test_members_are_told_at_once_where_what_they_heard_is_gone() -> None:
    node = await Node.hearing(*kept_range(1, 6))
    node.shelf.kept[LOG] = kept_range(1, 3)
    node.broker.restored([KEYS.channel(LOG)])
    await node.settled()
    assert node.heard == [*events(1, 6), TOLD]
    node.hears(*forked(4, 6))
    node.hears(*forked(7, 7))
    assert node.heard == [*events(1, 6), TOLD, *(item.event for item in forked(4, 7))]
    await node.settled()
    node.broker.restored([KEYS.channel(LOG)])  # nothing is wrong with what they heard since
    node.shelf.kept[LOG] = [*kept_range(1, 3), *forked(4, 7)]
    await node.settled()
    assert node.heard.count(TOLD) == 1


async def test_who_was_told_that_nothing_is_kept_is_not_told_again_and_gets_nothing_twice() -> None:
    """An empty server was asked, until its successor was found."""
    node = await Node.hearing(*kept_range(1, 3))
    node.shelf.error = LookupError("'log' keeps no history at present")
    for _ in range(2):
        node.broker.restored([KEYS.channel(LOG)])
        await node.settled()
        assert node.heard == [*events(1, 3), TOLD]
    node.shelf.error = None
    node.shelf.kept[LOG] = kept_range(1, 5)
    node.broker.restored([KEYS.channel(LOG)])
    await node.settled()
    assert node.heard == [*events(1, 3), TOLD, *events(4, 5)]


@pytest.mark.parametrize("heard", [3, 4, 5, 6, 7, 8])
async def test_members_are_told_before_they_get_what_took_the_place_of_what_they_heard(heard: int) -> None:
    node = await Node.hearing(*kept_range(1, heard))
    node.shelf.kept[LOG] = [*kept_range(1, 3), *forked(4, 7)]
    node.broker.restored([KEYS.channel(LOG)])
    node.hears(*forked(7, 8))
    await node.settled()
    begins = 4 if heard == 3 else min(heard + 1, 7)
    told = [] if heard == 3 else [TOLD]
    assert node.heard == [*events(1, heard), *told, *(item.event for item in forked(begins, 8))]


async def test_a_fork_is_noticed_where_an_offset_comes_again_on_a_link_that_did_not_break() -> None:
    node = await Node.hearing(*kept_range(1, 6))
    node.shelf.kept[LOG] = [*kept_range(1, 3), *forked(4, 5)]
    node.hears(*forked(5, 5))
    await node.settled()
    assert node.heard == [*events(1, 6), TOLD, forked(5, 5)[0].event]


async def test_a_link_that_breaks_while_the_history_is_read_has_it_read_again() -> None:
    node = await Node.hearing(*kept_range(1, 3))
    node.shelf.kept[LOG], node.shelf.later[LOG] = kept_range(1, 4), kept_range(1, 6)
    node.shelf.gate.clear()
    node.broker.restored([KEYS.channel(LOG)])
    await turns(lambda: node.shelf.asked)
    node.broker.restored([KEYS.channel(LOG)])
    node.shelf.gate.set()
    await until(lambda: len(node.tasks) == 0)
    assert node.heard == events(1, 6)


# A node that has heard nothing yet


async def test_what_was_published_while_the_link_was_down_is_delivered_where_nothing_was_heard_before() -> None:
    node = await Node.hearing()
    await node.broker.follow(LOG)
    node.shelf.kept[LOG] = kept_range(1, 3)
    node.broker.restored([KEYS.channel(LOG)])
    await node.settled()
    node.hears(kept(4))
    assert node.heard == events(1, 4)


async def test_where_a_history_stands_is_read_once_and_its_past_is_not_delivered() -> None:
    node = await Node.hearing()
    node.shelf.kept[LOG] = kept_range(1, 3)
    await node.broker.follow(LOG)
    await node.broker.follow(LOG)
    assert node.shelf.asked == [(LOG, None)]
    node.shelf.kept[LOG] = kept_range(1, 5)
    node.broker.restored([KEYS.channel(LOG)])
    await node.settled()
    assert node.heard == events(4, 5)


async def test_a_room_that_keeps_nothing_yet_is_no_loss() -> None:
    node = await Node.hearing()
    await node.broker.follow(LOG)
    node.broker.restored([KEYS.channel(LOG)])
    await node.settled()
    node.hears(kept(1))
    assert node.heard == ["one:1"]


async def test_what_was_trimmed_before_anything_was_heard_is_a_loss() -> None:
    node = await Node.hearing()
    await node.broker.follow(LOG)
    node.shelf.kept[LOG] = kept_range(5, 6)
    node.broker.restored([KEYS.channel(LOG)])
    await node.settled()
    assert node.heard == [TOLD, *events(5, 6)]


async def test_what_is_heard_while_it_is_asked_where_the_history_stands_counts() -> None:
    node = await Node.hearing()
    node.shelf.gate.clear()
    following = asyncio.ensure_future(node.broker.follow(LOG))
    await turns(lambda: node.shelf.asked)
    node.hears(kept(3))
    node.shelf.kept[LOG] = kept_range(1, 2)
    node.shelf.gate.set()
    await following
    node.hears(kept(4))
    assert node.heard == events(3, 4)


# A link that was lost


async def test_a_channel_that_stands_again_is_caught_up_with() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.kept[LOG] = kept_range(1, 4)
    node.broker.restored([KEYS.channel(LOG)])
    await node.settled()
    assert node.heard == events(1, 4)
    assert node.shelf.asked == [(LOG, at(1))]


async def test_where_nothing_was_missed_nothing_is_delivered() -> None:
    node = await Node.hearing(kept(1))
    calls: list[Sequence[Publication]] = []
    node.broker.listeners.attach("/", lambda _, items: calls.append(items))
    node.broker.restored([KEYS.channel(LOG)])
    await node.settled()
    assert node.shelf.asked == [(LOG, at(1))]
    assert calls == []


async def test_a_channel_that_stands_again_is_not_read_where_nothing_is_kept_or_nobody_listens() -> None:
    node = await Node.hearing(plain("x"))
    await node.broker.subscribe(OTHER)
    node.broker.restored([KEYS.channel(LOG), KEYS.channel(OTHER), KEYS.channel(Topic("/", "room", "third")), b"?"])
    node.hears(plain("y"))
    assert node.heard == ["x", "y"]  # nothing waits
    await node.settled()
    assert node.shelf.asked == []


async def test_a_channel_that_stands_again_while_it_is_caught_up_with_is_read_once() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.gate.clear()
    node.hears(kept(3))
    node.broker.restored([KEYS.channel(LOG)])
    node.hears(kept(4))
    node.shelf.kept[LOG] = kept_range(1, 3)
    node.shelf.gate.set()
    await node.settled()
    assert node.heard == events(1, 4)
    assert len(node.shelf.asked) == 1


async def test_every_topic_of_a_lost_link_is_caught_up_with() -> None:
    node = await Node.hearing(kept(1))
    await node.broker.subscribe(OTHER)
    node.hears(kept(1, "two"), topic=OTHER)
    node.shelf.kept = {LOG: kept_range(1, 2), OTHER: kept_range(1, 2, "two")}
    node.broker.restored([KEYS.channel(OTHER), b"?", KEYS.channel(LOG)])
    await node.settled()
    assert sorted(node.heard) == ["one:1", "one:2", "two:1", "two:2"]


# Who listens


async def test_what_was_read_for_a_topic_that_nobody_wants_any_more_is_not_delivered() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.gate.clear()
    node.shelf.kept[LOG] = kept_range(1, 3)
    node.hears(kept(3))
    await node.broker.unsubscribe(LOG)
    await asyncio.sleep(0.001)  # it lingers for 0 s
    node.shelf.gate.set()
    await node.settled()
    assert node.heard == ["one:1"]


async def test_a_topic_that_is_wanted_again_begins_where_it_is_heard_first() -> None:
    node = await Node.hearing(kept(1))
    await node.broker.unsubscribe(LOG)
    await asyncio.sleep(0.001)  # it lingers for 0 s
    await node.broker.subscribe(LOG)
    node.hears(kept(9))
    assert node.heard == ["one:1", "one:9"]
    assert node.shelf.asked == []


async def test_a_catch_up_ends_when_the_fan_out_has_kept_up() -> None:
    node = await Node.hearing(kept(1))
    node.shelf.kept[LOG] = kept_range(1, 3)
    gate = asyncio.Event()
    node.behind = _open(gate)
    node.hears(kept(3))
    for _ in range(10):
        await asyncio.sleep(0)
    assert node.heard == events(1, 3)
    assert len(node.tasks) == 1
    gate.set()
    await node.settled()


async def test_reading_on_waits_for_every_fan_out_that_is_behind() -> None:
    node = await Node.hearing()
    assert node.hears(plain("a")) is None
    gates = [asyncio.Event(), asyncio.Event()]
    node.behind = _open(gates[0])
    others: list[Publication] = []

    def deliver(topic: Topic, items: Sequence[Publication]) -> Awaitable[None]:
        others.extend(items)
        return _open(gates[1])

    node.broker.listeners.attach("/", deliver)
    waiting = node.hears(plain("b"))
    assert waiting is not None
    reading = asyncio.ensure_future(waiting)
    for gate in gates:
        for _ in range(5):
            await asyncio.sleep(0)
        assert not reading.done()
        gate.set()
    await reading
    assert [item.event for item in others] == ["b"]


async def test_reading_on_waits_for_the_one_fan_out_that_is_behind() -> None:
    node = await Node.hearing()
    gate = asyncio.Event()
    node.behind = _open(gate)
    waiting = node.hears(plain("a"))
    assert waiting is not None
    reading = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    assert not reading.done()
    gate.set()
    await reading


async def _open(gate: asyncio.Event) -> None:
    await gate.wait()


# What one read brings


async def test_what_one_read_brings_is_delivered_by_topic_and_in_order() -> None:
    node = await Node.hearing()
    await node.broker.subscribe(OTHER)
    log, other = KEYS.channel(LOG), KEYS.channel(OTHER)
    calls: list[tuple[str, list[str]]] = []

    def deliver(topic: Topic, items: Sequence[Publication]) -> None:
        calls.append((topic.name, [item.event for item in items]))

    node.broker.listeners.attach("/", deliver)
    order = [(log, "a"), (log, "b"), (other, "c"), (log, "d")]
    node.broker.received([(channel, frame(plain(event))) for channel, event in order])
    assert calls == [("log", ["a", "b"]), ("other", ["c"]), ("log", ["d"])]


async def test_what_is_not_understood_stops_nothing() -> None:
    node = await Node.hearing(kept(1))
    log = KEYS.channel(LOG)
    node.broker.received([(log, b"\x63?"), (log, frame(kept(2))), (log, b""), (log, frame(kept(3))), (b"?", b"?")])
    assert node.heard == events(1, 3)
    node.broker.received([(log, b"?")])
    assert node.heard == events(1, 3)


async def test_channels_that_are_not_wanted_are_passed_over() -> None:
    node = await Node.hearing(kept(1))
    stranger = KEYS.channel(OTHER)
    log = KEYS.channel(LOG)
    node.broker.received([(stranger, frame(kept(1))), (log, frame(kept(2))), (stranger, frame(plain("x")))])
    assert node.heard == events(1, 2)
