"""What a run stands on: the servers of its mode, the nodes, and the links between them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx

from tests.cluster.torture.common import NODES, Line
from tests.cluster.torture.schedule import Mode
from tests.servers import Cluster, Proxy, Sentinels, Server
from tests.support import Server as Process

__all__ = ("Ground", "Node")

SOURCE = "import tests.cluster.torture.clock\nfrom tests.cluster.torture.node import app\n\n__all__ = ('app',)\n"
KEPT = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
"""Options of a single server: a restart finds all that was acknowledged."""
MARK = "torture:mark"
"""A key of the run's own, by which it knows what Redis itself has forgotten."""


class Node:
    """One place for a node: process after process, each with a journal of its own."""

    def __init__(self, number: int, folder: Path, url: str, broken: str) -> None:
        self.number = number
        self.life = 0
        """How many processes there were before this one."""
        self.is_frozen = False
        self._folder = folder
        self._environment = {"REDIS_URL": url, "TORTURE_BREAK": broken}
        self._read: dict[Path, int] = {}
        self.process = self._start()

    def __str__(self) -> str:
        return f"node {self.number}.{self.life}"

    @property
    def is_live(self) -> bool:
        """Whether its process runs, and is not frozen."""
        return not self.is_frozen and self.process.process.poll() is None

    def _start(self) -> Process:
        folder = self._folder / f"node{self.number}.{self.life}"
        folder.mkdir(parents=True)
        journal = folder / "journal"
        journal.touch()
        self._read[journal] = 0
        return Process.start(
            folder,
            SOURCE,
            options=("--log-level", "warning"),
            environment={**self._environment, "JOURNAL": str(journal)},
        )

    def start_again(self) -> None:
        """Begin the next process; does not wait for it."""
        self.life += 1
        self.is_frozen = False
        self.process = self._start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, and keep in mind whether it is frozen now."""
        self.process.process.send_signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self.is_frozen = number == signal.SIGSTOP

    def new_lines(self) -> Iterator[Line]:
        """Whole lines of the journals of all its processes that were not given before."""
        for path, begin in self._read.items():
            with path.open("rb") as file:
                file.seek(begin)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = begin + len(whole)
            for line in whole.splitlines():
                yield Line(*json.loads(line))

    def logs(self) -> dict[str, str]:
        """What each of its processes has written, by their names."""
        found = sorted(self._folder.glob(f"node{self.number}.*/server.log"))
        return {path.parent.name: path.read_text(encoding="utf-8", errors="replace") for path in found}

    async def ask(self, method: str, path: str, within: float = 8.0) -> Any:
        """One of its pages, parsed. Raises `httpx.HTTPError` for any other answer than 200, too."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.process.port}", timeout=within) as http:
            answer = await http.request(method, path)
            answer.raise_for_status()
            return answer.json()

    async def is_ready(self) -> bool:
        """What it says of itself, when asked."""
        try:
            await self.ask("GET", "/socket-health", 2.0)
        except httpx.HTTPError:
            return False
        return True


class Ground:
    """Servers, links and nodes, from the beginning of the ``async with`` to its end."""

    def __init__(self, mode: Mode, folder: Path, broken: str = "") -> None:
        self.mode = mode
        self.folder = folder
        self.nodes: list[Node] = []
        self.proxies: list[Proxy] = []
        """The link of each node, where there is a single server."""
        self._broken = broken
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        try:
            urls = await asyncio.to_thread(self._begin)
            self.nodes = [Node(number, self.folder, url, self._broken) for number, url in enumerate(urls)]
            await self.wait()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            node.process.kill()
        await asyncio.to_thread(self._stack.close)

    def _begin(self) -> list[str]:
        self.servers: Server | Sentinels | Cluster
        if self.mode == "sentinel":
            self.servers = self._stack.enter_context(Sentinels())
            return [self.servers.url] * NODES
        if self.mode == "cluster":
            self.servers = self._stack.enter_context(Cluster(replicas=True))
            return [self.servers.url] * NODES
        self.servers = self._stack.enter_context(Server(*KEPT))
        self.proxies = [self._stack.enter_context(Proxy(self.servers.port)) for _ in range(NODES)]
        return [proxy.url for proxy in self.proxies]

    async def wait(self) -> None:
        """Return when every process that runs answers."""
        await asyncio.gather(*(asyncio.to_thread(node.process.wait) for node in self.live()))

    def live(self) -> list[Node]:
        """The nodes that run and are not frozen."""
        return [node for node in self.nodes if node.is_live]

    @property
    def single(self) -> Server:
        """The one server of the mode ``single``."""
        assert isinstance(self.servers, Server)
        return self.servers

    @property
    def primaries(self) -> list[Server]:
        """Those that take writes now."""
        if isinstance(self.servers, Server):
            return [self.servers]
        return [self.servers.primary] if isinstance(self.servers, Sentinels) else self.servers.primaries

    def leave_mark(self) -> None:
        """Write what tells later whether a failover lost all: a primary that comes back empty may win the next one."""
        if isinstance(self.servers, Sentinels):
            self.servers.primary.ask("SET", MARK, "1", "EX", 3600)
            self.servers.primary.ask("WAIT", 1, 1000)

    def has_mark(self) -> bool:
        """Whether that is still there."""
        return not isinstance(self.servers, Sentinels) or self.servers.primary.ask("GET", MARK) is not None

    async def on_servers(self, act: Callable[[], object]) -> None:
        """Do what blocks to the servers, beside the clients."""
        await asyncio.to_thread(act)

    async def heal_servers(self) -> None:
        """Servers that were killed or stopped run again, and agree on who does what."""
        if not isinstance(self.servers, Server):
            await asyncio.to_thread(self.servers.heal)

    def restart(self, away: float, *, keep: bool) -> Callable[[], None]:
        """What ends the single server in good order, and starts it `away` seconds later; with its data, or without."""

        def act() -> None:
            import time

            server = self.single
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGTERM)
            while server.is_running:
                time.sleep(0.01)
            if not keep:
                for path in sorted(server.folder.glob("appendonlydir/*")):
                    path.unlink()
            time.sleep(away)
            server.revive()

        return act
