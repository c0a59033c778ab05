"""Fan-out on one node: order, slices, publishers that wait, and the counting of subscriptions."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.backend.protocols import Broker
from socketspec.concurrency.tasks import Tasks
from socketspec.fanout import hub as hub_module
from socketspec.fanout.channel import MESSAGES_A_WRITE
from socketspec.fanout.hub import HELD_BYTES, MAX_QUEUED, PENDING_WRITES, WRITES_A_TURN, Hub
from socketspec.protocol.encoding import Message, Write
from socketspec.protocol.publications import History, Publication, Receipt, Topic
from socketspec.telemetry.counters import Counters

TOPIC = Topic("/", "room", "r")


def add(hub: Hub, topic: Topic, member: Any, write: Write | None = None) -> None:
    hub.add(topic, member.id, write or member.transport.write)


def remove(hub: Hub, topic: Topic, member: Any) -> None:
    """The member leaves; one that is lost is not written to any more."""
    hub.remove(topic, member.id, write_rest=member.is_open)


class FakeBroker:
    """Counts subscriptions; `gate` holds them up, `error` makes them fail."""

    def __init__(self) -> None:
        self.standing: dict[Topic, int] = {}
        self.calls = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def subscribe(self, topic: Topic) -> None:
        self.calls += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.standing[topic] = self.standing.get(topic, 0) + 1

    async def unsubscribe(self, topic: Topic) -> None:
        self.standing[topic] -= 1
        if not self.standing[topic]:
            del self.standing[topic]

    async def publish(
        self,
        topic: Topic,
        publication: Publication,
        *,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        raise NotImplementedError


class Rig:
    """A hub on a fake broker, and members that keep what they get."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.tasks = Tasks()
        self.hub = Hub(cast("Broker", self.broker), self.tasks, Counters())
        self.got: dict[str, list[str]] = {}
        self.writes: dict[str, int] = {}

    def member(self, id: str) -> Any:
        got = self.got[id] = []

        self.writes[id] = 0

        def write(*messages: Message) -> None:
            got.extend(message.event for message in messages)
            self.writes[id] += 1

        return SimpleNamespace(id=id, is_open=True, transport=SimpleNamespace(write=write))

    async def fill(self, count: int) -> list[Any]:
        await self.hub.acquire(TOPIC)
        members = [self.member(f"m{number}") for number in range(count)]
        for member in members:
            add(self.hub, TOPIC, member)
        return members

    def publish(self, *events: str, exclude: tuple[str, ...] = ()) -> None:
        self.hub.deliver(TOPIC, [Publication(event=event, payload=b"{}", exclude=exclude) for event in events])

    async def begun(self) -> None:
        """Return when the first slice is written. How many turns that takes differs between versions of Python."""
        while not self.got["m0"]:  # noqa: ASYNC110 - as below
            await asyncio.sleep(0)

    async def settle(self) -> None:
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while len(self.tasks):  # noqa: ASYNC110 - the tasks under test have no event to wait for
                await asyncio.sleep(0)


async def test_what_is_published_in_one_turn_is_joined_and_written_to_each_member_once_in_order() -> None:
    rig = Rig()
    await rig.fill(3)
    rig.publish("a", "b")
    rig.publish("c", exclude=("m1",))
    await asyncio.sleep(0)
    assert rig.writes == {"m0": 1, "m1": 1, "m2": 1}
    assert rig.got == {"m0": ["a", "b", "c"], "m1": ["a", "b"], "m2": ["a", "b", "c"]}
    assert len(rig.tasks) == 0


async def test_who_is_excluded_from_all_of_it_is_not_written_to() -> None:
    rig = Rig()
    await rig.fill(2)
    rig.publish("a", "b", exclude=("m1",))
    await asyncio.sleep(0)
    assert (rig.got, rig.writes) == ({"m0": ["a", "b"], "m1": []}, {"m0": 1, "m1": 0})


