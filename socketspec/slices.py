"""How far a large fan-out has come that is written in slices, with a turn of the event loop between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import chain, groupby, islice

from socketspec.transport import Write
from socketspec.wire import Message

__all__ = ("Recipients", "Slices")

Recipients = tuple[tuple[str, Write], ...]
"""Connection ids, and how to write to each."""


class Slices:
    """How far a topic that is written in slices has come, and what of it is not for those who joined meanwhile."""

    __slots__ = ("_batch", "_joined", "_over", "_places", "_recipients", "drained", "reached")

    def __init__(self) -> None:
        self.drained: asyncio.Event = asyncio.Event()
        """Set when the queue is empty."""
        self.reached: int = 0
        """How many of the recipients have been written to."""
        self._batch: tuple[Message, ...] = ()
        self._recipients: Recipients = ()
        self._places: dict[str, int] | None = None
        self._over = 0
        self._joined: dict[str, int] = {}
        """Messages before what is for a member, by connection id, where that is more than `_over`, before the batch."""

    def begin(self, batch: tuple[Message, ...], recipients: Recipients) -> None:
        """Go on with what was taken from the queue."""
        self._over += len(self._batch)
        self._joined = {id: before for id, before in self._joined.items() if before > self._over}
        self._batch, self._recipients, self._places, self.reached = batch, recipients, None, 0

    def skip(self, id: str, queued: int) -> None:
        """Neither the batch nor the `queued` messages are for this member, or it has them already."""
        self._joined[id] = self._over + len(self._batch) + queued

    def shares(self, recipients: Recipients) -> Sequence[tuple[Recipients, tuple[Message, ...]]]:
        """The batch, and for those who joined in the midst of it, its end."""
        if not self._joined:
            return ((recipients, self._batch),)
        shares = groupby(recipients, key=lambda recipient: self._joined.get(recipient[0], self._over) - self._over)
        return [(tuple(group), self._batch[first:]) for first, group in shares if first < len(self._batch)]

    def rest(self, id: str, queue: deque[Message]) -> tuple[Message, ...]:
        """What a member's turn has not come for."""
        if self._places is None:
            self._places = {id: place for place, (id, _) in enumerate(self._recipients)}
        written = len(self._batch) if self._places.get(id, -1) < self.reached else 0
        first = max(self._joined.get(id, 0) - self._over, written)
        return tuple(islice(chain(self._batch, queue), first, None))
