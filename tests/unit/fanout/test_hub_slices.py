"""A member gets exactly what is published from its join to its leave, also while its room is served in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec import History, Room, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.concurrency.tasks import Tasks
from socketspec.fanout import channel as channel_module
from socketspec.fanout import hub as hub_module
from socketspec.fanout.channel import MESSAGES_A_WRITE
from socketspec.fanout.hub import WRITES_A_TURN, Hub
from socketspec.protocol.encoding import Message, Write
from socketspec.protocol.publications import Position, Publication, Topic
from socketspec.telemetry.counters import Counters
from socketspec.testing import TestClient

TOPIC = Topic("/", "room", "r")
SLICED = WRITES_A_TURN + WRITES_A_TURN // 2
"""So many members make every publication take two slices."""


def add(hub: Hub, topic: Topic, member: Any, write: Write | None = None) -> None:
    hub.add(topic, member.id, write or member.transport.write)


def remove(hub: Hub, topic: Topic, member: Any) -> None:
    """The member leaves; one that is lost is not written to any more."""
    hub.remove(topic, member.id, write_rest=member.is_open)


class Member:
    """What the hub sees of a connection, and what it got."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.is_open = True
        self.transport = self
        self.got: list[str] = []
        self.least = 1
        """Messages in the smallest write."""

    def write(self, *messages: Message) -> None:
        self.got.extend(message.event for message in messages)
        self.least = min(self.least, len(messages))

    def write_otherwise(self, *messages: Message) -> None:
        self.write(*messages)


