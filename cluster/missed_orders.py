"""Finds the orders that this node did not hear: its link was down when another node or a publisher gave them.

Orders are kept for some minutes, as a room's messages are. Whenever the link to them stands again, what was kept since
the last one that was heard is carried out, and every connection is checked for revocations: so also those are found
whose order the servers have lost, or that was given by a version which did not keep it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from socketspec.backend.protocols import HistoryStore
from socketspec.cluster.servers.backoff import QUICK, Backoff
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.protocol.orders import CHECK, KEPT
from socketspec.protocol.publications import Position, Publication, Topic

__all__ = ("MissedOrders",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

REMEMBERED: Final = 2 * KEPT.size
"""Positions that are remembered, so that no order is carried out twice."""


class MissedOrders:
    """What was heard of one control topic. `carry_out` gets what was missed."""

    def __init__(
        self, topic: Topic, history: HistoryStore, tasks: Tasks, carry_out: Callable[[Sequence[Publication]], None]
    ) -> None:
        self._topic = topic
        self._history = history
        self._tasks = tasks
        self._carry_out = carry_out
        self._last: Position | None = None
        """Up to here nothing was missed. None: nothing was kept when this node began."""
        self._heard: OrderedDict[Position, None] = OrderedDict()
        self._looking: asyncio.Task[None] | None = None
        self._looks_again = False

    async def begin(self) -> None:
        """Begin with what is published from now on. The topic is subscribed to. Raises `BackendError`."""
        if self._last is not None:
            return
        kept = await self._history.read(self._topic)
        for order in kept:  # given before: not this node's to carry out, whatever becomes of the history
            if order.position is not None:
                self._note(order.position)
        if kept:
            self._last = kept[-1].position

    def hear(self, orders: Sequence[Publication]) -> list[Publication]:
        """Of orders that arrive, those that are to be carried out. Where some before them are missing, it looks."""
        return [order for order in orders if self._is_new(order)]

    def look(self) -> None:
        """Look for what was missed, soon."""
        self._looks_again = True
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.spawn(self._look(), name=f"missed orders of {self._topic.namespace!r}")

    def _is_new(self, order: Publication) -> bool:
        position = order.position
        if position is None:  # by a version that does not keep them
            return True
        if position in self._heard:
            return False
        self._note(position)
        last = self._last
        if last is not None and position.epoch == last.epoch and position.offset <= last.offset + 1:
            self._last = max(last, position, key=lambda one: one.offset)
        elif position.offset == 1 and (last is None or position.epoch != last.epoch):
            self._last = position  # the first of a new life: what was kept before has ended, and was heard
        else:
            self.look()
        return True

    def _note(self, position: Position) -> None:
        self._heard[position] = None
        if len(self._heard) > REMEMBERED:
            self._heard.popitem(last=False)

    async def _look(self) -> None:
        backoff = Backoff(QUICK)
        while self._looks_again:
            self._looks_again = False
            await asyncio.sleep(0)  # what was read from the link before is carried out first
            try:
                kept = await self._read()
            except BackendError as error:
                logger.debug("Looking for missed orders is tried again: %s", error)
                self._looks_again = True
                await asyncio.sleep(backoff.next())
                continue
            missed = [order for order in kept if order.position is not None and order.position not in self._heard]
            for order in missed:
                if order.position is not None:
                    self._note(order.position)
            if kept:
                self._last = kept[-1].position
            if missed:
                logger.info("%d orders were missed, and are carried out now", len(missed))
            self._carry_out([*missed, CHECK])

    async def _read(self) -> Sequence[Publication]:
        since = self._last
        if since is not None:
            try:
                return await self._history.read(self._topic, since=since)
            except LookupError:
                pass  # another life or another line of the stream, or too much was given: look at all there is
        return await self._history.read(self._topic)
