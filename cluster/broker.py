"""Fan-out through Redis: a node hears the topics it asked for, and publishes what its clients and handlers send.

A topic's channel is subscribed to while somebody here wants it and for `linger` seconds after, so that a room that is
left and joined again at once costs nothing. After a loss of the link every channel is subscribed to again, and topics
with history are caught up with: one range read each, however many members they have here.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from socketspec.backend.listeners import Listeners
from socketspec.backend.protocols import FollowingBroker, HistoryStore
from socketspec.cluster.commands.envelope import decode
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.publishing import parse_receipt, publish_command
from socketspec.cluster.commands.runner import Runner
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.cluster.missed_messages import Found, Merged, find, merge
from socketspec.cluster.missed_orders import MissedOrders
from socketspec.cluster.pubsub.subscriptions import Subscriptions
from socketspec.cluster.servers.backoff import QUICK, Backoff
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.publications import History, Position, Publication, Receipt, Topic
from socketspec.protocol.spans import UNBEGUN, follows, history_lost

__all__ = ("RedisBroker",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

CATCH_UPS: Final = 8
"""Histories read at once after a loss."""
PATIENCE: Final = 5.0
"""Seconds for which live publications wait for a history that cannot be read at present."""
MAX_HELD: Final = 10_000
"""Live publications of one topic that wait while its history is read; of more, the oldest are given up."""
MAX_HELD_BYTES: Final = 32 * 2**20
"""Bytes of them at most; a single one may have more."""


class _Held:
    """Publications of one topic that wait while its history is read, within bounds."""

    __slots__ = ("_bytes", "_items")

    def __init__(self, items: Iterable[Publication]) -> None:
        self._items: deque[Publication] = deque()
        self._bytes = 0
        self.add(items)

    def __iter__(self) -> Iterator[Publication]:
        return iter(self._items)

    def add(self, items: Iterable[Publication]) -> None:
        for item in items:
            self._items.append(item)
            self._bytes += _size(item)
            while len(self._items) > MAX_HELD or (self._bytes > MAX_HELD_BYTES and len(self._items) > 1):
                self._bytes -= _size(self._items.popleft())


class _Heard:
    """What this node has heard of one topic."""

    __slots__ = ("held", "is_outdated", "last", "lingering", "lost_after", "orders", "replayed", "subscribed", "wanted")

    def __init__(self) -> None:
        self.wanted = 0
        """How many more subscribes than unsubscribes there were."""
        self.subscribed = False
        self.lingering: asyncio.TimerHandle | None = None
        self.last: Position | None = None
        """Up to here nothing was missed. None: that is not known, as in topics without history."""
        self.lost_after: Position | None = None
        """What was the last when members were told of a loss most recently: they need not be told again at once."""
        self.held: _Held | None = None
        """Live publications, while the history is read; None while it is not."""
        self.is_outdated = False
        """Whether the link broke and stands again since it was asked for."""
        self.orders: MissedOrders | None = None
        """For orders, of which none may be missed."""
        self.replayed: frozenset[Position] = frozenset()
        """What the last catch-up delivered: the same may still arrive live, and is then passed over."""

    def begin(self, newest: Position | None) -> None:
        """The history stands at `newest`; None where nothing is kept."""
        if self.last is None:  # else something was heard meanwhile
            self.last = newest or UNBEGUN


class RedisBroker(FollowingBroker):
    """One process's part of the fan-out. `listeners` get what arrives; `unreadable` is told of what is dropped."""

    def __init__(
        self,
        runner: Runner,
        keys: Keys,
        history: HistoryStore,
        tasks: Tasks,
        *,
        linger: float,
        unreadable: Unreadable | None = None,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._history = history
        self._tasks = tasks
        self._linger = linger
        self._unreadable = unreadable or Unreadable()
        self._subscriptions: Subscriptions | None = None
        self.listeners: Listeners = Listeners()
        self._heard: dict[Topic, _Heard] = {}
        self._topics: dict[bytes, Topic] = {}
        self._reading = asyncio.Semaphore(CATCH_UPS)

    def connect(self, subscriptions: Subscriptions) -> None:
        """Use `subscriptions`, which call `received` and `restored`."""
        self._subscriptions = subscriptions

    def close(self) -> None:
        """Forget every subscription."""
        for heard in self._heard.values():
            if heard.lingering is not None:
                heard.lingering.cancel()
        self._heard.clear()
        self._topics.clear()

    async def subscribe(self, topic: Topic) -> None:
        heard = self._heard.get(topic)
        if heard is None:
            heard = self._heard[topic] = _Heard()
        heard.wanted += 1
        if heard.lingering is not None:
            heard.lingering.cancel()
            heard.lingering = None
        if heard.subscribed:
            return
        channel = self._keys.channel(topic)
        self._topics[channel] = topic
        if topic.kind == "control" and heard.orders is None:
            heard.orders = MissedOrders(topic, self._history, self._tasks, partial(self._carry_out, topic))
        try:
            await self._links().subscribe(channel)
            if heard.orders is not None:
                await heard.orders.begin()
        except BaseException:
            await self.unsubscribe(topic)
            raise
        heard.subscribed = True

    async def follow(self, topic: Topic) -> None:
        heard = self._heard.get(topic)
        if heard is None or heard.last is not None:
            return
        kept = await self._history.read(topic, limit=1)
        heard.begin(kept[-1].position if kept else None)

    def wants(self, topic: Topic) -> bool:
        """Whether somebody here was told that `topic` is subscribed to."""
        heard = self._heard.get(topic)
        return heard is not None and heard.subscribed and heard.wanted > 0

    async def unsubscribe(self, topic: Topic) -> None:
        heard = self._heard.get(topic)
        if heard is None or not heard.wanted:  # one too many: that is no business of those who come later
            return
        heard.wanted -= 1
        if not heard.wanted:
            loop = asyncio.get_running_loop()
            heard.lingering = loop.call_later(self._linger, self._give_up, topic, heard)

    def _give_up(self, topic: Topic, heard: _Heard) -> None:
        if self._heard.get(topic) is heard:
            channel = self._keys.channel(topic)
            del self._heard[topic]
            self._topics.pop(channel, None)
            self._links().unsubscribe(channel)

    def _links(self) -> Subscriptions:
        if self._subscriptions is None:
            raise BackendError("The Redis backend is not started; start the SocketApp first.")
        return self._subscriptions

    async def publish(
        self,
        topic: Topic,
        publication: Publication,
        *,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        is_only_sent = history is None and idempotency_key is None  # then nothing of it has a name
        drawn = "" if is_only_sent else secrets.token_hex(12)
        command = publish_command(
            self._keys, topic, publication, history, idempotency_key, epoch=drawn[:16], tag=drawn[16:]
        )
        return parse_receipt(await self._runner.run(command))

    def received(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[None] | None:
        """Deliver what one read brought, in order.

        Returns what to await before the connection is read any further, where a fan-out is behind.
        """
        behind: list[Awaitable[None]] = []
        index = 0
        while index < len(messages):  # the hot path of a node: no function call for each message that it can do without
            channel = messages[index][0]
            publications: list[Publication] = []
            is_positioned = False
            while index < len(messages) and messages[index][0] == channel:
                data = messages[index][1]
                publication = decode(data)
                index += 1
                if publication is None:
                    self._unreadable.frame(channel, data)
                    continue
                publications.append(publication)
                is_positioned = is_positioned or publication.position is not None
            topic = self._topics.get(channel)
            if topic is None:
                continue
            heard = self._heard[topic]
            if is_positioned or heard.held is not None:
                publications = self._in_order(topic, heard, publications)
            if publications:
                self._deliver(topic, publications, behind)
        if not behind:
            return None
        return behind[0] if len(behind) == 1 else _all(behind)

    def _deliver(self, topic: Topic, publications: Sequence[Publication], behind: list[Awaitable[None]]) -> None:
        for deliver in self.listeners.of(topic.namespace):
            try:
                waiting = deliver(topic, publications)
            except Exception:  # what other topics were sent in the same read is still to be delivered
                logger.exception("%d publications to %r could not be delivered", len(publications), topic.name)
                continue
            if waiting is not None:
                behind.append(waiting)

    def _carry_out(self, topic: Topic, orders: Sequence[Publication]) -> None:
        if self.wants(topic):
            self._deliver(topic, orders, [])

    def _in_order(self, topic: Topic, heard: _Heard, publications: list[Publication]) -> list[Publication]:
        """The publications that can be delivered now. The rest waits while what was missed before it is read."""
        if heard.orders is not None:
            return heard.orders.hear(publications)
        if heard.held is not None:
            heard.held.add(publications)
            return []
        ready: list[Publication] = []
        for index, item in enumerate(publications):
            if item.position is None:
                ready.append(item)
            elif item.position in heard.replayed:
                continue
            elif follows(heard.last, item.position):
                heard.last = item.position
                ready.append(item)
            else:
                self._catch_up(topic, heard, publications[index:])
                break
        return ready

    def restored(self, channels: Sequence[bytes]) -> None:
        """Read what was missed on channels that stand again after a loss, where their topics have a history."""
        for channel in channels:
            topic = self._topics.get(channel)
            heard = None if topic is None else self._heard.get(topic)
            if heard is not None and heard.orders is not None:
                heard.orders.look()
            elif topic is not None and heard is not None and heard.last is not None:
                if heard.held is None:
                    self._catch_up(topic, heard, [])
                else:
                    heard.is_outdated = True

    def _catch_up(self, topic: Topic, heard: _Heard, live: list[Publication]) -> None:
        heard.held = _Held(live)
        self._tasks.spawn(self._read_missed(topic, heard), name=f"catch-up with {topic.name!r}")

    async def _read_missed(self, topic: Topic, heard: _Heard) -> None:
        await asyncio.sleep(0)  # a task may start at once, and what came before the gap is not delivered yet
        while heard.held is not None and self._heard.get(topic) is heard:
            since, held = heard.last or UNBEGUN, heard.held
            found = await self._find(topic, heard, since, held)
            if self._heard.get(topic) is heard:
                merged = merge(since, found, held)
                if since == heard.lost_after and not merged.publications:
                    merged = merged._replace(is_lost=False)  # they know
                heard.held = _Held(merged.rest) if merged.rest else None
                heard.last = merged.last or heard.last
                heard.lost_after = heard.last if merged.is_lost else heard.lost_after
                heard.replayed = frozenset(item.position for item in found.missed if item.position is not None)
                await self._deliver_missed(topic, found, merged)

    async def _find(self, topic: Topic, heard: _Heard, since: Position, held: _Held) -> Found:
        """Ask until the history says what was missed, for a while."""
        loop, pauses = asyncio.get_running_loop(), Backoff(QUICK)
        until = loop.time() + PATIENCE
        while True:
            heard.is_outdated = False
            try:
                async with self._reading:
                    found = await find(self._history, topic, since, held)
                if not heard.is_outdated:
                    return found
            except BackendError as error:
                if loop.time() >= until:
                    return Found(cause=f"Catching up with {topic.name!r} failed: {error}")
            except Exception as error:  # whatever it was, the topic must not be held for ever
                logger.exception("Catching up with %r failed", topic.name)
                return Found(cause=f"Catching up with {topic.name!r} failed: {error!r}")
            await asyncio.sleep(pauses.next())

    async def _deliver_missed(self, topic: Topic, found: Found, merged: Merged) -> None:
        behind: list[Awaitable[None]] = []
        if merged.is_lost:
            cause = found.cause or f"{topic.name!r} lacks what came before a message"
            logger.warning("%s: what was published to it meanwhile is lost to clients of this node", cause)
            self._deliver(topic, (history_lost(topic.name),), behind)
        if merged.publications:
            self._deliver(topic, merged.publications, behind)
        for waiting in behind:
            await waiting


def _size(item: Publication) -> int:
    return len(item.payload) + sum(map(len, item.exclude))


async def _all(waiting: Sequence[Awaitable[None]]) -> None:
    """Await one after the other."""
    for one in waiting:
        await one
