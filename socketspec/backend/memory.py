"""The memory backend: one process, no server. The default, and the executable specification of the seam."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final

from socketspec.backend.first_seen import FirstSeen
from socketspec.backend.listeners import Listeners
from socketspec.backend.protocols import Broker, Deliver, Health, HistoryStore, Limits, Lost, Presence, Sessions
from socketspec.backend.rate_buckets import BucketTable
from socketspec.protocol.publications import ONCE_SECONDS, History, Member, Position, Publication, Receipt, Topic

__all__ = ("MemoryBackend", "from_url")

Clock = Callable[[], float]

MAX_KEYS: Final = 100_000
"""Idempotency keys that are remembered; of more, the oldest are forgotten."""


@dataclass(slots=True)
class _Stream:
    """One topic's kept publications, and one life of them."""

    epoch: str
    expires_at: float
    size: int = 0
    entries: deque[Publication] = field(default_factory=deque)
    """One more than `size`, so that the position before the oldest shown one can still be verified by its tag."""
    offset: int = 0


class _Streams:
    """The history of every topic, bounded per topic by its policy; streams whose time is over are swept."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._streams: dict[Topic, _Stream] = {}
        self._sweep_at = 0.0

    def live(self, topic: Topic) -> _Stream | None:
        stream = self._streams.get(topic)
        if stream is not None and stream.expires_at <= self._clock():
            del self._streams[topic]
            return None
        return stream

    def append(self, topic: Topic, publication: Publication, policy: History) -> Publication:
        """Keep `publication`; the kept one has its position."""
        stream = self.live(topic)
        if stream is None:
            self._sweep()
            stream = self._streams[topic] = _Stream(secrets.token_hex(8), 0.0)
        stream.offset += 1
        position = Position(stream.offset, stream.epoch, secrets.token_hex(4))
        kept = publication._replace(position=position)
        stream.entries.append(kept)
        stream.size = policy.size
        while len(stream.entries) > policy.size + 1:
            stream.entries.popleft()
        stream.expires_at = self._clock() + policy.ttl
        return kept

    def _sweep(self) -> None:
        now = self._clock()
        if now < self._sweep_at:
            return
        self._sweep_at = now + 10.0
        for topic in [topic for topic, stream in self._streams.items() if stream.expires_at <= now]:
            del self._streams[topic]


class _Once:
    """What was published with which idempotency key, for `ONCE_SECONDS` or as long as the history's `ttl`; the newest
    `MAX_KEYS`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._published: dict[tuple[Topic, str], tuple[float, Position | None]] = {}
        self._sweep_at = 0.0

    def find(self, topic: Topic, key: str) -> tuple[bool, Position | None]:
        """Whether this key was used, and for which position."""
        until, position = self._published.get((topic, key), (0.0, None))
        return until > self._clock(), position

    def note(self, topic: Topic, key: str, position: Position | None, ttl: float) -> None:
        """Remember that this key was used."""
        now = self._clock()
        if now >= self._sweep_at:
            self._sweep_at = now + 10.0
            self._published = {name: entry for name, entry in self._published.items() if entry[0] > now}
        self._published.pop((topic, key), None)
        self._published[topic, key] = now + max(ttl, ONCE_SECONDS), position
        if len(self._published) > MAX_KEYS:
            del self._published[next(iter(self._published))]


