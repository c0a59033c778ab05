"""All clients together, and the officer who throws users out; they live while the run lets them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random

import httpx

from tests.cluster.torture.book import Book, Order
from tests.cluster.torture.common import PLAYERS
from tests.cluster.torture.ground import Ground, Node
from tests.cluster.torture.player import Player

__all__ = ("Crowd",)

OF_A_USER = 3
"""Players who are the same user."""


class Crowd:
    """The clients of a run. `seed` says what each of them wishes to do, one after the other."""

    def __init__(self, ground: Ground, book: Book, seed: str) -> None:
        self._ground = ground
        self._book = book
        self._random = Random(f"{seed} officer")
        self._go = asyncio.Event()
        self._officer_is_idle = True
        self._ordered_away = ""
        """The user who is being thrown out: nodes may have heard of it before the order is acknowledged."""
        self._generation = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.players = [
            Player(f"p{number}", f"u{number // OF_A_USER}", f"{seed} p{number}", book, self._any_node)
            for number in range(PLAYERS)
        ]

    def begin(self) -> None:
        """All come to life, and stand still at first."""
        self._tasks = [asyncio.create_task(player.play(self._go), name=player.name) for player in self.players]
        self._tasks.append(asyncio.create_task(self._keep_order(), name="officer"))

    async def end(self) -> None:
        """All leave for good. Raises what one of them failed with."""
        self.check_alive()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(player.end() for player in self.players))

    def check_alive(self) -> None:
        """Raise what a client or the officer failed with: that is a fault of the test."""
        for task in self._tasks:
            if task.done():
                task.result()

    def live(self) -> None:
        """Go on."""
        self._go.set()

    def stand_still(self) -> None:
        """Everybody ends what they are about to do, and begins nothing."""
        self._go.clear()

    def restless(self) -> list[str]:
        """Who is still waiting for something."""
        self.check_alive()
        found = [f"{player} waits for {list(player.asking.values())}" for player in self.players if not player.is_idle]
        return found if self._officer_is_idle else [*found, "an order to the nodes is not acknowledged"]

    def users(self) -> list[str]:
        """All that somebody is connected as, or will be."""
        return sorted({name for player in self.players for name in (player.user, player.connected_as)})

    def on(self, node: Node) -> list[Player]:
        """Whose connection to the present process of `node` is open."""
        return [one for one in self.players if one.is_open and one.node is node and one.life == node.life]

    def ordered_away(self) -> frozenset[str]:
        """Connections that nodes may be closing for an order that is not acknowledged yet."""
        return self._connections_of(self._ordered_away)

    def _any_node(self, random: Random) -> Node:
        return random.choice(self._ground.nodes)

    async def _keep_order(self) -> None:
        while True:
            self._officer_is_idle = True
            await asyncio.sleep(self._random.uniform(0.5, 2.0))
            await self._go.wait()
            self._officer_is_idle = False
            self._ordered_away = user = self._random.choice(self.players).user
            await (self._revoke(user) if self._random.random() < 0.4 else self._disconnect(user))
            self._ordered_away = ""

    async def _disconnect(self, user: str) -> None:
        before = self._connections_of(user)
        await self._until_acknowledged(
            f"/disconnect/{user}", lambda: Order(time.monotonic(), "disconnected", user, before)
        )

    async def _revoke(self, user: str) -> None:
        def done() -> Order:
            self._generation += 1
            self._book.revoked.append(user)
            self._book.revoked_at[user] = time.monotonic()
            everybody = self._connections_of(user)
            for player in self.players:
                if player.user == user:
                    player.user = f"{user.partition('.')[0]}.{self._generation}"
            return Order(time.monotonic(), "revoked", user, everybody)

        await self._until_acknowledged(f"/revoke/{user}", done)

    async def _until_acknowledged(self, path: str, done: Callable[[], Order]) -> None:
        """Ask one node after the other: an order that failed is given again."""
        while True:
            node = self._random.choice(self._ground.nodes)
            lost_before = self._book.lost_data_at
            try:
                if node.is_live:
                    await node.ask("POST", path)
                    if self._book.lost_data_at == lost_before:
                        self._book.orders.append(done())
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.2)

    def _connections_of(self, user: str) -> frozenset[str]:
        return frozenset(player.id for player in self.players if player.is_open and player.connected_as == user)
