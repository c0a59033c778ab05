"""`RedisBackend`: makes the parts of the cluster, joins them, starts and stops them; the backend of an app's node."""

from __future__ import annotations

import asyncio
import logging
import secrets
import weakref
from collections.abc import Sequence
from typing import Any, Final

from socketspec.backend.protocols import BackendFigures, Deliver, Health, HistoryStore, Limits, Lost, Sessions
from socketspec.cluster.broker import RedisBroker
from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.runner import Runner
from socketspec.cluster.options import RedisOptions, configured
from socketspec.cluster.presence.members import RedisPresence
from socketspec.cluster.pubsub.subscriptions import Subscriptions
from socketspec.cluster.servers.topology import make_topology
from socketspec.cluster.stores.history import RedisHistory
from socketspec.cluster.stores.limits import RedisLimits
from socketspec.cluster.stores.sessions import RedisSessions
from socketspec.concurrency.tasks import SeparateTasks

__all__ = ("RedisBackend", "from_url")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

GRACE: Final = 2.0
"""Seconds that background work gets to end when the backend stops."""


class RedisBackend:
    """Shares rooms, presence, limits and sessions between all nodes that use the same servers and prefix.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` (TLS), ``redis+sentinel://h1,h2,h3/name``, or
            ``redis+cluster://h1,h2``. Redis 7 or Valkey 8 at least.
        options: any field of `RedisOptions`; those in the URL's query string are the defaults.

    Raises `ConfigurationError` for a URL or an option that cannot work.
    """

    shared = True
    """Limits and presence are those of all nodes."""
    options: RedisOptions

    def __init__(self, url: str, **options: Any) -> None:
        self._servers, self.options = configured("A RedisBackend", url, options)
        self._keys = Keys(self.options.prefix)
        self._apps: list[tuple[str, Deliver, Lost]] = []
        """Apps that were started and not stopped: the namespace, and the two functions given to `start`."""
        self._turn = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._build()

    def __repr__(self) -> str:
        return f"<RedisBackend {self._servers!r} prefix={self.options.prefix!r} node={self.node}>"

    def _build(self) -> None:
        """Make all that lasts from the first start to the last stop, in one event loop, under a new node name."""
        self.node: str = secrets.token_hex(4)
        self._tasks = SeparateTasks()
        self._topology = make_topology(self._servers, self.options)
        self._runner = Runner(self._topology, self.options, self._tasks)
        self.history: HistoryStore = RedisHistory(self._runner, self._keys)
        self.limits: Limits = RedisLimits(self._runner, self._keys)
        self.sessions: Sessions = RedisSessions(self._runner, self._keys)
        self.broker: RedisBroker = RedisBroker(
            self._runner, self._keys, self.history, self._tasks, linger=self.options.linger
        )
        self.presence: RedisPresence = RedisPresence(self._runner, self._keys, self.node, self._tasks, self.options)
        self._subscriptions = Subscriptions(
            self._topology,
            self._tasks,
            receive=self.broker.received,
            probe=self._probe,
            probe_channel=lambda tag: self._keys.probe(self.node, tag),
            restored=self._restored,
            options=self.options,
        )
        self.broker.connect(self._subscriptions)

    async def _probe(self, channel: bytes, nonce: bytes) -> Any:
        return await self._runner.run(Command("SPUBLISH", None, (channel,), (nonce,)))

    def _restored(self, channels: Sequence[bytes]) -> None:
        """Catch up, and check members: the server whose link was lost may have lost data, and holds both."""
        self.broker.restored(channels)
        self.presence.distrust(filter(None, map(self._keys.topic, channels)))

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._forget_dead_loop()
            self._loop, self._turn = loop, asyncio.Lock()
        async with self._turn:
            if not self._apps:
                await self._connect()
            try:
                self.presence.attach(namespace, lost)
                await self.presence.start(namespace)
            except BaseException:
                if not self._apps:
                    await self._disconnect()
                raise
            self._apps.append((namespace, deliver, lost))
            self.broker.listeners.attach(namespace, deliver)

    def _forget_dead_loop(self) -> None:
        """Start anew when the loop we ran in has ended without `stop`; its sockets went with it."""
        if self._loop is not None and self._apps and not self._loop.is_closed():
            raise RuntimeError(
                f"{self!r} runs in another event loop already; give each event loop a RedisBackend of its own."
            )
        if self._loop is not None:
            self._build()
        self._apps.clear()

    async def _connect(self) -> None:
        try:
            await self._topology.start()
            await self._runner.start()
            await self._subscriptions.start()
        except BaseException:
            await self._disconnect()
            raise

    async def _disconnect(self) -> None:
        self.broker.close()
        await self._subscriptions.stop()
        await self._runner.stop()
        await self._tasks.close(GRACE)
        await self._topology.stop()

    async def stop(self, namespace: str, deliver: Deliver) -> None:
        if self._loop is not asyncio.get_running_loop():
            return  # that event loop is gone, and all that ran in it
        async with self._turn:
            app = next((app for app in self._apps if app[:2] == (namespace, deliver)), None)
            if app is None:
                return
            self.broker.listeners.detach(namespace, deliver)
            await self.presence.stop(namespace, app[2])
            self._apps.remove(app)
            if not self._apps:
                await self._disconnect()
                self._loop = None
                self._build()

    async def health(self) -> Health:
        if not self._apps:
            return Health(False, "the Redis backend is not started")
        return Health(*self._subscriptions.health())

    def figures(self) -> BackendFigures:
        return BackendFigures(
            ready=bool(self._apps) and self._subscriptions.health()[0],
            failures=self._runner.failed,
            restored=self._subscriptions.losses,
            seconds=self._runner.seconds,
            lag=self._subscriptions.lag,
            waiting_bytes=self._runner.pending_bytes,
        )


_by_url: weakref.WeakValueDictionary[str, RedisBackend] = weakref.WeakValueDictionary()


def from_url(url: str) -> RedisBackend:
    """The backend of ``SocketApp(backend=url)``: apps with the same URL in one process share one."""
    backend = _by_url.get(url)
    if backend is None:
        backend = _by_url[url] = RedisBackend(url)
    return backend
