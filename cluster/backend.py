"""`RedisBackend`: the backend of an app's node. It has one life for each event loop that it is started in."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Any

from socketspec.backend.protocols import BackendFigures, Deliver, Health, HistoryStore, Limits, Lost, Sessions
from socketspec.cluster.broker import RedisBroker
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.life import Life
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.presence.members import RedisPresence
from socketspec.cluster.urls import configured

__all__ = ("RedisBackend", "from_url")


class RedisBackend:
    """Shares rooms, presence, limits and sessions between all nodes that use the same servers and prefix.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` (TLS), ``redis+sentinel://h1,h2,h3/name``, or
            ``redis+cluster://h1,h2``. Redis 7 or Valkey 8 at least.
        options: any field of `RedisOptions`; those in the URL's query string are the defaults.

    Nothing of it is made before it is started: names and connections belong to one process and one event loop, so it
    may be made before a fork, and started in one event loop after another. Raises `ConfigurationError` for a URL or an
    option that cannot work, and `RuntimeError` where it is used beside the event loop that runs it.
    """

    shared = True
    """Limits and presence are those of all nodes."""
    options: RedisOptions

    def __init__(self, url: str, **options: Any) -> None:
        self._servers, self.options = configured("A RedisBackend", url, options)
        self._keys = Keys(self.options.prefix, self._servers.db)
        self._life = self._new_life()  # connects nothing; refuses what cannot work, here and not at the start

    def __repr__(self) -> str:
        return f"<RedisBackend {self._servers!r} prefix={self.options.prefix!r} node={self.node}>"

    def _new_life(self) -> Life:
        return Life(self._servers, self.options, self._keys)

    def _present(self) -> Life:
        """The life that is going on, or that the next start begins; whatever the event loop that asks."""
        life = self._life
        if life.is_over or (life.is_left_behind and not life.is_running_elsewhere):
            life = self._life = self._new_life()
        return life

    def _here(self) -> Life:
        """As `_present`, for whoever is about to use it: it must not be another event loop's."""
        life = self._present()
        if life.is_running_elsewhere:
            raise RuntimeError(self._why_not_here(life))
        return life

    def _why_not_here(self, life: Life) -> str:
        if life.pid != os.getpid():
            return (
                f"This process was forked from node {life.node} while that was running, and cannot go on as a second "
                "one: fork before the app starts, or start the process with the method 'spawn'."
            )
        return (
            f"Node {life.node} runs in another event loop. Give each event loop a RedisBackend of its own, or call the "
            "app where it runs: with socket.sync, or asyncio.run_coroutine_threadsafe(coroutine, loop)."
        )

    @property
    def node(self) -> str:
        """This process's name among the nodes."""
        return self._present().node

    @property
    def broker(self) -> RedisBroker:
        """The fan-out."""
        return self._here().broker

    @property
    def history(self) -> HistoryStore:
        """What rooms keep."""
        return self._here().history

    @property
    def presence(self) -> RedisPresence:
        """Who is in a room."""
        return self._here().presence

    @property
    def limits(self) -> Limits:
        """The token buckets."""
        return self._here().limits

    @property
    def sessions(self) -> Sessions:
        """When sessions began, and what is revoked."""
        return self._here().sessions

    async def start(self, namespace: str, deliver: Deliver, lost: Lost) -> None:
        """See `Backend.start`."""
        await self._here().start(namespace, deliver, lost)

    async def stop(self, namespace: str, deliver: Deliver) -> None:
        """See `Backend.stop`. Where the event loop has ended, all that ran in it has gone with it."""
        if self._life.loop is asyncio.get_running_loop():
            await self._life.stop(namespace, deliver)

    async def health(self) -> Health:
        """See `Backend.health`."""
        life = self._present()
        if life.is_running_elsewhere:
            return Health(False, self._why_not_here(life))
        return life.health() if life.is_started else Health(False, "the Redis backend is not started")

    def figures(self) -> BackendFigures:
        """See `Measured`."""
        life = self._present()
        return BackendFigures(
            ready=life.is_started and life.health().ready,
            failures=life.runner.failed,
            restored=life.subscriptions.losses,
            seconds=life.runner.seconds,
            lag=life.subscriptions.lag,
            waiting_bytes=life.runner.pending_bytes,
            unreadable_frames=life.unreadable.frames.copy(),
            unreadable_values=life.unreadable.values.copy(),
        )


_by_url: weakref.WeakValueDictionary[str, RedisBackend] = weakref.WeakValueDictionary()


def from_url(url: str) -> RedisBackend:
    """The backend of ``SocketApp(backend=url)``: apps with the same URL in one process share one."""
    backend = _by_url.get(url)
    if backend is None:
        backend = _by_url[url] = RedisBackend(url)
    return backend