async def test_no_more_than_a_bound_is_joined() -> None:
    rig = Rig()
    await rig.fill(1)
    rig.publish(*(str(number) for number in range(2 * MESSAGES_A_WRITE + 1)))
    await asyncio.sleep(0)
    assert rig.writes == {"m0": 3}
    assert rig.got["m0"] == [str(number) for number in range(2 * MESSAGES_A_WRITE + 1)]


async def test_what_was_published_before_a_join_or_leave_is_for_those_who_were_in_then() -> None:
    rig = Rig()
    members = await rig.fill(2)
    rig.publish("a")
    add(rig.hub, TOPIC, rig.member("late"))
    rig.publish("b")
    remove(rig.hub, TOPIC, members[0])
    rig.publish("c")
    await asyncio.sleep(0)
    assert rig.got == {"m0": ["a", "b"], "m1": ["a", "b", "c"], "late": ["b", "c"]}


async def test_settling_writes_what_waits_now() -> None:
    rig = Rig()
    await rig.fill(1)
    rig.publish("a")
    rig.hub.settle()
    assert rig.got == {"m0": ["a"]}
    await asyncio.sleep(0)
    assert rig.got == {"m0": ["a"]}


async def test_settling_keeps_the_order_between_topics_and_leaves_nothing_for_later() -> None:
    rig = Rig()
    (member,) = await rig.fill(1)
    other = Topic("/", "room", "other")
    await rig.hub.acquire(other)
    add(rig.hub, other, member)
    rig.publish("a")
    rig.hub.deliver(other, [Publication(event="b", payload=b"{}")])
    rig.hub.send(member.transport.write, Message("c", b"{}"))
    rig.hub.settle()
    assert rig.got["m0"] == ["a", "b", "c"]
    await asyncio.sleep(0)
    assert rig.got["m0"] == ["a", "b", "c"]


async def test_what_is_sent_to_one_connection_comes_after_what_was_published_before_in_the_same_turn() -> None:
    rig = Rig()
    (member,) = await rig.fill(1)
    write = member.transport.write
    rig.hub.send(write, Message("at once", b"{}"))
    assert rig.got["m0"] == ["at once"]
    rig.publish("a")
    rig.hub.send(write, Message("b", b"{}"))
    rig.hub.send(write, Message("c", b"{}"))
    assert rig.got["m0"] == ["at once"]
    await asyncio.sleep(0)
    assert rig.got["m0"] == ["at once", "a", "b", "c"]


async def test_no_more_than_a_bound_waits_for_single_connections() -> None:
    rig = Rig()
    (member,) = await rig.fill(1)
    rig.publish("a")
    rig.hub.send(member.transport.write, Message("b", b"{}"))
    rig.hub.send(member.transport.write, Message("c", b" " * HELD_BYTES))
    assert rig.got["m0"] == ["a", "b", "c"]
    rig.publish("d")
    rig.hub.send(member.transport.write, Message("e", b"{}"))
    assert rig.got["m0"] == ["a", "b", "c"], "the bound begins anew"


async def test_one_connection_that_cannot_be_sent_to_does_not_keep_others_from_theirs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    (member,) = await rig.fill(1)

    def broken(*_messages: Message) -> None:
        raise OSError("broken")

    rig.publish("a")
    rig.hub.send(broken, Message("b", b"{}"))
    rig.hub.send(member.transport.write, Message("c", b"{}"))
    await asyncio.sleep(0)
    assert rig.got["m0"] == ["a", "c"]
    assert "Writing" in caplog.text


async def test_a_new_way_to_write_to_a_member_gets_what_waits_behind_what_was_sent_before() -> None:
    rig = Rig()
    members = await rig.fill(2)
    old: list[str] = []

    def hold(*messages: Message) -> None:
        old.extend(message.event for message in messages)

    add(rig.hub, TOPIC, members[0], hold)
    rig.publish("b")
    rig.hub.send(members[0].transport.write, Message("a", b"{}"))
    add(rig.hub, TOPIC, members[0])
    rig.publish("c")
    await asyncio.sleep(0)
    assert (old, rig.got) == ([], {"m0": ["a", "b", "c"], "m1": ["b", "c"]})


