"""The faults: each is done to the ground, lasts as long as its round says, and is healed when it returns."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tests.cluster.torture.book import Book
from tests.cluster.torture.common import LEASE
from tests.cluster.torture.crowd import Crowd
from tests.cluster.torture.ground import Ground, Node
from tests.cluster.torture.schedule import Round
from tests.server_proxy import Way
from tests.servers import Cluster, Sentinels, Server

__all__ = ("Faults",)


REPLICATED_WITHIN: Final = 1.0
"""Seconds after which a replica has what its primary acknowledged."""


class Faults:
    """Does to `ground` what a round says, and tells `book` what nobody can know any more because of it."""

    def __init__(self, ground: Ground, book: Book, crowd: Crowd) -> None:
        self._ground = ground
        self._book = book
        self._crowd = crowd

    async def strike(self, one: Round) -> None:
        """The fault of a round, from its beginning to its end."""
        began = time.monotonic()
        await self._ground.on_servers(self._ground.leave_mark)
        await self._by_name()[one.fault](one)
        await self._ground.heal_servers()
        if self._ground.mode != "single":  # a machine that is busy is reason enough for a replica to take over
            self._book.newest_may_be_lost(began - REPLICATED_WITHIN)
        for proxy in self._ground.proxies:
            proxy.pass_on()
        await self._ground.wait()

    async def notice_lost_data(self) -> None:
        """Tell the book where Redis itself forgot everything, once the servers are healed."""
        if not await asyncio.to_thread(self._ground.has_mark):
            self._book.data_is_lost()

    def kill(self, node: Node) -> None:
        """SIGKILL; the book learns which hooks nobody can say of whether they had to run."""
        there = self._crowd.on(node)
        asking = [(one.id, room) for one in there for _, room in one.asking.values()]
        is_resuming = [one.id for one in there if any(room.endswith("*") for _, room in one.asking.values())]
        node.process.kill()
        self._book.read(str(node), node.new_lines())
        self._book.sent_away |= self._crowd.ordered_away()
        self._book.node_dies(str(node), [one.id for one in there if one.id not in is_resuming], asking)

    def _by_name(self) -> dict[str, Callable[[Round], Awaitable[None]]]:
        return {
            "nothing": self._nothing,
            "node killed": self._node_killed,
            "node stopped": self._node_stopped,
            "node frozen briefly": self._node_frozen,
            "node frozen beyond its lease": self._node_frozen,
            "redis frozen briefly": self._redis_frozen,
            "redis frozen beyond a lease": self._redis_frozen,
            "clients of redis killed": self._clients_killed,
            "subscribers of redis killed": lambda one: self._clients_killed(one, "TYPE", "pubsub"),
            "clock of a node wrong": self._clock_wrong,
            "redis restarted with its data": self._redis_restarted,
            "redis away beyond a lease": self._redis_away,
            "redis restarted without its data": self._redis_emptied,
            "redis flushed": self._redis_flushed,
            "link of a node cut briefly": self._link_cut,
            "link of a node cut beyond a lease": self._link_cut,
            "link of a node cut upwards": lambda one: self._link_cut(one, "up"),
            "link of a node cut downwards": lambda one: self._link_cut(one, "down"),
            "all links cut beyond a lease": self._links_cut,
            "links reset": self._links_reset,
            "link of a node slow": self._link_slow,
            "node killed while another loses replies": self._replies_lost,
            "primary killed": self._primary_killed,
            "primary switched": self._primary_switched,
            "primary and a node killed": self._primary_and_node_killed,
        }

    def _is_taken_for_dead(self, node: Node, seconds: float, *, is_cut_off: bool = False) -> None:
        """The others will think so, unless the fault is brief. Call it before the fault."""
        if seconds <= LEASE / 2:
            return
        self._book.taken_for_dead.add(str(node))
        self._book.begun.update((one.id, room) for one in self._crowd.on(node) for _, room in one.asking.values())
        if is_cut_off:
            self._book.cut_off.add(str(node))

    # Nodes

    async def _nothing(self, one: Round) -> None:
        await asyncio.sleep(one.seconds)

    async def _node_killed(self, one: Round) -> None:
        node = self._ground.nodes[one.node]
        self.kill(node)
        await asyncio.sleep(one.seconds)
        node.start_again()

    async def _node_stopped(self, one: Round) -> None:
        node = self._ground.nodes[one.node]
        await asyncio.to_thread(node.process.stop)
        await asyncio.sleep(one.seconds)
        node.start_again()

    async def _node_frozen(self, one: Round) -> None:
        node = self._ground.nodes[one.node]
        self._is_taken_for_dead(node, one.seconds)
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(one.seconds)
        node.signal(signal.SIGCONT)

    async def _clock_wrong(self, one: Round) -> None:
        """Stays wrong until the clock of another node is: so the quiet is judged under it, too."""
        for node in self._ground.live():
            await node.ask("POST", f"/clock/{one.wrong_by if node.number == one.node else 0}")
        await asyncio.sleep(one.seconds)

    # Redis

    async def _redis_frozen(self, one: Round) -> None:
        for server in await asyncio.to_thread(lambda: self._ground.primaries):
            server.stop_for()
        await asyncio.sleep(one.seconds)
        for server in self._all_servers():
            if server.is_running:
                server.cont()

    def _all_servers(self) -> list[Server]:
        servers = self._ground.servers
        return [servers] if isinstance(servers, Server) else list(servers.servers)

    async def _redis_restarted(self, one: Round) -> None:
        await asyncio.to_thread(self._ground.restart(one.seconds, keep=True))

    async def _redis_away(self, one: Round) -> None:
        await asyncio.to_thread(self._ground.restart(one.seconds + LEASE, keep=True))

    async def _redis_emptied(self, one: Round) -> None:
        await asyncio.to_thread(self._ground.restart(one.seconds, keep=False))
        self._book.data_is_lost()

    async def _redis_flushed(self, one: Round) -> None:
        await asyncio.to_thread(self._ground.single.ask, "FLUSHALL")
        self._book.data_is_lost()
        await asyncio.sleep(one.seconds)

    async def _clients_killed(self, one: Round, *filters: str) -> None:
        for server in await asyncio.to_thread(lambda: self._ground.primaries):
            await asyncio.to_thread(server.drop_clients, *filters)
        await asyncio.sleep(one.seconds)

    async def _primary_killed(self, one: Round) -> None:
        servers = self._ground.servers
        if isinstance(servers, Sentinels):
            await asyncio.to_thread(servers.failover)
        elif isinstance(servers, Cluster):
            killed = await asyncio.to_thread(servers.kill_primary, one.node)
            await asyncio.to_thread(servers.wait_failover, killed)

    async def _primary_switched(self, one: Round) -> None:
        servers = self._ground.servers
        if isinstance(servers, Sentinels):
            await asyncio.to_thread(servers.switch)
        elif isinstance(servers, Cluster):
            replica = (await asyncio.to_thread(lambda: servers.replicas))[one.node]
            await asyncio.to_thread(replica.ask, "CLUSTER", "FAILOVER")
        await asyncio.sleep(one.seconds)

    async def _primary_and_node_killed(self, one: Round) -> None:
        node = self._ground.nodes[one.other]
        self._book.died_with_primary.add(str(node))
        self.kill(node)
        await self._primary_killed(one)
        self._ground.nodes[one.other].start_again()

    # Links

    async def _link_cut(self, one: Round, *ways: Way) -> None:
        proxy, node = self._ground.proxies[one.node], self._ground.nodes[one.node]
        self._is_taken_for_dead(node, one.seconds, is_cut_off=True)
        proxy.black_hole(*ways)
        await asyncio.sleep(one.seconds)
        proxy.pass_on()

    async def _links_cut(self, one: Round) -> None:
        for proxy in self._ground.proxies:
            proxy.refuse()
        await asyncio.sleep(one.seconds)
        for proxy in self._ground.proxies:
            proxy.pass_on()

    async def _links_reset(self, one: Round) -> None:
        for proxy in self._ground.proxies:
            proxy.reset()
        await asyncio.sleep(one.seconds)

    async def _link_slow(self, one: Round) -> None:
        self._ground.proxies[one.node].delay(one.seconds / 3)
        await asyncio.sleep(3 * one.seconds)

    async def _replies_lost(self, one: Round) -> None:
        """The survivors remove the dead node's members, and one of them does not hear what it has done."""
        node = self._ground.nodes[one.node]
        self.kill(node)
        await asyncio.sleep(0.8 * LEASE)
        proxy = self._ground.proxies[one.other]
        self._is_taken_for_dead(self._ground.nodes[one.other], one.seconds, is_cut_off=True)
        proxy.black_hole("down")
        await asyncio.sleep(one.seconds)
        proxy.reset()
        proxy.pass_on()
        node.start_again()
