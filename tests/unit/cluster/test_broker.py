"""What a node hears while it reads what it missed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from socketspec.backend.protocols import HistoryStore
from socketspec.cluster.broker import RedisBroker
from socketspec.cluster.commands.keys import Keys
from socketspec.concurrency.tasks import Tasks
from socketspec.protocol.publications import Position, Publication, Topic
from tests import node_frames

KEYS = Keys("p")
LOG = Topic("/", "room", "log")


class SlowHistory(HistoryStore):
    """Is read when the test says so, and has missed nothing."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        await self.may_answer.wait()
        return ()


class Subscribed:
    """Subscriptions where everything stands at once."""

    async def subscribe(self, channel: bytes) -> None: ...

    def unsubscribe(self, channel: bytes) -> None: ...


def frame(offset: int, size: int, *exclude: str) -> tuple[bytes, bytes]:
    """What comes from Redis for a publication to the log."""
    publication = Publication(
        "e", node_frames.payload(size), exclude=exclude, position=Position(offset, "epoch", "tag")
    )
    return KEYS.channel(LOG), node_frames.frame(publication)


async def heard_after_a_catch_up(*frames: tuple[bytes, bytes]) -> list[int]:
    """The offsets of what is delivered when `frames` came in while the history was read."""
    history, tasks, heard, is_done = SlowHistory(), Tasks(), list[int](), asyncio.Event()
    nothing = cast("Any", None)
    broker = RedisBroker(nothing, KEYS, history, tasks, linger=0)
    broker.connect(cast("Any", Subscribed()))

    def deliver(_: Topic, items: Sequence[Publication]) -> None:
        heard.extend(item.position.offset for item in items if item.position)
        is_done.set()

    broker.listeners.attach("/", deliver)
    await broker.subscribe(LOG)
    broker.received([frame(1, 1)])
    broker.restored([KEYS.channel(LOG)])
    for one in frames:
        broker.received([one])
    assert heard == [1]
    is_done.clear()
    history.may_answer.set()
    await is_done.wait()
    await tasks.close(1)
    return heard[1:]


async def test_what_comes_in_during_a_catch_up_is_delivered_after_it() -> None:
    assert await heard_after_a_catch_up(*(frame(offset, 1) for offset in range(2, 50))) == list(range(2, 50))


async def test_the_oldest_are_given_up_beyond_a_number_of_publications(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socketspec.cluster.broker.MAX_HELD", 3)
    assert await heard_after_a_catch_up(*(frame(offset, 1) for offset in range(2, 8))) == [5, 6, 7]


async def test_the_oldest_are_given_up_beyond_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socketspec.cluster.broker.MAX_HELD_BYTES", 1000)
    assert await heard_after_a_catch_up(*(frame(offset, 400) for offset in range(2, 8))) == [6, 7]
    assert await heard_after_a_catch_up(*(frame(offset, 1, "i" * 400) for offset in range(2, 8))) == [6, 7]
    assert await heard_after_a_catch_up(frame(2, 900), frame(3, 5000)) == [3]
    assert await heard_after_a_catch_up(frame(2, 5000), frame(3, 1), frame(4, 1)) == [3, 4]