async def test_many_publications_to_many_topics_make_a_publisher_wait_for_one_turn() -> None:
    rig = Rig()
    topics = [Topic("/", "room", str(number)) for number in range(PENDING_WRITES)]
    member = rig.member("m")
    for topic in topics:
        await rig.hub.acquire(topic)
        add(rig.hub, topic, member)
    for topic in topics[1:]:
        rig.hub.deliver(topic, [Publication(event="a", payload=b"{}")])
        await rig.hub.breathe(topic)
    assert rig.got["m"] == [], "below the bound the loop did not turn"
    rig.hub.deliver(topics[0], [Publication(event="a", payload=b"{}")])
    await rig.hub.breathe(topics[0])
    assert len(rig.got["m"]) >= WRITES_A_TURN


async def test_many_small_topics_are_served_in_slices_too() -> None:
    rig = Rig()
    topics = [Topic("/", "room", str(number)) for number in range(WRITES_A_TURN + 10)]
    member = rig.member("m")
    for topic in topics:
        await rig.hub.acquire(topic)
        add(rig.hub, topic, member)
        rig.hub.deliver(topic, [Publication(event=topic.name, payload=b"{}")])
    await asyncio.sleep(0)
    assert len(rig.got["m"]) == WRITES_A_TURN
    await asyncio.sleep(0)
    assert rig.got["m"] == [topic.name for topic in topics]


async def test_nobody_gets_what_is_published_to_a_topic_without_members() -> None:
    rig = Rig()
    rig.publish("a")
    members = await rig.fill(1)
    remove(rig.hub, TOPIC, members[0])
    rig.publish("b")
    assert rig.got == {"m0": []}


async def test_a_large_room_is_served_in_slices_that_keep_order_and_let_the_loop_run() -> None:
    rig = Rig()
    members = await rig.fill(2 * WRITES_A_TURN + 5)
    rig.publish("a", "b")
    rig.publish("c")
    assert all(got == [] for got in rig.got.values())
    progress: list[int] = []
    while not progress or len(rig.tasks):
        await asyncio.sleep(0)
        progress.append(sum(len(got) for got in rig.got.values()))
    steps = [after - before for before, after in zip([0, *progress], progress, strict=False)]
    assert max(steps) <= WRITES_A_TURN
    assert all(rig.got[member.id] == ["a", "b", "c"] for member in members)


async def test_what_follows_a_sliced_fan_out_waits_for_it_even_when_the_room_has_shrunk() -> None:
    rig = Rig()
    members = await rig.fill(WRITES_A_TURN + 1)
    rig.publish("a")
    remove(rig.hub, TOPIC, members[0])
    rig.publish("b")
    await rig.settle()
    assert rig.got["m0"] == ["a"]
    assert rig.got["m1"] == ["a", "b"]
    rig.publish("c")
    await asyncio.sleep(0)
    assert rig.got["m1"] == ["a", "b", "c"]


async def test_who_leaves_during_a_fan_out_gets_what_came_before_and_who_joins_what_comes_later() -> None:
    rig = Rig()
    members = await rig.fill(WRITES_A_TURN + 10)
    rig.publish("a")
    await rig.begun()
    assert rig.got["m0"] == ["a"]
    remove(rig.hub, TOPIC, members[-1])
    add(rig.hub, TOPIC, rig.member("new"))
    await rig.settle()
    rig.publish("b")
    await rig.settle()
    assert rig.got["new"] == ["b"]
    assert rig.got[members[-1].id] == ["a"]
    assert all(rig.got[member.id] == ["a", "b"] for member in members[:-1])


