"""Sentinels that say what a test has them say, about real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import hiredis

from tests.servers import Server

__all__ = ("PlayedSentinels", "hello", "played_sentinels")

HOST = "127.0.0.1"


class PlayedSentinel(asyncio.Protocol):
    """A Sentinel that says what it is told to: `reply` is what it answers to SENTINEL MASTER."""

    def __init__(self, says: dict[str, str], asked: list[str]) -> None:
        self._says = says
        self._asked = asked
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._reader.feed(data)
        while request := self._reader.gets():
            words = [word.decode().upper() for word in request]
            self._asked.append(" ".join(words[:2]))
            self._transport.write(self._answer(words))

    def _answer(self, words: Sequence[str]) -> bytes:
        if words[0] == "HELLO":
            return hello(mode="sentinel")
        if words[:2] == ["SENTINEL", "MASTER"]:
            return array(*(text for pair in self._says.items() for text in pair))
        named = self._says.get("promoted", self._says["port"])
        return array(HOST, named) if words[:2] == ["SENTINEL", "GET-MASTER-ADDR-BY-NAME"] else b"+OK\r\n"


def hello(**fields: str) -> bytes:
    """A reply to HELLO."""
    said = {"server": "redis", "version": "7.0.0", "mode": "standalone", "role": "master"} | fields
    return array(*(word for pair in said.items() for word in pair))


def array(*words: str) -> bytes:
    """A reply of texts."""
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in words)


class PlayedSentinels:
    """Three of them. `says[i]` is what Sentinel i knows of its primary."""

    def __init__(self, primary: Server) -> None:
        self.says = [{"ip": HOST, "port": str(primary.port), "flags": "master", "config-epoch": "1"} for _ in range(3)]
        self.asked: list[str] = []
        self.url = ""

    def say(self, **fields: str) -> None:
        """All of them."""
        for says in self.says:
            says.update({name.replace("_", "-"): value for name, value in fields.items()})


@asynccontextmanager
async def played_sentinels(primary: Server) -> AsyncIterator[PlayedSentinels]:
    played = PlayedSentinels(primary)
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(partial(PlayedSentinel, says, played.asked), HOST, 0) for says in played.says]
    hosts = ",".join(f"{HOST}:{server.sockets[0].getsockname()[1]}" for server in servers)
    played.url = f"redis+sentinel://{hosts}/mymaster"
    try:
        yield played
    finally:
        for server in servers:
            server.close()