class Lazy(Tasks):
    """Starts tasks in the loop's next turn, as Python 3.11 does."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        return super().spawn(self._later(coroutine), name=name)

    async def _later(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        await asyncio.sleep(0)
        await coroutine


class Prompt(Tasks):
    """Starts tasks at once, as from Python 3.12 on."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        coroutine.send(None)
        return super().spawn(self._rest(coroutine), name=name)

    async def _rest(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            while True:
                await asyncio.sleep(0)
                coroutine.send(None)
        except StopIteration:
            pass


class Sliced:
    """A hub, and a room with `count` members."""

    def __init__(self, tasks: Tasks | None = None) -> None:
        self.tasks = tasks or Tasks()
        self.hub = Hub(MemoryBackend().broker, self.tasks, Counters())
        self.members: list[Member] = []
        self.published: list[str] = []

    async def fill(self, count: int) -> None:
        await self.hub.acquire(TOPIC)
        self.members = [self.join(Member(f"m{number}")) for number in range(count)]

    def join(self, member: Member) -> Member:
        add(self.hub, TOPIC, member)
        return member

    def publish(self, count: int, exclude: tuple[str, ...] = ()) -> list[str]:
        events = [str(len(self.published) + number) for number in range(count)]
        self.published += events
        self.hub.deliver(TOPIC, [Publication(event=event, payload=b"{}", exclude=exclude) for event in events])
        return events

    async def settle(self) -> None:
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while len(self.tasks):  # noqa: ASYNC110 - the tasks under test have no event to wait for
                await asyncio.sleep(0)


async def in_the_midst(published: int) -> Sliced:
    """A room whose first slice of `published` has been written, and no other."""
    room = Sliced()
    await room.fill(SLICED)
    room.publish(published)
    while not room.members[0].got:  # noqa: ASYNC110 - it is turns of the loop that are counted
        await asyncio.sleep(0)
    assert not room.members[-1].got
    return room


async def test_who_joins_in_the_midst_of_slices_gets_nothing_that_was_published_before() -> None:
    room = await in_the_midst(3 * MESSAGES_A_WRITE)
    late = room.join(Member("late"))
    after = room.publish(2)
    later = room.join(Member("later"))
    last = room.publish(1)
    await room.settle()
    assert (late.got, later.got) == (after + last, last)
    assert all(member.got == room.published for member in room.members)


@pytest.mark.parametrize("published", [3 * MESSAGES_A_WRITE, 3 * MESSAGES_A_WRITE + 5])
async def test_who_joins_in_the_midst_of_slices_gets_all_that_comes_later_however_much(published: int) -> None:
    room = await in_the_midst(published)
    late = room.join(Member("late"))
    after = room.publish(4 * MESSAGES_A_WRITE)
    await room.settle()
    assert late.got == after
    assert late.least > 0, "nobody is written to for nothing"


async def test_who_joins_before_the_first_slice_gets_nothing_that_was_published_before() -> None:
    room = Sliced()
    await room.fill(SLICED)
    room.publish(2 * MESSAGES_A_WRITE)
    late = room.join(Member("late"))
    after = room.publish(1)
    await room.settle()
    assert late.got == after


async def test_who_leaves_in_the_midst_of_slices_has_got_what_was_published_before_and_gets_nothing_more() -> None:
    room = await in_the_midst(2 * MESSAGES_A_WRITE + 1)
    first, last = room.members[0], room.members[-1]
    before = list(room.published)
    for member in (first, last):
        remove(room.hub, TOPIC, member)
    assert first.got == last.got == before
    room.publish(1)
    await room.settle()
    assert first.got == last.got == before
    assert all(member.got == room.published for member in room.members[1:-1])


async def test_who_leaves_just_before_its_slice_of_a_later_batch_gets_all_of_it() -> None:
    room = await in_the_midst(3 * MESSAGES_A_WRITE)
    while len(room.members[0].got) == MESSAGES_A_WRITE:  # noqa: ASYNC110 - it is turns of the loop that are counted
        await asyncio.sleep(0)
    before = list(room.published)
    next_one = next(member for member in room.members if len(member.got) == MESSAGES_A_WRITE)
    for member in (next_one, room.members[-1]):
        remove(room.hub, TOPIC, member)
        assert member.got == before


async def test_who_leaves_gets_nothing_that_it_is_excluded_from() -> None:
    room = await in_the_midst(1)
    room.publish(1, exclude=(room.members[-1].id,))
    room.publish(1)
    remove(room.hub, TOPIC, room.members[-1])
    assert room.members[-1].got == ["0", "2"]


async def test_who_leaves_and_comes_back_in_the_midst_of_slices_gets_nothing_twice() -> None:
    room = await in_the_midst(2 * MESSAGES_A_WRITE)
    member = room.members[-1]
    before = list(room.published)
    remove(room.hub, TOPIC, member)
    room.publish(3)
    room.join(member)
    after = room.publish(3)
    await room.settle()
    assert member.got == before + after


async def test_who_came_in_the_midst_of_slices_and_closes_gets_only_what_was_published_meanwhile() -> None:
    room = await in_the_midst(2 * MESSAGES_A_WRITE)
    late = room.join(Member("late"))
    after = room.publish(2)
    room.hub.finish(late.id)
    assert late.got == after
    await room.settle()
    assert late.got == after


async def test_a_lost_connection_is_not_written_to_when_it_is_taken_out() -> None:
    room = await in_the_midst(MESSAGES_A_WRITE)
    lost = room.members[-1]
    lost.is_open = False
    remove(room.hub, TOPIC, lost)
    await room.settle()
    assert lost.got == []


async def test_a_way_to_write_that_exchanges_itself_while_the_member_leaves_does_not_bring_it_back() -> None:
    room = await in_the_midst(2 * MESSAGES_A_WRITE + 1)
    member = room.members[-1]

    def exchanging(*messages: Message) -> None:  # as what writes after a resume does
        add(room.hub, TOPIC, member)
        member.write(*messages)

    add(room.hub, TOPIC, member, exchanging)
    before = list(room.published)
    remove(room.hub, TOPIC, member)
    room.publish(1)
    await room.settle()
    room.publish(1)
    await room.settle()
    assert member.got == before


async def test_who_closes_because_of_what_is_written_while_it_leaves_gets_it_once() -> None:
    room = await in_the_midst(2 * MESSAGES_A_WRITE + 1)
    member = room.members[-1]

    def closing(*messages: Message) -> None:
        room.hub.finish(member.id)
        member.write(*messages)

    add(room.hub, TOPIC, member, closing)
    before = list(room.published)
    remove(room.hub, TOPIC, member)
    room.publish(1)
    await room.settle()
    assert member.got == before


# Interleavings


@contextmanager
def constants(**values: int) -> Iterator[None]:
    """Other values of the constants of the fan-out, in every file that uses them."""
    names = [(vars(module), name) for module in (hub_module, channel_module) for name in values if name in vars(module)]
    assert {name for _, name in names} == set(values)
    whole = [module[name] for module, name in names]
    for module, name in names:
        module[name] = values[name]
    try:
        yield
    finally:
        for (module, name), value in zip(names, whole, strict=True):
            module[name] = value


class Model:
    """A room, and what each of its members should have got."""

    def __init__(self, tasks: Tasks) -> None:
        self.room = Sliced(tasks)
        self.everybody: list[Member] = []
        self.inside: set[str] = set()
        self.expected: dict[str, list[str]] = {}

    async def begin(self) -> None:
        await self.room.fill(2)
        self.everybody = [*self.room.members, *(Member(f"g{number}") for number in range(6))]
        self.inside = {member.id for member in self.room.members}
        self.expected = {member.id: [] for member in self.everybody}

    def publish(self, number: int) -> None:
        excluded = self.everybody[-number].id
        events = self.room.publish(number, exclude=(excluded,))
        for id in self.inside - {excluded}:
            self.expected[id] += events

    def join(self, number: int) -> None:
        self.room.join(self.everybody[number])
        self.inside.add(self.everybody[number].id)

    def exchange(self, number: int) -> None:
        member = self.everybody[number]
        if member.id in self.inside:
            add(self.room.hub, TOPIC, member, member.write_otherwise)

    def leave(self, number: int) -> None:
        member = self.everybody[number]
        remove(self.room.hub, TOPIC, member)
        self.inside.discard(member.id)
        assert member.got == self.expected[member.id], "what was published before is written first"

    def close(self, number: int) -> None:
        self.room.hub.finish(self.everybody[number].id)
        self.leave(number)

    def lose(self, number: int) -> None:
        member = self.everybody[number]
        member.is_open = False
        remove(self.room.hub, TOPIC, member)
        member.is_open = True
        self.inside.discard(member.id)
        assert member.got == self.expected[member.id][: len(member.got)]
        self.expected[member.id] = list(member.got)


ACTIONS = ["publish", "publish", "turn", "turn", "join", "join", "leave", "exchange", "close", "lose"]


@given(
    st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 7)), max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([Lazy, Prompt, Tasks]),
)
def test_every_member_gets_exactly_what_is_published_while_it_is_in(
    steps: list[tuple[str, int]], slice: int, join: int, tasks: type[Tasks]
) -> None:
    async def main() -> None:
        model = Model(tasks())
        await model.begin()
        for action, number in steps:
            if action == "turn":
                await asyncio.sleep(0)
            else:
                getattr(model, action)(number)
        await model.room.settle()
        assert {member.id: member.got for member in model.everybody} == model.expected

    with constants(WRITES_A_TURN=slice, MESSAGES_A_WRITE=join):
        asyncio.run(main())


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("seen", [0, 4, 9])
async def test_who_resumes_in_the_midst_of_slices_gets_what_it_missed_once_and_in_order(turns: int, seen: int) -> None:
    with constants(WRITES_A_TURN=2, MESSAGES_A_WRITE=3):
        socket = SocketApp(rooms=[Room("kept", history=History(size=100))])
        async with TestClient(socket) as client:
            for _ in range(5):
                await socket.rooms.join((await client.connect()).connection, "kept")
            numbers = iter(range(100))
            at: list[Position | None] = []

            async def publish(count: int) -> None:
                sending = [socket.rooms.broadcast("kept", "n", {"n": next(numbers)}) for _ in range(count)]
                at.extend(receipt.position for receipt in await asyncio.gather(*sending))

            conn = await client.connect(subprotocols=["socketspec.v1.json"])
            await publish(10)
            for _ in range(turns):
                await asyncio.sleep(0)
            since = at[seen]
            assert since is not None
            await conn.send("__resume__", {"rooms": {"kept": since._asdict()}})
            await publish(4)
            answer = await conn.receive_event("__resume__")
            assert answer["payload"]["rooms"]["kept"]["recovered"] is True
            missed = range(seen + 1, 14)
            assert [(await conn.receive())["payload"]["n"] for _ in missed] == list(missed)
            await socket.rooms.broadcast_all("end")
            assert (await conn.receive())["event"] == "end"
