"""The backends that the contract suite runs against. Another one is one more entry of `BACKENDS`.

The suite never starts a backend to begin with: tests get one that is started for the namespaces of `NAMESPACES`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from socketspec.backend.memory import MemoryBackend
from socketspec.backend.protocols import Backend
from socketspec.protocol.publications import Member, Publication, Topic
from tests.in_loop import InLoop, Picked

NAMESPACES = ("/", "/other", "/two")


@dataclass
class FakeClock:
    """A clock in seconds that moves when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    async def move(self, seconds: float) -> None:
        """Let `seconds` go by."""
        self.now += seconds


@dataclass
class Subject:
    """A started backend, and two ways to let time go by for it.

    `outlive` is for what is kept: on a real server it takes `seconds` from the remaining life of every key, and no
    time. `wait` is for what flows: on a real server it sleeps, so that tests keep it short.
    """

    backend: Backend
    outlive: Callable[[float], Awaitable[None]]
    wait: Callable[[float], Awaitable[None]]


class _Asked(Protocol):
    def ask(self, *words: str | bytes | int | float) -> Any: ...


@dataclass
class _Keys:
    """All keys of one prefix, on whichever server they are."""

    prefix: str
    servers: Callable[[], Sequence[_Asked]]

    def __iter__(self) -> Iterator[tuple[_Asked, str]]:
        for server in self.servers():
            for key in server.ask("KEYS", f"{self.prefix}:*"):
                yield server, key

    async def outlive(self, seconds: float) -> None:
        """Let every key end `seconds` earlier."""
        for server, key in self:
            ends = server.ask("PEXPIRETIME", key)
            if ends >= 0:
                server.ask("PEXPIREAT", key, ends - round(seconds * 1000))

    def assert_all_end(self) -> None:
        """Fail if a key would stay for ever."""
        staying = [key for server, key in self if server.ask("PEXPIRETIME", key) == -1]
        assert not staying, f"keys without an end: {staying}"


def deliver_nothing(_topic: Topic, _publications: Sequence[Publication]) -> None:
    """For whom it does not matter what arrives."""


def lose_nothing(_topic: Topic, _members: Sequence[Member]) -> None:
    """For whom it does not matter whose node dies."""


@asynccontextmanager
async def started_backend(backend: Backend) -> AsyncIterator[Backend]:
    """Start `backend` for every namespace that tests use; stopped at the end."""
    begun: list[str] = []
    try:
        for namespace in NAMESPACES:
            await backend.start(namespace, deliver_nothing, lose_nothing)
            begun.append(namespace)
        yield backend
    finally:
        for namespace in begun:
            await backend.stop(namespace, deliver_nothing)


@asynccontextmanager
async def memory() -> AsyncIterator[Subject]:
    """A memory backend with a clock of its own."""
    clock = FakeClock()
    async with started_backend(MemoryBackend(clock=clock)) as backend:
        yield Subject(backend, clock.move, clock.move)


_numbers = itertools.count(1)


@asynccontextmanager
async def redis(url: str, servers: Callable[[], Sequence[_Asked]]) -> AsyncIterator[Subject]:
    """A Redis backend with a prefix of its own; `servers` gives those that hold keys."""
    from socketspec.cluster.backend import RedisBackend

    keys = _Keys(f"contract-{os.getpid()}-{next(_numbers)}", servers)
    async with started_backend(RedisBackend(url, prefix=keys.prefix, linger=0.0)) as backend:
        yield Subject(backend, keys.outlive, asyncio.sleep)
    keys.assert_all_end()


Enter = Callable[[], AbstractAsyncContextManager[Subject]]


def _standalone(fixture: str) -> Callable[[pytest.FixtureRequest], Enter]:
    def make(request: pytest.FixtureRequest) -> Enter:
        server = request.getfixturevalue(fixture)
        return lambda: redis(server.url, lambda: [server])

    return make


def _sentinel(request: pytest.FixtureRequest) -> Enter:
    servers = request.getfixturevalue("sentinel_servers")
    return lambda: redis(servers.url, lambda: [servers.primary])


def _cluster(request: pytest.FixtureRequest) -> Enter:
    servers = request.getfixturevalue("cluster_servers")
    return lambda: redis(servers.url, lambda: servers.primaries)


BACKENDS: dict[str, Callable[[pytest.FixtureRequest], Enter]] = {
    "memory": lambda _request: memory,
    "standalone": _standalone("any_server"),
    "redis7": _standalone("redis7_server"),
    "sentinel": _sentinel,
    "cluster": _cluster,
}


@pytest.fixture(params=BACKENDS)
def subject(request: pytest.FixtureRequest) -> InLoop[Subject]:
    """The backend under test, started, with its time."""
    return InLoop(BACKENDS[request.param](request))


@pytest.fixture
def backend(subject: InLoop[Subject]) -> Picked[Subject, Backend]:
    """The backend under test, started."""
    return subject.pick(lambda entered: entered.backend)
