"""What every `Broker` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from socketspec.backend.protocols import Backend
from socketspec.protocol.publications import Publication, Topic

ROOM = Topic("/", "room", "lobby")


class Heard:
    """A node that notes what is delivered to it."""

    def __init__(self) -> None:
        self.items: list[tuple[Topic, str, bytes]] = []
        self.publications: list[Publication] = []
        self.arrived = asyncio.Event()

    def __call__(self, topic: Topic, publications: Sequence[Publication]) -> None:
        self.items += [(topic, item.event, item.payload) for item in publications]
        self.publications += publications
        self.arrived.set()

    def events(self) -> list[str]:
        return [event for _, event, _ in self.items]

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.items) < count:
                self.arrived.clear()
                await self.arrived.wait()


@asynccontextmanager
async def node(backend: Backend, namespace: str = "/") -> AsyncIterator[Heard]:
    heard = Heard()
    await backend.start(namespace, heard, lambda _topic, _members: None)
    try:
        yield heard
    finally:
        await backend.stop(namespace, heard)


async def until_nobody_hears(backend: Backend, topic: Topic) -> None:
    """Publish until no node is subscribed: between servers that takes a moment."""
    async with asyncio.timeout(5):
        while True:
            if (await backend.broker.publish(topic, said("gone"))).nodes == 0:
                return
            await asyncio.sleep(0.01)


def said(event: str, payload: bytes = b"{}") -> Publication:
    return Publication(event=event, payload=payload)


async def test_a_subscription_stands_when_subscribe_returns(backend: Backend) -> None:
    async with node(backend) as heard:
        await backend.broker.subscribe(ROOM)
        receipt = await backend.broker.publish(ROOM, said("first", b'{"n":1}'))
        await heard.until(1)
        assert heard.items == [(ROOM, "first", b'{"n":1}')]
        assert receipt.nodes == 1
        assert receipt.position is None


async def test_the_order_of_a_topic_is_the_order_of_publishing(backend: Backend) -> None:
    async with node(backend) as heard:
        await backend.broker.subscribe(ROOM)
        for number in range(50):
            await backend.broker.publish(ROOM, said(f"event{number}"))
        await heard.until(50)
        assert heard.events() == [f"event{number}" for number in range(50)]


async def test_two_nodes_see_one_order_of_concurrent_publications(backend: Backend) -> None:
    async with node(backend) as one, node(backend) as other:
        await backend.broker.subscribe(ROOM)
        await asyncio.gather(*(backend.broker.publish(ROOM, said(f"event{number}")) for number in range(20)))
        await one.until(20)
        await other.until(20)
        assert one.events() == other.events()
        assert sorted(one.events()) == sorted(f"event{number}" for number in range(20))


async def test_nothing_is_delivered_without_a_subscription(backend: Backend) -> None:
    async with node(backend) as heard:
        receipt = await backend.broker.publish(ROOM, said("lost"))
        assert receipt.nodes == 0
        await backend.broker.subscribe(ROOM)
        await backend.broker.publish(ROOM, said("marker"))
        await heard.until(1)
        assert heard.events() == ["marker"]


async def test_delivery_ends_with_the_last_of_several_subscriptions(backend: Backend) -> None:
    other = Topic("/", "room", "other")
    async with node(backend) as heard:
        await backend.broker.subscribe(other)
        await backend.broker.subscribe(ROOM)
        await backend.broker.subscribe(ROOM)
        await backend.broker.unsubscribe(ROOM)
        assert (await backend.broker.publish(ROOM, said("still"))).nodes == 1
        await backend.broker.unsubscribe(ROOM)
        await until_nobody_hears(backend, ROOM)
        await backend.broker.publish(other, said("marker"))
        await heard.until(2)
        assert heard.events() == ["still", "marker"]


async def test_one_unsubscribe_too_many_does_not_count_against_the_next_subscription(backend: Backend) -> None:
    async with node(backend) as heard:
        await backend.broker.unsubscribe(ROOM)
        await backend.broker.subscribe(ROOM)
        await backend.broker.publish(ROOM, said("here"))
        await heard.until(1)


async def test_topics_that_differ_in_namespace_kind_or_name_are_apart(backend: Backend) -> None:
    others = [Topic("/two", "room", "lobby"), Topic("/", "user", "lobby"), Topic("/", "all", "lobby")]
    others += [Topic("/", "room", name) for name in ("lobby*", "lobby:", "Lobby", "lobb?", "[l]obby")]
    async with node(backend) as heard, node(backend, "/two") as elsewhere:
        await backend.broker.subscribe(ROOM)
        for topic in others:
            assert (await backend.broker.publish(topic, said("wrong"))).nodes == 0
        await backend.broker.publish(ROOM, said("right"))
        await heard.until(1)
        assert heard.events() == ["right"]
        assert elsewhere.events() == []


async def test_a_node_that_has_stopped_hears_nothing(backend: Backend) -> None:
    async with node(backend) as staying:
        async with node(backend) as leaving:
            await backend.broker.subscribe(ROOM)
        await backend.broker.publish(ROOM, said("later"))
        await staying.until(1)
        assert leaving.events() == []


async def test_who_is_excluded_travels_with_the_publication(backend: Backend) -> None:
    async with node(backend) as heard:
        await backend.broker.subscribe(ROOM)
        await backend.broker.publish(ROOM, Publication(event="x", payload=b"{}", exclude=("a", "b")))
        await heard.until(1)
        assert [item.exclude for item in heard.publications] == [("a", "b")]


async def test_a_started_backend_is_ready_and_says_so_in_words(backend: Backend) -> None:
    async with node(backend):
        health = await backend.health()
        assert health.ready
        assert health.detail


async def test_unsubscribes_too_many_do_not_count_against_the_next_subscriptions(backend: Backend) -> None:
    async with node(backend) as heard:
        await backend.broker.subscribe(ROOM)
        for _ in range(3):
            await backend.broker.unsubscribe(ROOM)
        for _ in range(2):
            await backend.broker.subscribe(ROOM)
        await backend.broker.unsubscribe(ROOM)
        for event in ("first", "second"):
            await backend.broker.publish(ROOM, said(event))
        await heard.until(2)
        assert heard.events() == ["first", "second"]