class MemoryBroker(Broker):
    """Hands publications to this process's nodes in the call itself; they write to their clients a moment later."""

    def __init__(self, streams: _Streams, clock: Clock) -> None:
        self._streams = streams
        self._once = _Once(clock)
        self.listeners: Listeners = Listeners()
        self._subscriptions: dict[Topic, int] = {}

    def clear(self) -> None:
        """Forget everybody who listens."""
        self.listeners = Listeners()
        self._subscriptions.clear()

    async def subscribe(self, topic: Topic) -> None:
        self._subscriptions[topic] = self._subscriptions.get(topic, 0) + 1

    async def unsubscribe(self, topic: Topic) -> None:
        remaining = self._subscriptions.get(topic, 0) - 1
        if remaining > 0:
            self._subscriptions[topic] = remaining
        else:
            self._subscriptions.pop(topic, None)

    async def publish(
        self,
        topic: Topic,
        publication: Publication,
        *,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        subscribed = topic in self._subscriptions
        if idempotency_key is not None:
            was_used, position = self._once.find(topic, idempotency_key)
            if was_used:
                return Receipt(int(subscribed), position)
        if history is not None:
            publication = self._streams.append(topic, publication, history)
        if idempotency_key is not None:
            self._once.note(topic, idempotency_key, publication.position, 0.0 if history is None else history.ttl)
        if subscribed:
            for deliver in self.listeners.of(topic.namespace):
                deliver(topic, (publication,))
        return Receipt(int(subscribed), publication.position)


class MemoryHistory(HistoryStore):
    """Reads the streams that `MemoryBroker.publish` filled."""

    def __init__(self, streams: _Streams) -> None:
        self._streams = streams

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        stream = self._streams.live(topic)
        if since is None:
            return [] if stream is None else _newest(stream, limit)
        if stream is None or stream.epoch != since.epoch or not 0 <= since.offset <= stream.offset:
            raise LookupError(f"{topic.name!r} has begun a new history since that position")
        if since.offset < stream.offset - stream.size:
            raise LookupError(f"{topic.name!r} no longer keeps what followed offset {since.offset}")
        index = since.offset - (stream.offset - len(stream.entries)) - 1
        if index >= 0:
            at_since = stream.entries[index].position
            if at_since is None or at_since.tag != since.tag:
                raise LookupError(f"offset {since.offset} of {topic.name!r} is another publication")
        return list(islice(stream.entries, index + 1, None if limit is None else index + 1 + limit))


def _newest(stream: _Stream, limit: int | None) -> list[Publication]:
    count = stream.size if limit is None else min(limit, stream.size)
    return list(islice(stream.entries, max(len(stream.entries) - count, 0), None))


class MemoryPresence(Presence):
    """Members by topic, in a dict each."""

    def __init__(self) -> None:
        self._rooms: dict[Topic, dict[str, Member]] = {}

    def clear(self) -> None:
        """Forget everybody."""
        self._rooms.clear()

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        members = self._rooms.get(topic, {})
        if member.connection_id in members:
            return True
        if limit is not None and len(members) >= limit:
            return False
        self._rooms.setdefault(topic, members)[member.connection_id] = member
        return True

    async def leave(self, topic: Topic, connection_id: str) -> None:
        members = self._rooms.get(topic)
        if members is not None:
            members.pop(connection_id, None)
            if not members:
                del self._rooms[topic]

    async def members(self, topic: Topic) -> Sequence[Member]:
        return tuple(self._rooms.get(topic, {}).values())

    async def count(self, topic: Topic) -> int:
        return len(self._rooms.get(topic, ()))


class MemoryLimits(Limits):
    """Token buckets in a bounded table."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tables: dict[tuple[float, float], BucketTable] = {}

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        table = self._tables.get((rate, capacity))
        if table is None:
            table = self._tables[rate, capacity] = BucketTable(rate, capacity)
        return table.take(key, self._clock())


class MemorySessions(Sessions):
    """When sessions began and what is revoked, each forgotten when its time is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun: dict[str, tuple[float, float, float]] = {}
        """When each began, since the epoch and by the clock, and until when it is remembered."""
        self._revoked: dict[str, float] = {}
        self._sweep_at = 0.0

    async def begin(self, session: str, *, ttl: float) -> float:
        self._sweep()
        entry, now = self._begun.get(session), self._clock()
        if entry is None or entry[2] <= now:
            entry = self._begun[session] = (time.time(), now, now + ttl)
        return FirstSeen(entry[0], now - entry[1])

    async def began(self, session: str) -> float | None:
        entry, now = self._begun.get(session), self._clock()
        if entry is None or entry[2] <= now:
            return None
        return FirstSeen(entry[0], now - entry[1])  # however the system's time was set meanwhile

    async def revoke(self, subject: str, *, ttl: float) -> None:
        self._sweep()
        self._revoked[subject] = max(self._revoked.get(subject, 0.0), self._clock() + ttl)

    async def is_revoked(self, subjects: Sequence[str]) -> bool:
        now = self._clock()
        return any(self._revoked.get(subject, 0.0) > now for subject in subjects)

    def _sweep(self) -> None:
        now = self._clock()
        if now < self._sweep_at:
            return
        self._sweep_at = now + 10.0
        self._begun = {name: entry for name, entry in self._begun.items() if entry[2] > now}
        self._revoked = {name: until for name, until in self._revoked.items() if until > now}


class MemoryBackend:
    """Everything in this process's memory. `clock` is a monotonic clock in seconds.

    Connections end with the event loop they were served in: started in another one, it knows none of them any more.
    What is kept lasts: histories, limits and sessions.
    """

    shared = False

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._ahead = 0.0
        clock = partial(self._time, clock)
        streams = _Streams(clock)
        self._name = (os.getpid(), secrets.token_hex(4))
        self._loop: asyncio.AbstractEventLoop | None = None
        self.broker: MemoryBroker = MemoryBroker(streams, clock)
        self.history: MemoryHistory = MemoryHistory(streams)
        self.presence: MemoryPresence = MemoryPresence()
        self.limits: MemoryLimits = MemoryLimits(clock)
        self.sessions: MemorySessions = MemorySessions(clock)

    def _time(self, clock: Clock) -> float:
        return clock() + self._ahead

    def advance(self, seconds: float) -> None:
        """Make all that is kept, and every limit, `seconds` older: for tests."""
        self._ahead += seconds

    @property
    def node(self) -> str:
        """This process's name, another one after a fork."""
        if self._name[0] != os.getpid():
            self._name = (os.getpid(), secrets.token_hex(4))
        return self._name[1]

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and self._loop.is_running() and self.broker.listeners:
                raise RuntimeError(
                    "This MemoryBackend is in use in another event loop: give each event loop a backend of its own."
                )
            self._loop = loop
            self.broker.clear()
            self.presence.clear()
        self.broker.listeners.attach(namespace, deliver)

    async def stop(self, namespace: str, deliver: Deliver) -> None:
        self.broker.listeners.detach(namespace, deliver)

    async def health(self) -> Health:
        return Health(True, "memory backend: this process is the whole cluster")


def from_url(url: str) -> MemoryBackend:
    """The factory behind ``backend="memory"`` (entry-point group ``socketspec.backends``): one backend an app."""
    return MemoryBackend()