async def test_a_member_whose_way_to_be_written_to_changes_during_a_fan_out_loses_nothing() -> None:
    rig = Rig()
    members = await rig.fill(WRITES_A_TURN + 10)
    held: list[str] = []

    def hold(*messages: Message) -> None:
        held.extend(message.event for message in messages)

    add(rig.hub, TOPIC, members[-1], hold)
    rig.publish("a")
    await rig.begun()
    add(rig.hub, TOPIC, members[-1])
    await rig.settle()
    assert (held, rig.got[members[-1].id]) == ([], ["a"])


@given(st.lists(st.sampled_from(["publish", "turn", "join", "leave"]), max_size=30))
def test_every_member_sees_a_gapless_stretch_of_one_order(steps: list[str]) -> None:
    async def main() -> None:
        rig = Rig()
        await rig.fill(4)
        guests: list[Any] = []
        numbers: list[str] = []
        for step in steps:
            if step == "publish":
                numbers.append(f"{len(numbers):03}")
                rig.publish(numbers[-1])
            elif step == "turn":
                await asyncio.sleep(0)
            elif step == "join":
                guests.append(rig.member(f"guest{len(rig.got)}"))
                add(rig.hub, TOPIC, guests[-1])
            elif guests:
                remove(rig.hub, TOPIC, guests.pop())
        await rig.settle()
        for id, got in rig.got.items():
            start = numbers.index(got[0]) if got else 0
            assert got == numbers[start : start + len(got)]
            assert not id.startswith("m") or got == numbers

    whole = hub_module.WRITES_A_TURN
    try:
        vars(hub_module)["WRITES_A_TURN"] = 2
        asyncio.run(main())
    finally:
        vars(hub_module)["WRITES_A_TURN"] = whole


