"""`Topology`: the servers as one. One server, the primary that the Sentinels name, or the primaries of a cluster.

The three differ in how they find out who owns which hash slot, and in nothing else. Replicas are never asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol

from redis.exceptions import AskError

from socketspec.cluster.options import Address, RedisOptions, Servers
from socketspec.cluster.servers.backoff import Backoff
from socketspec.cluster.servers.discovery import Connector, Find, finder_for
from socketspec.cluster.servers.greeting import Hello
from socketspec.cluster.servers.layout import NOBODY, Layout
from socketspec.cluster.servers.shard import LinkOptions, NotSentError, RefusedError, Shard, unnoticed
from socketspec.errors import BackendError

__all__ = ("Topology", "make_topology")

logger: logging.Logger = logging.getLogger("socketspec.cluster")


class Topology(Protocol):
    """All servers as one thing to send commands to."""

    trouble: str
    """Why the start has not succeeded so far; empty where it has not failed."""

    @property
    def link(self) -> LinkOptions:
        """What it takes to open another connection to any of the primaries."""
        ...

    async def start(self) -> None:
        """Find the servers and log in, trying for `start_timeout` seconds. Raises `BackendError`."""
        ...

    async def stop(self) -> None:
        """Close every connection."""
        ...

    async def refresh(self, *, routine: bool = False) -> None:
        """Find out again who owns what; callers at the same time share one search. `routine`: nothing seems wrong.

        Raises `ReplicaError` for a server that has lost its role, another `BackendError` where the search failed.
        """
        ...

    async def confirm(self, address: Address, since: float) -> None:
        """Call it before `address` is connected to again. Under Sentinel, the Sentinels are asked first.

        A primary that was replaced and comes back takes itself for one until they get hold of it. `since` is when the
        connection was lost, by the event loop's time: a search that began later is good enough. Raises `BackendError`
        where the search failed, or found another primary.
        https://redis.io/docs/latest/develop/reference/sentinel-clients/
        """
        ...

    def addresses(self) -> Sequence[Address]:
        """The primaries."""
        ...

    def address_for(self, channel: bytes) -> Address | None:
        """The primary that owns the slot of this key or sharded channel; None where none is known."""
        ...

    def tag_for(self, address: Address) -> str:
        """A hash tag whose slot `address` owns. Raises `LookupError` where it owns none."""
        ...

    async def execute(
        self, words: Sequence[Sequence[Any]], begun: Callable[[], object] = unnoticed, *, has_deadline: bool = False
    ) -> list[Any]:
        """Run commands, one pipeline for each primary, all at once: a reply or an exception for each, in order.

        A `NotSentError` means that the server was not reached. After any other `ConnectionError` or `TimeoutError` of
        redis-py nobody knows whether the command was carried out. Keys come first in a command or a script. `begun` is
        called when one of the servers may get commands. A primary has `command_timeout` to answer; with `has_deadline`
        it has until the caller cancels this.
        """
        ...

    async def ask(self, refusal: AskError, words: Sequence[Any]) -> Any:
        """Have a command carried out by the next owner of its slot, whom `refusal` names: a reply or an exception.

        While a slot migrates, its keys move there one by one, and new ones are made there.
        """
        ...


class _Found:
    """The topology as `find` found it last."""

    def __init__(self, connector: Connector, find: Find, *, needs_all: bool) -> None:
        self._needs_all = needs_all
        self.link: LinkOptions = connector.link
        self._connector = connector
        self._find = find
        self._layout: Layout = NOBODY
        self._shards: dict[Address, Shard] = {}
        self._tags: dict[Address, str] = {}
        self._finding = asyncio.Lock()
        self._times_found = 0
        self._found_at = -math.inf
        """When the last search that succeeded began."""
        self.trouble: str = ""

    def __repr__(self) -> str:
        return f"<topology of {self._connector.servers} with {', '.join(map(str, self._shards)) or 'nothing found'}>"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connector.options.start_timeout
        backoff = Backoff()
        while True:
            try:
                await self.refresh()
                await self._greet()
                self.trouble = ""
                return
            except RefusedError:
                raise
            except BackendError as error:
                pause = backoff.next()
                if loop.time() + pause > deadline:
                    raise
                if str(error) != self.trouble:  # the same trouble again is no news
                    self.trouble = str(error)
                    logger.warning("%s Trying again for %.0f s.", error, deadline - loop.time())
            await asyncio.sleep(pause)

    async def _greet(self) -> None:
        """Log in to every primary, so that one whose announced address cannot be reached is found now.

        Where not all are needed, the first that answers ends it.
        """
        greetings = {asyncio.ensure_future(shard.hello()): shard for shard in self._shards.values()}
        waiting: set[asyncio.Future[Hello]] = set(greetings)
        errors: list[BaseException] = []
        try:
            while waiting and (self._needs_all or len(waiting) + len(errors) == len(greetings)):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                errors += [error for greeting in done if (error := greeting.exception()) is not None]
        finally:
            for greeting in waiting:
                greeting.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if errors and (self._needs_all or len(errors) == len(greetings)):
            raise next((error for error in errors if isinstance(error, RefusedError)), errors[0])
        met = [shard for greeting, shard in greetings.items() if greeting not in waiting and not greeting.exception()]
        await asyncio.gather(*(shard.warn_if_evicting() for shard in met))

    async def stop(self) -> None:
        await self._adopt(NOBODY)
        await self._connector.close()

    async def refresh(self, *, routine: bool = False) -> None:
        seen = self._times_found
        async with self._finding:
            if self._times_found == seen:
                await self._search(routine=routine)

    async def confirm(self, address: Address, since: float) -> None:
        if self._connector.servers.mode != "sentinel":  # nobody else knows, or the nodes of a cluster say so themselves
            return
        async with self._finding:
            if self._found_at <= since:
                await self._search(routine=False)
        if address not in self._shards:
            raise BackendError(f"{address} is no primary any more.")

    async def _search(self, *, routine: bool) -> None:
        began = asyncio.get_running_loop().time()
        await self._connector.begin_search(routine=routine)
        await self._adopt(await self._find(self._connector, tuple(self._shards)))
        self._times_found += 1
        self._found_at = began

    async def _adopt(self, layout: Layout) -> None:
        wanted = dict.fromkeys(owner for owner in layout.owners if owner is not None)
        gone = [shard for address, shard in self._shards.items() if address not in wanted]
        self._shards = {
            address: self._shards.get(address) or self._connector.shard(address, self.confirm) for address in wanted
        }
        self._layout = layout
        self._tags.clear()
        if self._connector.is_another:
            for shard in self._shards.values():
                shard.renew()
        for shard in gone:
            await shard.close()

    def addresses(self) -> Sequence[Address]:
        return tuple(self._shards)

    def address_for(self, channel: bytes) -> Address | None:
        return self._layout.owner(channel)

    def tag_for(self, address: Address) -> str:
        tag = self._tags.get(address)
        if tag is None:
            if address not in self._shards:
                raise LookupError(f"{address} owns no slot.")
            tag = next(text for text in map(str, count()) if self._layout.owner(text.encode()) == address)
            self._tags[address] = tag
        return tag

    async def execute(
        self, words: Sequence[Sequence[Any]], begun: Callable[[], object] = unnoticed, *, has_deadline: bool = False
    ) -> list[Any]:
        parts: dict[Address | None, list[int]] = {}
        for index, command in enumerate(words):
            parts.setdefault(self._address_of(command), []).append(index)
        if len(parts) == 1:
            return await self._ask(next(iter(parts)), words, begun, has_deadline=has_deadline)
        replies: list[Any] = [None] * len(words)

        async def ask(address: Address | None, indexes: list[int]) -> None:
            theirs = await self._ask(address, [words[index] for index in indexes], begun, has_deadline=has_deadline)
            for index, reply in zip(indexes, theirs, strict=True):
                replies[index] = reply

        async with asyncio.TaskGroup() as group:
            for address, indexes in parts.items():
                group.create_task(ask(address, indexes))
        return replies

    def _address_of(self, command: Sequence[Any]) -> Address | None:
        key = _key_of(command)
        return next(iter(self._shards), None) if key is None else self._layout.owner(key)

    async def _ask(
        self,
        address: Address | None,
        words: Sequence[Sequence[Any]],
        begun: Callable[[], object],
        *,
        has_deadline: bool,
    ) -> list[Any]:
        shard = None if address is None else self._shards.get(address)
        if shard is None:
            return [NotSentError(BackendError("No primary is known for this command's slot."))] * len(words)
        return await shard.execute(words, begun, has_deadline=has_deadline)

    async def ask(self, refusal: AskError, words: Sequence[Any]) -> Any:
        host = refusal.host or getattr(self._address_of(words), "host", "")
        target = self._shards.get(Address(host, refusal.port))
        if target is None:
            return refusal
        return (await target.execute([("ASKING",), words]))[1]


def make_topology(servers: Servers, options: RedisOptions, *, needs_all: bool = True) -> Topology:
    """The topology for the servers of a URL. Nothing is connected yet. Raises `ConfigurationError`.

    `needs_all`: it has started when all primaries have answered, and not when the first one has.
    """
    return _Found(Connector(servers, options), finder_for(servers.mode), needs_all=needs_all)


def _key_of(command: Sequence[Any]) -> bytes | None:
    at = 1
    if command[0] in {"EVALSHA", "EVAL"}:
        at = 3 if int(command[2]) > 0 else len(command)
    if len(command) <= at:
        return None
    key = command[at]
    return key if isinstance(key, bytes) else str(key).encode()
