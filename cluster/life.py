"""`Life`: one process as a node, in one event loop: from the first start of an app to the last stop, under one name."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from typing import Any, Final

from socketspec.backend.protocols import Deliver, Health, HistoryStore, Limits, Lost, Sessions
from socketspec.cluster.broker import RedisBroker
from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.runner import Runner
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.cluster.options import RedisOptions, Servers
from socketspec.cluster.presence.members import RedisPresence
from socketspec.cluster.pubsub.subscriptions import Subscriptions
from socketspec.cluster.servers.topology import make_topology
from socketspec.cluster.stores.history import RedisHistory
from socketspec.cluster.stores.limits import RedisLimits
from socketspec.cluster.stores.sessions import RedisSessions
from socketspec.concurrency.loop_end import LoopEnd
from socketspec.concurrency.tasks import SeparateTasks
from socketspec.protocol.orders import control_topic

__all__ = ("Life",)

GRACE: Final = 2.0
"""Seconds that background work gets to end when the last app stops."""


class Life:
    """All parts of the cluster, joined. Connects with the first `start`, and ends with the last `stop`.

    It belongs to the process that made it and to the event loop of the first `start`, and is used once.
    """

    def __init__(self, servers: Servers, options: RedisOptions, keys: Keys) -> None:
        self.node: str = secrets.token_hex(4)
        self.pid: int = os.getpid()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.is_over: bool = False
        """Whether the last app has stopped, or stops now: whoever comes next needs another life."""
        self._apps: list[tuple[str, Deliver, Lost]] = []
        """Apps that were started and not stopped: the namespace, and the two functions given to `start`."""
        self._claims = 0
        """Apps that are started or about to be: while there is one, this life goes on."""
        self._is_connected = False
        self._ending = LoopEnd(self._stop_all)
        self._turn = asyncio.Lock()
        self._keys = keys
        self._tasks = SeparateTasks()
        self._topology = make_topology(servers, options)
        self.runner: Runner = Runner(self._topology, options, self._tasks)
        self.unreadable: Unreadable = Unreadable()
        self.history: HistoryStore = RedisHistory(self.runner, keys, self.unreadable)
        self.limits: Limits = RedisLimits(self.runner, keys, unreadable=self.unreadable)
        self.sessions: Sessions = RedisSessions(self.runner, keys, self.unreadable)
        self.broker: RedisBroker = RedisBroker(
            self.runner, keys, self.history, self._tasks, linger=options.linger, unreadable=self.unreadable
        )
        self.presence: RedisPresence = RedisPresence(
            self.runner, keys, self.node, self._tasks, options, unreadable=self.unreadable
        )
        self.subscriptions: Subscriptions = Subscriptions(
            self._topology,
            self._tasks,
            receive=self.broker.received,
            probe=self._probe,
            probe_channel=lambda tag: keys.probe(self.node, tag),
            restored=self._restored,
            linked=self._linked,
            options=options,
        )
        self.broker.connect(self.subscriptions)

    @property
    def is_running_elsewhere(self) -> bool:
        """Whether another event loop runs it at this moment: one of another thread, or of the process we come from."""
        return self.loop is not None and self.loop.is_running() and self.loop is not _running_loop()

    @property
    def is_left_behind(self) -> bool:
        """Whether we are in another process, or in another event loop than it."""
        here = _running_loop()
        return self.pid != os.getpid() or (None not in (self.loop, here) and self.loop is not here)

    @property
    def is_started(self) -> bool:
        """Whether some app is started, here."""
        return bool(self._apps) and self.pid == os.getpid()

    async def _probe(self, channel: bytes, nonce: bytes) -> Any:
        return await self.runner.run(Command("SPUBLISH", None, (channel,), (nonce,)))

    def _restored(self, channels: Sequence[bytes]) -> None:
        """Catch up, and check members: the server whose link was lost may have lost data, and holds both."""
        self.broker.restored(channels)
        self.presence.distrust(filter(None, map(self._keys.topic, channels)))

    def _linked(self) -> None:
        """Check what this node has left of late: a server on which it hears nothing any more may not know of it."""
        self.presence.distrust(())

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        """Begin an app's part in it; the first one connects. Raises `BackendError`."""
        self.loop = asyncio.get_running_loop()
        self._claims += 1  # before anything is awaited: another app that stops meanwhile must not end this life
        try:
            async with self._turn:
                await self._connect()
                self.presence.attach(namespace, lost)
                await self.presence.start(namespace)
                self._apps.append((namespace, deliver, lost))
                self.broker.listeners.attach(namespace, deliver)
        except BaseException:
            await self._give_up_claim()
            raise

    async def stop(self, namespace: str, deliver: Deliver) -> None:
        """End an app's part in it; the last one disconnects. Nothing happens for an app that is not started."""
        async with self._turn:
            app = next((app for app in self._apps if app[:2] == (namespace, deliver)), None)
            if app is None:
                return
            self._apps.remove(app)
            self.broker.listeners.detach(namespace, deliver)
            try:
                await self.presence.stop(namespace, app[2])
            finally:
                await self._give_up_claim()

    async def _give_up_claim(self) -> None:
        self._claims -= 1
        if not self._claims:
            self.is_over = True
            if self._is_connected:
                await self._disconnect()
            await self._ending.now()  # no app is left to stop: there is nothing to be done any more

    async def _stop_all(self) -> None:
        for namespace, deliver, _ in tuple(self._apps):
            await self.stop(namespace, deliver)

    async def _connect(self) -> None:
        if self._is_connected:
            return
        try:
            await self._topology.start()
            await self.runner.start()
            await self.subscriptions.start()
        except BaseException:
            await self._disconnect()
            raise
        self._is_connected = True
        await self._ending.watch()

    async def _disconnect(self) -> None:
        self._is_connected = False
        self.broker.close()
        await self.subscriptions.stop()
        await self.runner.stop()
        await self._tasks.close(GRACE)
        await self._topology.stop()

    def health(self) -> Health:
        """Whether this node hears everything that its apps want to hear, measured."""
        ready, detail = self.subscriptions.health()
        deaf = sorted({namespace for namespace, *_ in self._apps if not self._hears_orders(namespace)})
        if ready and deaf:
            return Health(False, f"what nodes tell each other is not heard in {', '.join(map(repr, deaf))}")
        if ready and (ended := self.presence.ended()):
            return Health(False, ended)
        dropped = self.unreadable.recently()
        return Health(ready, f"{detail}; {dropped}" if dropped else detail)

    def _hears_orders(self, namespace: str) -> bool:
        topic = control_topic(namespace)
        return not self.broker.wants(topic) or self.subscriptions.stands(self._keys.channel(topic))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