async def test_one_member_that_fails_does_not_keep_the_others_from_theirs(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    members = await rig.fill(3)

    def broken(*_messages: Message) -> None:
        raise OSError("broken")

    add(rig.hub, TOPIC, members[1], broken)
    rig.publish("a", "b")
    await asyncio.sleep(0)
    assert rig.got["m0"] == rig.got["m2"] == ["a", "b"]
    assert "connection m1 failed" in caplog.text


async def test_a_publisher_waits_while_the_fan_out_is_far_behind() -> None:
    rig = Rig()
    members = await rig.fill(WRITES_A_TURN + 1)
    rig.publish("x")
    await rig.hub.breathe(TOPIC)
    rig.publish(*["x"] * MESSAGES_A_WRITE * 2)
    waiting = asyncio.ensure_future(rig.hub.breathe(TOPIC))
    await asyncio.sleep(0)
    assert not waiting.done()
    await asyncio.wait_for(waiting, 10)
    assert len(rig.got[members[-1].id]) > MESSAGES_A_WRITE


async def test_a_publisher_in_a_tight_loop_lets_others_run() -> None:
    rig = Rig()
    await rig.fill(WRITES_A_TURN)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    for _ in range(10 * PENDING_WRITES // WRITES_A_TURN):
        rig.publish("a")
        await rig.hub.breathe(TOPIC)
    task.cancel()
    assert turns >= 10


async def test_a_fan_out_hopelessly_behind_drops_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_QUEUED > MESSAGES_A_WRITE
    monkeypatch.setattr(hub_module, "MAX_QUEUED", 2)
    rig = Rig()
    await rig.fill(WRITES_A_TURN + 1)
    rig.publish("a", "b", "c")
    await rig.settle()
    assert rig.got["m0"] == ["a", "b"]
    assert "dropped" in caplog.text


# Counting subscriptions


async def test_the_first_acquire_subscribes_and_the_last_release_unsubscribes() -> None:
    rig = Rig()
    for _ in range(3):
        await rig.hub.acquire(TOPIC)
    assert rig.broker.calls == 1
    for _ in range(2):
        await rig.hub.release(TOPIC)
    assert rig.broker.standing == {TOPIC: 1}
    await rig.hub.release(TOPIC)
    assert rig.broker.standing == {}
    assert len(rig.hub.topics) == 0
    await rig.hub.release(TOPIC)  # once too often: nothing happens


async def test_joiners_wait_for_a_subscription_under_way() -> None:
    rig = Rig()
    rig.broker.gate.clear()
    joins = [asyncio.ensure_future(rig.hub.acquire(TOPIC)) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert not any(join.done() for join in joins)
    rig.broker.gate.set()
    await asyncio.gather(*joins)
    assert rig.broker.calls == 1


async def test_a_failed_subscription_fails_every_joiner_and_leaves_nothing() -> None:
    rig = Rig()
    rig.broker.gate.clear()
    rig.broker.error = ConnectionError("no broker")
    joins = [asyncio.ensure_future(rig.hub.acquire(TOPIC)) for _ in range(3)]
    await asyncio.sleep(0)
    rig.broker.gate.set()
    outcomes = await asyncio.gather(*joins, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 3
    assert (len(rig.hub.topics), rig.broker.standing) == (0, {})
    rig.broker.error = None
    await rig.hub.acquire(TOPIC)
    assert rig.broker.standing == {TOPIC: 1}


async def test_a_cancelled_joiner_does_not_cancel_the_others() -> None:
    rig = Rig()
    rig.broker.gate.clear()
    first, second, third = (asyncio.ensure_future(rig.hub.acquire(TOPIC)) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.sleep(0)
    rig.broker.gate.set()
    await asyncio.wait_for(second, 5)
    assert first.cancelled()
    assert third.cancelled()
    assert rig.broker.standing == {TOPIC: 1}
    await rig.hub.release(TOPIC)
    assert (len(rig.hub.topics), rig.broker.standing) == (0, {})


@given(st.lists(st.tuples(st.sampled_from(["join", "cancel", "leave", "turn", "shut", "open"]), st.integers(0, 5))))
def test_subscriptions_always_match_who_has_joined(steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        rig = Rig()
        joins: list[asyncio.Future[Any]] = []
        for action, number in steps:
            if action == "join":
                joins.append(asyncio.ensure_future(rig.hub.acquire(TOPIC)))
            elif action == "cancel" and joins:
                joins[number % len(joins)].cancel()
            elif action == "leave" and joins and joins[0].done() and not joins[0].cancelled():
                joins.pop(0)
                await rig.hub.release(TOPIC)
            elif action == "turn":
                await asyncio.sleep(0)
            elif action in ("shut", "open"):
                (rig.broker.gate.set if action == "open" else rig.broker.gate.clear)()
        rig.broker.gate.set()
        await asyncio.wait_for(asyncio.gather(*joins, return_exceptions=True), 5)
        members = sum(not join.cancelled() for join in joins)
        assert rig.broker.standing == ({TOPIC: 1} if members else {})
        for _ in range(members):
            await rig.hub.release(TOPIC)
        assert (len(rig.hub.topics), rig.broker.standing) == (0, {})

    asyncio.run(main())


async def test_who_closes_while_a_room_is_served_in_slices_gets_the_rest_at_once_and_once() -> None:
    rig = Rig()
    members = await rig.fill(2 * WRITES_A_TURN)
    rig.publish("a", "b", exclude=("m3",))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the first slice of the first batch is written, the last is not
    rig.publish("c")
    first, last, excluded = members[0], members[-1], members[3]
    assert (rig.got[first.id], rig.got[last.id]) == (["a", "b"], [])
    for member in (first, last, excluded):
        rig.hub.finish(member.id)
        rig.hub.finish(member.id)
    assert [rig.got[member.id] for member in (first, last, excluded)] == [["a", "b", "c"], ["a", "b", "c"], ["c"]]
    await rig.settle()
    assert [rig.got[member.id] for member in (first, last, excluded)] == [["a", "b", "c"], ["a", "b", "c"], ["c"]]
    assert all(rig.got[member.id] == ["a", "b", "c"] for member in members if member is not excluded)
