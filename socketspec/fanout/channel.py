"""One topic on this node: its members, its queue, and how far its fan-out has come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from itertools import chain, groupby, islice
from typing import Final

from socketspec.protocol.encoding import Message, Write
from socketspec.protocol.publications import Topic

__all__ = ("Recipients", "Slices")


Recipients = tuple[tuple[str, Write], ...]
"""Connection ids, and how to write to each."""


class Slices:
    """How far a fan-out in slices has come, and with which message it begins for those who joined meanwhile.

    Messages are counted from the first that is written in slices.
    """

    __slots__ = ("_batch", "_before_batch", "_places", "_recipients", "_skipped", "drained", "reached")

    def __init__(self) -> None:
        self.drained: asyncio.Event = asyncio.Event()
        """Set when the queue is empty."""
        self.reached: int = 0
        """How many of the batch's recipients have been written to."""
        self._batch: tuple[Message, ...] = ()
        self._recipients: Recipients = ()
        self._places: dict[str, int] | None = None
        self._before_batch = 0
        """How many messages came before the batch."""
        self._skipped: dict[str, int] = {}
        """By connection id: the number of the first message that a late joiner gets. Who gets all is not listed."""

    def begin(self, batch: tuple[Message, ...], recipients: Recipients) -> None:
        """Go on with the next batch of the queue."""
        self._before_batch += len(self._batch)
        self._skipped = {id: count for id, count in self._skipped.items() if count > self._before_batch}
        self._batch, self._recipients, self._places, self.reached = batch, recipients, None, 0

    def skip(self, id: str, queued: int) -> None:
        """Start this member after the current batch and the `queued` messages."""
        self._skipped[id] = self._before_batch + len(self._batch) + queued

    def shares(self, recipients: Recipients) -> Sequence[tuple[Recipients, tuple[Message, ...]]]:
        """What of the batch each of `recipients` gets: all of it, or its end if they joined meanwhile."""
        if not self._skipped:
            return ((recipients, self._batch),)
        before = self._before_batch
        shares = groupby(recipients, key=lambda recipient: self._skipped.get(recipient[0], before) - before)
        return [(tuple(group), self._batch[first:]) for first, group in shares if first < len(self._batch)]

    def rest(self, id: str, queue: deque[Message]) -> tuple[Message, ...]:
        """What of the batch and the queue has not been written to a member yet."""
        if self._places is None:
            self._places = {id: place for place, (id, _) in enumerate(self._recipients)}
        written = len(self._batch) if self._places.get(id, -1) < self.reached else 0
        first = max(self._skipped.get(id, 0) - self._before_batch, written)
        return tuple(islice(chain(self._batch, queue), first, None))


MESSAGES_A_WRITE: Final = 32
"""Publications of one topic that are joined for one write to each member, at most. With as many in the queue, local
publishers wait for the fan-out."""
MESSAGES_BEHIND: Final = 256
"""With as many publications queued for one topic, whoever delivers them is asked to wait before reading more."""


class Channel:
    """One topic's local members."""

    __slots__ = ("_recipients", "caught_up", "members", "queue", "ready", "references", "slices", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic: Topic = topic
        self.members: dict[str, Write] = {}
        """How to write to each member, by connection id."""
        self.references: int = 0
        """How often it was acquired and not released; the broker's subscription lasts while that is more than 0."""
        self.ready: asyncio.Future[None] | None = None
        """Done once the subscription stands; None before anybody has subscribed."""
        self.queue: deque[Message] = deque()
        self.slices: Slices | None = None
        """None while nothing is written in slices."""
        self.caught_up: asyncio.Future[None] | None = None
        """Done when a queue that was long is empty; None while nobody waits for that."""
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
        """`part` of `snapshot` as it is now: without those who have left, the others with their newest `write`."""
        if self._recipients is snapshot:
            return part
        return tuple((id, self.members[id]) for id, _ in part if id in self.members)

    def behind(self) -> Awaitable[None] | None:
        """What to await until a long queue has been written; None if it is not long."""
        if len(self.queue) < MESSAGES_BEHIND:
            return None
        if self.caught_up is None:
            self.caught_up = asyncio.get_running_loop().create_future()
        return asyncio.shield(self.caught_up)  # if one that waits is cancelled, the others go on waiting

    def has_caught_up(self) -> None:
        """Tell those who wait that the queue is empty, or was given up."""
        waiting, self.caught_up = self.caught_up, None
        if waiting is not None:
            waiting.set_result(None)

    def take(self) -> tuple[Message, ...]:
        """Take the next messages off the queue, to be written together."""
        if len(self.queue) <= MESSAGES_A_WRITE:
            taken = tuple(self.queue)
            self.queue.clear()
            return taken
        return tuple(self.queue.popleft() for _ in range(MESSAGES_A_WRITE))
