"""One topic's members on this node, and how far its fan-out has come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from itertools import chain, groupby, islice
from typing import Final

from socketspec.protocol.messages import Message, Write
from socketspec.protocol.publications import Topic

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


MESSAGES_A_WRITE: Final = 32
"""Publications of one topic that are joined at most, and at which its local publishers wait for the fan-out."""
MESSAGES_BEHIND: Final = 256
"""Publications queued for one topic at which whoever delivers them is asked to wait before it reads more."""


class Channel:
    """One topic's local members."""

    __slots__ = ("_recipients", "caught_up", "members", "queue", "ready", "references", "slices", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic: Topic = topic
        self.members: dict[str, Write] = {}
        """How to write to each member, by connection id."""
        self.references: int = 0
        """Joins under way or done; the broker's subscription lasts while there is one."""
        self.ready: asyncio.Future[None] | None = None
        self.queue: deque[Message] = deque()
        self.slices: Slices | None = None
        """None while nothing is served in slices."""
        self.caught_up: asyncio.Future[None] | None = None
        """Done when the queue is empty; None while it is not long."""
        self._recipients: Recipients | None = None

    def add(self, id: str, write: Write) -> None:
        self.members[id] = write
        self._recipients = None

    def remove(self, id: str) -> None:
        self.members.pop(id, None)
        self._recipients = None

    def recipients(self) -> Recipients:
        """The members as a snapshot, rebuilt after a join or leave."""
        if self._recipients is None:
            self._recipients = tuple(self.members.items())
        return self._recipients

    def current(self, snapshot: Recipients, part: Recipients) -> Recipients:
        """`part` of a snapshot without those who have left, and with the others' newest way to be written to."""
        if self._recipients is snapshot:
            return part
        return tuple((id, self.members[id]) for id, _ in part if id in self.members)

    def behind(self) -> Awaitable[None] | None:
        """What ends when a long queue has been written; None where it is not long."""
        if len(self.queue) < MESSAGES_BEHIND:
            return None
        if self.caught_up is None:
            self.caught_up = asyncio.get_running_loop().create_future()
        return asyncio.shield(self.caught_up)  # one that waits may be cancelled, the others go on

    def has_caught_up(self) -> None:
        """The queue is empty, or given up."""
        waiting, self.caught_up = self.caught_up, None
        if waiting is not None:
            waiting.set_result(None)

    def take(self) -> tuple[Message, ...]:
        """What is next in the queue, joined."""
        if len(self.queue) <= MESSAGES_A_WRITE:
            taken = tuple(self.queue)
            self.queue.clear()
            return taken
        return tuple(self.queue.popleft() for _ in range(MESSAGES_A_WRITE))
