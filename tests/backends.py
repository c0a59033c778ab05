"""Backends for tests of the core: the memory backend, with what a cluster does to it, and what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from socketspec.backend.memory import MemoryBackend, MemoryBroker, MemoryLimits, MemoryPresence
from socketspec.backend.protocols import Deliver, Lost
from socketspec.errors import BackendError
from socketspec.protocol.publications import Member, Topic

__all__ = ("SharedBackend", "WatchedBackend", "WatchedBroker", "WatchedPresence")


class SharedBackend(MemoryBackend):
    """The memory backend, as if other nodes shared it: limits are asked of it."""

    shared = True

    def __init__(self, limits: MemoryLimits | None = None) -> None:
        super().__init__()
        if limits is not None:
            self.limits = limits


class WatchedPresence(MemoryPresence):
    """Keeps what was asked. What is `failing`, ``enter`` or ``leave``, is done, and then nobody can tell whether.

    Whoever leaves waits for as long as `may_leave` is not set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.may_leave = asyncio.Event()
        self.may_leave.set()
        self.leaving = asyncio.Event()
        """Set once somebody leaves."""
        self.failing: set[str] = set()
        self.entered: list[tuple[Topic, Member, int | None]] = []
        self.left: list[tuple[Topic, str]] = []
        self.listed = 0

    async def members(self, topic: Topic) -> Sequence[Member]:
        self.listed += 1
        return await super().members(topic)

    async def enter(self, topic: Topic, member: Member, *, limit: int | None = None) -> bool:
        self.entered.append((topic, member, limit))
        entered = await super().enter(topic, member, limit=limit)
        self._fail("enter")
        return entered

    async def leave(self, topic: Topic, connection_id: str) -> None:
        self.left.append((topic, connection_id))
        self.leaving.set()
        await self.may_leave.wait()
        await super().leave(topic, connection_id)
        self._fail("leave")

    def _fail(self, what: str) -> None:
        if what in self.failing:
            raise BackendError("no answer: whether it was done is not known")


class WatchedBroker(MemoryBroker):
    """Shows what is subscribed; where it is `failing`, no room and no user can be."""

    failing = False

    async def subscribe(self, topic: Topic) -> None:
        if self.failing and topic.kind in ("room", "user"):
            raise BackendError("redis is gone")
        await super().subscribe(topic)

    def stands(self, topic: Topic) -> bool:
        """Whether a node has `topic` delivered."""
        return topic in self._subscriptions


class WatchedBackend(MemoryBackend):
    """The memory backend, with what tests want to see of it and tell it."""

    lost: Lost
    """To be called with members whose node died."""

    def __init__(self) -> None:
        super().__init__()
        self.broker.__class__ = WatchedBroker
        self.presence = self.watched = WatchedPresence()
        self.started: list[str] = []
        """The namespaces it is started for."""

    @property
    def fanout(self) -> WatchedBroker:
        """The broker, as what it is."""
        assert isinstance(self.broker, WatchedBroker)
        return self.broker

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        await super().start(namespace, deliver, lost)
        self.started.append(namespace)
        self.lost = lost

    async def stop(self, namespace: str, deliver: Deliver) -> None:
        await super().stop(namespace, deliver)
        self.started.remove(namespace)
