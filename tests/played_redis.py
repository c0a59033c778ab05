"""Servers of sharded channels in memory, in virtual time: what `Subscriptions` hear is what a test has them say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import hiredis

from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.pubsub.subscriptions import Subscriptions
from socketspec.cluster.servers.shard import LinkOptions, unnoticed
from tests.virtual_time import listen
from tests.watching import WatchedTasks

__all__ = ("BRIEF", "OPTIONS", "PROBE", "ROOM", "PlayedLink", "PlayedNode", "PlayedServer", "hearing", "resp")

OPTIONS = RedisOptions()
"""The real ones: in virtual time they cost nothing."""
ROOM = b"room"
PROBE = b"probe:a"
"""The channel on which server "a" is tested."""
BRIEF = 0.01
"""Seconds in which everything that needs no pause has happened."""


def resp(*words: bytes | int) -> bytes:
    """A list as a server sends it."""
    parts = [b":%d\r\n" % word if isinstance(word, int) else b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(parts)


class PlayedLink(asyncio.Transport):
    """A node's connection to a played server."""

    def __init__(self, server: PlayedServer, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.channels: set[bytes] = set()
        self.is_open = True
        self.is_gone = False
        """Whether the client's side was told that it is closed."""
        self._is_reading = True
        self._server = server
        self._protocol = protocol
        self._commands = hiredis.Reader()
        self._unread: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self.is_open:
            return
        self._commands.feed(bytes(data))
        while (command := self._commands.gets()) is not False:
            self._server.take(self, tuple(command))

    def say(self, *parts: bytes) -> None:
        """Have all of `parts` arrive in one read."""
        asyncio.get_running_loop().call_soon(self._arrive, b"".join(parts))

    def _arrive(self, data: bytes) -> None:
        if not self._is_reading:
            self._unread.append(data)
        elif self.is_open:
            self._protocol.data_received(data)

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True
        unread, self._unread = self._unread, []
        for data in unread:
            self.say(data)

    def abort(self) -> None:
        self._end(None)

    def cut(self, error: Exception | None = None) -> None:
        """The server, or something in between, ends the connection."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self.is_open:
            self.is_open = False
            self._server.links.remove(self)
            asyncio.get_running_loop().call_soon(self._lost, error)

    def _lost(self, error: Exception | None) -> None:
        self.is_gone = True
        self._protocol.connection_lost(error)


class PlayedServer:
    """Answers at once, unless told otherwise."""

    def __init__(self, name: str) -> None:
        self.address = Address(name, 6379)
        self.links: list[PlayedLink] = []
        """Those that are open."""
        self.accepted = 0
        self.commands: list[tuple[bytes, ...]] = []
        self.mute: set[bytes] = set()
        """Commands, or channels, that are not answered."""
        self.refusals: dict[bytes, str] = {}
        """Channel, or command: the error it is answered with."""
        self.is_down = False

    def accept(self, protocol: asyncio.Protocol) -> PlayedLink:
        if self.is_down:
            raise ConnectionRefusedError("connection refused")
        self.accepted += 1
        self.links.append(PlayedLink(self, protocol))
        return self.links[-1]

    @property
    def link(self) -> PlayedLink:
        """The only one."""
        (link,) = self.links
        return link

    def has(self, channel: bytes) -> bool:
        return any(channel in link.channels for link in self.links)

    def count(self, *command: bytes) -> int:
        """How often this command came, as far as it is given."""
        return sum(one[: len(command)] == command for one in self.commands)

    def publish(self, channel: bytes, data: bytes) -> None:
        for link in self.links:
            if channel in link.channels:
                link.say(resp(b"smessage", channel, data))

    def take_back(self, channel: bytes) -> None:
        """What a server does with a channel whose slot has moved."""
        for link in self.links:
            link.channels.discard(channel)
            link.say(resp(b"sunsubscribe", channel, 0))

    def cut(self, error: Exception | None = None) -> None:
        for link in list(self.links):
            link.cut(error)

    def take(self, link: PlayedLink, command: tuple[bytes, ...]) -> None:
        self.commands.append(command)
        name, channel = command[0], command[-1]
        if self.mute & {name, channel}:
            return
        refusal = self.refusals.get(channel) or self.refusals.get(name)
        if refusal is not None:
            link.say(f"-{refusal}\r\n".encode())
        elif name in (b"SSUBSCRIBE", b"SUNSUBSCRIBE"):
            self.confirm(link, name, channel)
        elif name == b"PING":
            link.say(resp(b"pong", b"") if link.channels else b"+PONG\r\n")
        else:
            link.say(b"+OK\r\n")

    def confirm(self, link: PlayedLink, name: bytes, channel: bytes) -> None:
        """Answer `SSUBSCRIBE` or `SUNSUBSCRIBE`."""
        (link.channels.add if name == b"SSUBSCRIBE" else link.channels.discard)(channel)
        link.say(resp(name.lower(), channel, len(link.channels)))


class PlayedTopology:
    """Which server has a channel: the first, unless the test says otherwise."""

    def __init__(self, servers: Sequence[PlayedServer]) -> None:
        self.servers = list(servers)
        self.places: dict[bytes, PlayedServer | None] = {}
        self.tags: dict[Address, str | Exception] = {}
        self.looks: list[float] = []
        """When the servers were looked up."""
        self.on_refresh: Callable[[], Awaitable[None]] | None = None
        self.confirmed: list[tuple[Address, float]] = []
        """Servers that were asked about before they were connected to again, and since when they may be others."""
        self.on_confirm: Callable[[], Awaitable[None]] | None = None
        self.link = LinkOptions(
            username=None, password=None, ssl=None, connect_timeout=OPTIONS.connect_timeout, client_name=""
        )

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    trouble: str = ""

    async def ask(self, refusal: Any, words: Any) -> Any:
        return refusal

    async def refresh(self, *, routine: bool = False) -> None:
        self.looks.append(asyncio.get_running_loop().time())
        if self.on_refresh is not None:
            await self.on_refresh()

    async def confirm(self, address: Address, since: float) -> None:
        self.confirmed.append((address, since))
        if self.on_confirm is not None:
            await self.on_confirm()

    def addresses(self) -> Sequence[Address]:
        return [server.address for server in self.servers]

    def address_for(self, channel: bytes) -> Address | None:
        place = self.places.get(channel, self.servers[0] if self.servers else None)
        return None if place is None else place.address

    def tag_for(self, address: Address) -> str:
        tag = self.tags.get(address, address.host)
        if isinstance(tag, Exception):
            raise tag
        return tag

    async def execute(
        self, words: Sequence[Sequence[Any]], begun: Callable[[], object] = unnoticed, *, has_deadline: bool = False
    ) -> list[Any]:
        raise NotImplementedError


class PlayedNode:
    """Subscriptions, and what they said."""

    def __init__(self, servers: Sequence[PlayedServer], options: RedisOptions) -> None:
        self.servers = servers
        self.topology = PlayedTopology(servers)
        self.tasks = WatchedTasks()
        self.heard: list[tuple[bytes, bytes]] = []
        self.restored: list[bytes] = []
        self.on_received: Callable[[Sequence[tuple[bytes, bytes]]], Awaitable[None] | None] = lambda _: None
        self.on_restored: Callable[[Sequence[bytes]], None] = self.restored.extend
        self.publishing: Callable[[bytes, bytes], Awaitable[Any]] = self.publish
        self.subscriptions = Subscriptions(
            self.topology,
            self.tasks,
            receive=self._receive,
            probe=lambda channel, nonce: self.publishing(channel, nonce),
            probe_channel=lambda tag: b"probe:" + tag.encode(),
            restored=lambda channels: self.on_restored(channels),
            options=options,
        )
        for server in servers:
            listen(*server.address, server.accept)

    async def publish(self, channel: bytes, data: bytes) -> None:
        for server in self.servers:
            server.publish(channel, data)

    def _receive(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[None] | None:
        self.heard.extend(messages)
        return self.on_received(messages)

    async def replaced_at(self) -> float:
        """Wait until the only server was connected to once more; when that was."""
        accepted = self.servers[0].accepted
        while self.servers[0].accepted == accepted:  # noqa: ASYNC110 # a connection has no event
            await asyncio.sleep(BRIEF / 2)
        return asyncio.get_running_loop().time()

    async def probed(self) -> None:
        """Wait until the next probe has come back."""
        count = sum(self.subscriptions.lag.counts)
        while sum(self.subscriptions.lag.counts) == count:  # noqa: ASYNC110 # a probe has no event
            await asyncio.sleep(BRIEF / 2)

    @property
    def is_healthy(self) -> bool:
        return self.subscriptions.health()[0]

    @property
    def trouble(self) -> str:
        """What health says is wrong."""
        is_healthy, detail = self.subscriptions.health()
        assert not is_healthy
        return detail


@asynccontextmanager
async def hearing(servers: int = 1, **options: Any) -> AsyncIterator[PlayedNode]:
    """Started subscriptions at so many servers: "a", "b" and so on."""
    node = PlayedNode([PlayedServer("abcdef"[number]) for number in range(servers)], replace(OPTIONS, **options))
    try:
        await node.subscriptions.start()
        yield node
        assert not node.tasks.failures
    finally:
        await node.subscriptions.stop()
    await asyncio.sleep(0)
    assert len(node.tasks) == 0
    assert not any(server.links for server in node.servers)
