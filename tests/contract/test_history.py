"""What every `HistoryStore`, and `Broker.publish` with a history, promises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from socketspec.backend.protocols import Backend
from socketspec.protocol.publications import History, Position, Publication, Receipt, Topic
from tests.contract.conftest import Subject
from tests.contract.test_broker import node

ROOM = Topic("/", "room", "orders:1")
KEEP = History(size=5, ttl=60)


async def publish(backend: Backend, event: str, *, key: str | None = None, history: History = KEEP) -> Receipt:
    item = Publication(event=event, payload=b'{"event":"%s"}' % event.encode())
    return await backend.broker.publish(ROOM, item, history=history, idempotency_key=key)


async def fill(backend: Backend, count: int) -> list[Position]:
    receipts = [await publish(backend, f"event{number}") for number in range(1, count + 1)]
    return [receipt.position for receipt in receipts if receipt.position is not None]


async def read(backend: Backend, since: Position | None = None, limit: int | None = None) -> list[str]:
    return [item.event for item in await backend.history.read(ROOM, since=since, limit=limit)]


async def test_positions_count_up_in_one_epoch_and_every_tag_is_its_own(backend: Backend) -> None:
    positions = await fill(backend, 4)
    assert [position.offset for position in positions] == [1, 2, 3, 4]
    assert len({position.epoch for position in positions}) == 1
    assert len({position.tag for position in positions}) == 4


async def test_what_is_kept_is_what_was_published_with_its_position(backend: Backend) -> None:
    (position,) = await fill(backend, 1)
    (kept,) = await backend.history.read(ROOM)
    assert (kept.event, kept.payload, kept.position) == ("event1", b'{"event":"event1"}', position)


async def test_publishing_without_history_keeps_nothing(backend: Backend) -> None:
    await backend.broker.publish(ROOM, Publication(event="x", payload=b"{}"))
    assert await read(backend) == []


async def test_concurrent_publications_get_each_an_offset(backend: Backend) -> None:
    receipts = await asyncio.gather(*(publish(backend, "x", history=History(size=100)) for _ in range(30)))
    assert sorted(receipt.position.offset for receipt in receipts if receipt.position) == list(range(1, 31))


@pytest.mark.parametrize(
    ("limit", "events"), [(0, []), (1, ["event3"]), (2, ["event2", "event3"]), (9, ["event1", "event2", "event3"])]
)
async def test_a_limit_takes_the_newest_oldest_first(backend: Backend, limit: int, events: list[str]) -> None:
    await fill(backend, 3)
    assert await read(backend, limit=limit) == events


async def test_reading_since_a_position_gives_what_followed(backend: Backend) -> None:
    positions = await fill(backend, 4)
    assert await read(backend, since=positions[1]) == ["event3", "event4"]


async def test_reading_since_the_newest_position_gives_nothing(backend: Backend) -> None:
    positions = await fill(backend, 4)
    assert await read(backend, since=positions[-1]) == []


async def test_reading_from_zero_gives_everything_while_nothing_was_trimmed(backend: Backend) -> None:
    positions = await fill(backend, 3)
    assert await read(backend, since=Position(0, positions[0].epoch)) == ["event1", "event2", "event3"]


async def test_reading_from_zero_is_refused_once_something_was_trimmed(backend: Backend) -> None:
    positions = await fill(backend, 6)
    with pytest.raises(LookupError):
        await read(backend, since=Position(0, positions[0].epoch))


async def test_only_the_newest_size_publications_are_kept(backend: Backend) -> None:
    positions = await fill(backend, 8)
    assert await read(backend) == ["event4", "event5", "event6", "event7", "event8"]
    with pytest.raises(LookupError):
        await read(backend, since=positions[1])


async def test_a_position_just_before_the_oldest_kept_has_lost_nothing(backend: Backend) -> None:
    positions = await fill(backend, 8)
    assert await read(backend, since=positions[2]) == ["event4", "event5", "event6", "event7", "event8"]


async def test_a_room_that_kept_nothing_has_no_position_to_honour(backend: Backend) -> None:
    assert await read(backend) == []
    with pytest.raises(LookupError):
        await read(backend, since=Position(1, "epoch", "tag"))


async def test_a_position_that_does_not_exist_yet_is_refused(backend: Backend) -> None:
    positions = await fill(backend, 3)
    with pytest.raises(LookupError):
        await read(backend, since=positions[-1]._replace(offset=4))


async def test_another_epoch_is_refused(backend: Backend) -> None:
    positions = await fill(backend, 3)
    with pytest.raises(LookupError):
        await read(backend, since=positions[1]._replace(epoch="other"))


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_another_tag_at_that_offset_is_refused(backend: Backend, index: int) -> None:
    positions = await fill(backend, 3)
    with pytest.raises(LookupError):
        await read(backend, since=positions[index]._replace(tag="other"))


async def test_the_tag_counts_also_of_the_position_just_before_the_oldest_kept(backend: Backend) -> None:
    positions = await fill(backend, 8)
    with pytest.raises(LookupError):
        await read(backend, since=positions[2]._replace(tag="other"))
    assert await read(backend, since=positions[2], limit=0) == []


@pytest.mark.parametrize(("limit", "events"), [(0, []), (1, ["event3"]), (2, ["event3", "event4"])])
async def test_a_limit_since_a_position_takes_the_oldest_first(backend: Backend, limit: int, events: list[str]) -> None:
    positions = await fill(backend, 5)
    assert await read(backend, since=positions[1], limit=limit) == events


@pytest.mark.parametrize("wrong", [{"epoch": "other"}, {"tag": "other"}, {"offset": 9}])
async def test_a_limit_of_none_at_all_still_verifies_the_position(backend: Backend, wrong: dict[str, Any]) -> None:
    positions = await fill(backend, 5)
    assert await read(backend, since=positions[1], limit=0) == []
    with pytest.raises(LookupError):
        await read(backend, since=positions[1]._replace(**wrong), limit=0)


@pytest.mark.parametrize(
    "changed", [str.upper, str.title, lambda text: text[:-1], lambda text: text + "0", lambda _: ""]
)
async def test_epoch_and_tag_are_compared_exactly(backend: Backend, changed: Callable[[str], str]) -> None:
    for _ in range(20):  # until both have a letter that is changed
        at = (await fill(backend, 1))[-1]
        if changed(at.epoch) != at.epoch and changed(at.tag) != at.tag:
            break
    for position in (at._replace(epoch=changed(at.epoch)), at._replace(tag=changed(at.tag))):
        if position != at:
            with pytest.raises(LookupError):
                await read(backend, since=position)


async def test_the_beginning_is_known_by_its_epoch_alone(backend: Backend) -> None:
    positions = await fill(backend, 2)
    assert await read(backend, since=Position(0, positions[0].epoch, "any"), limit=0) == []
    for epoch in ("", "other", positions[0].epoch.upper() + "x"):
        with pytest.raises(LookupError):
            await read(backend, since=Position(0, epoch), limit=0)


async def test_history_ends_ttl_seconds_after_the_last_publication(subject: Subject) -> None:
    backend = subject.backend
    await fill(backend, 2)
    await subject.outlive(50)
    await publish(backend, "event3")
    await subject.outlive(59)
    assert await read(backend) == ["event1", "event2", "event3"]
    await subject.outlive(2)
    assert await read(backend) == []


async def test_history_ends_as_time_really_goes_by(subject: Subject) -> None:
    await publish(subject.backend, "x", history=History(size=5, ttl=0.3))
    assert await read(subject.backend) == ["x"]
    await subject.wait(0.4)
    assert await read(subject.backend) == []


async def test_after_expiry_the_last_position_is_refused_and_a_new_epoch_begins(subject: Subject) -> None:
    backend = subject.backend
    positions = await fill(backend, 2)
    await subject.outlive(61)
    with pytest.raises(LookupError):
        await read(backend, since=positions[-1])
    after = await fill(backend, 2)
    assert after[-1].epoch != positions[-1].epoch
    with pytest.raises(LookupError):
        await read(backend, since=positions[-1])


async def test_a_repeated_idempotency_key_changes_nothing_and_answers_the_same(backend: Backend) -> None:
    first = await publish(backend, "paid", key="order-1")
    await publish(backend, "other", key="order-2")
    again = await publish(backend, "paid", key="order-1")
    assert again.position == first.position
    assert await read(backend) == ["paid", "other"]


async def test_a_repeated_idempotency_key_is_not_delivered_again(backend: Backend) -> None:
    async with node(backend) as heard:
        await backend.broker.subscribe(ROOM)
        for event in ("paid", "paid"):
            await publish(backend, event, key="k")
        await publish(backend, "marker")
        await heard.until(2)
        assert heard.events() == ["paid", "marker"]


@pytest.mark.parametrize("history", [None, History(size=1, ttl=20), History(size=50, ttl=5000)])
async def test_an_idempotency_key_counts_for_five_minutes_whatever_the_history_does(
    subject: Subject, history: History | None
) -> None:
    backend, item = subject.backend, Publication(event="paid", payload=b"{}")
    async with node(backend) as heard:
        await backend.broker.subscribe(ROOM)

        async def pay(key: str) -> Receipt:
            return await backend.broker.publish(ROOM, item, history=history, idempotency_key=key)

        first = await pay("k")
        for number in range(4):
            await pay(f"other{number}")  # trims a short history
        await subject.outlive(290)  # ends it
        assert await pay("k") == first
        await heard.until(5)
        if history is None or history.ttl < 300:
            await subject.outlive(11)
            await pay("k")
            await heard.until(6)
        assert len(heard.events()) == (5 if history and history.ttl > 300 else 6)


async def test_keys_of_one_topic_do_not_count_in_another(backend: Backend) -> None:
    await publish(backend, "paid", key="k")
    other = Topic("/", "room", "orders:2")
    item = Publication(event="paid", payload=b"{}")
    receipt = await backend.broker.publish(other, item, history=KEEP, idempotency_key="k")
    assert receipt.position is not None
    assert len(await backend.history.read(other)) == 1
