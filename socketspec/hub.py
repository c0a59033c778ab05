"""Fan-out on one node: which local connections want a topic, and handing each publication to all of them.

A publication is encoded once per format, and each recipient costs one `transport.write`: no task, lock or copy. Topics
with many members are served in slices, so that one fan-out does not hold the event loop; order per topic is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from socketspec.backend import Broker, Publication, Topic
from socketspec.connection import Connection
from socketspec.tasks import Tasks
from socketspec.wire import Message

__all__ = ("Hub",)

logger: logging.Logger = logging.getLogger("socketspec.hub")

SLICE: Final = 1000
"""Recipients served before the event loop gets a turn."""
PUBLISHER_WAITS: Final = 64
"""Publications queued for one topic at which local publishers wait for the fan-out to catch up."""
MAX_QUEUED: Final = 10_000
"""Publications queued for one topic at which further ones are dropped, with an error in the log."""

Write = Callable[[Message], None]
Recipients = tuple[tuple[str, Write], ...]


class Channel:
    """One topic's local members."""

    __slots__ = ("_recipients", "drained", "members", "queue", "ready", "references")

    def __init__(self) -> None:
        self.members: dict[str, Write] = {}
        """How to write to each member, by connection id."""
        self.references: int = 0
        """Joins under way or done; the broker's subscription lasts while there is one."""
        self.ready: asyncio.Future[None] | None = None
        self.queue: deque[tuple[Message, tuple[str, ...]]] = deque()
        self.drained: asyncio.Event | None = None
        """Set when the queue is empty; None while nothing is sliced."""
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


def _current(channel: Channel, snapshot: Recipients, part: Recipients) -> Recipients:
    """`part` of a snapshot without those who have left meanwhile, and with the others' newest way to be written to."""
    if channel.recipients() is snapshot:
        return part
    return tuple((id, channel.members[id]) for id, _ in part if id in channel.members)


class Hub:
    """The local members of every topic."""

    def __init__(self, broker: Broker, tasks: Tasks) -> None:
        self._broker = broker
        self._tasks = tasks
        self._channels: dict[Topic, Channel] = {}
        self._written = 0

    def __len__(self) -> int:
        return len(self._channels)

    async def acquire(self, topic: Topic) -> None:
        """Have `topic` delivered to this node: returns when the subscription stands. Raises what the broker raises."""
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = Channel()
        channel.references += 1
        try:
            while channel.ready is None or not channel.ready.done():
                if channel.ready is None:
                    channel.ready = asyncio.get_running_loop().create_future()
                    await self._subscribe(topic, channel.ready)
                else:
                    await asyncio.shield(channel.ready)
        except BaseException:
            await self.release(topic)
            raise

    async def _subscribe(self, topic: Topic, ready: asyncio.Future[None]) -> None:
        try:
            await self._broker.subscribe(topic)
        except Exception as error:
            self._channels[topic].ready = None
            ready.set_exception(error)
            ready.exception()  # seen here: there may be nobody else waiting
            raise
        except BaseException:
            self._channels[topic].ready = None
            ready.set_result(None)  # only this joiner was cancelled: the next one that waits subscribes in its place
            raise
        ready.set_result(None)

    async def release(self, topic: Topic) -> None:
        """Undo one `acquire`."""
        channel = self._channels.get(topic)
        if channel is None:
            return
        channel.references -= 1
        if channel.references <= 0:
            del self._channels[topic]
            if channel.ready is not None:
                await self._broker.unsubscribe(topic)

    def add(self, topic: Topic, conn: Connection, write: Write | None = None) -> None:
        """Deliver `topic` to `conn` from now on, through `write` if given. Needs an `acquire` first."""
        self._channels[topic].add(conn.id, write if write is not None else conn.transport.write)

    def remove(self, topic: Topic, conn: Connection) -> None:
        """Stop delivering to `conn`."""
        channel = self._channels.get(topic)
        if channel is not None:
            channel.remove(conn.id)

    def deliver(self, topic: Topic, publications: Sequence[Publication]) -> None:
        """Hand publications that arrived together to the topic's local members, in order."""
        channel = self._channels.get(topic)
        if channel is None or not channel.members:
            return
        for publication in publications:
            message = Message(publication.event, publication.payload, room=topic.name, position=publication.position)
            if channel.drained is None and len(channel.members) <= SLICE:
                self._write(channel.recipients(), message, publication.exclude)
            elif len(channel.queue) >= MAX_QUEUED:
                logger.error("Fan-out of %r is %d messages behind: dropped %r", topic.name, MAX_QUEUED, message)
            else:
                channel.queue.append((message, publication.exclude))
        if channel.queue and channel.drained is None:
            channel.drained = asyncio.Event()
            self._tasks.spawn(self._serve(channel, channel.drained), name=f"fan-out {topic.name!r}")

    async def _serve(self, channel: Channel, drained: asyncio.Event) -> None:
        try:
            while channel.queue:
                message, exclude = channel.queue.popleft()
                recipients = channel.recipients()
                for start in range(0, len(recipients), SLICE):
                    self._write(_current(channel, recipients, recipients[start : start + SLICE]), message, exclude)
                    await asyncio.sleep(0)
        finally:
            channel.drained = None
            drained.set()

    def _write(self, recipients: Recipients, message: Message, exclude: tuple[str, ...]) -> None:
        self._written += len(recipients)
        if exclude:
            recipients = tuple(recipient for recipient in recipients if recipient[0] not in exclude)
        for id, write in recipients:
            try:
                write(message)
            except Exception:
                logger.exception("Writing %r to connection %s failed", message, id)

    async def breathe(self, topic: Topic) -> None:
        """Let the event loop turn after much was written, and wait while `topic`'s fan-out is far behind.

        Without it a publisher in a tight loop would fill the buffers of clients that never got a chance to read.
        """
        channel = self._channels.get(topic)
        if channel is not None and channel.drained is not None and len(channel.queue) >= PUBLISHER_WAITS:
            await channel.drained.wait()
        if self._written >= SLICE:
            self._written = 0
            await asyncio.sleep(0)
