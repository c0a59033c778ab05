"""Fan-out on one node: hands what is published to a topic to all its local members.

A publication is encoded once per format, and no recipient costs a task, a lock or a copy. Publications of one topic
that are ready in the same turn of the event loop are joined: each member is written to once, with all of them. So the
cost of a message falls as load rises. Large fan-outs are written in slices, so that none holds the event loop.

Messages of one topic arrive in order. Nothing is promised about two topics, or about a topic and what is sent to one
connection alone; but in a single process, a client sees what a handler broadcast before its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from time import perf_counter
from typing import Final

from socketspec.backend.protocols import Broker, FollowingBroker
from socketspec.concurrency.tasks import Tasks
from socketspec.fanout.channel import MESSAGES_A_WRITE, Channel, Recipients, Slices
from socketspec.protocol.encoding import OVERHEAD, Message, Write
from socketspec.protocol.publications import Publication, Topic
from socketspec.telemetry.counters import Counters
from socketspec.telemetry.tracing import installed
from socketspec.text import get_logger

__all__ = ("Hub",)

logger: logging.Logger = get_logger("socketspec.hub")


WRITES_A_TURN: Final = 1000
"""Writes (recipients times messages) before the event loop gets a turn."""
PENDING_WRITES: Final = 16_000
"""With as many writes waiting, over all topics, local publishers let the event loop turn."""
HELD_BYTES: Final = 65_536
"""Bytes for single connections that may wait behind publications. More are written at once, so that whoever looks at
a connection's buffer sees them there."""
MAX_QUEUED: Final = 10_000
"""With as many publications queued for one topic, further ones are dropped, with an error in the log."""


def _end_spans(messages: Sequence[Message]) -> None:
    for message in messages:
        if message.span is not None:
            message.span.end()


class Hub:
    """The local members of every topic."""

    def __init__(self, broker: Broker, tasks: Tasks, counters: Counters) -> None:
        self._broker = broker
        self._following = broker if isinstance(broker, FollowingBroker) else None
        self._counters = counters
        self._tasks = tasks
        self._channels: dict[Topic, Channel] = {}
        self._waiting: dict[Topic, Channel] = {}
        """Channels with something to write in the loop's next turn."""
        self._sliced: set[Channel] = set()
        """Channels that are being written in slices."""
        self._after: list[tuple[Write, Message]] = []
        """Messages to single connections, to be written after the channels that wait."""
        self._after_size = 0
        self._pending = 0

    @property
    def topics(self) -> list[Topic]:
        """Those that this node hears, or is about to."""
        return list(self._channels)

    async def acquire(self, topic: Topic, *, has_history: bool = False) -> None:
        """Have `topic` delivered to this node; returns once it is subscribed to. Raises what the broker raises.

        With `has_history`, nothing that it keeps is missed unnoticed from then on.
        """
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = Channel(topic)
        channel.references += 1
        try:
            while channel.ready is None or not channel.ready.done():
                if channel.ready is None:
                    channel.ready = asyncio.get_running_loop().create_future()
                    await self._subscribe(topic, channel.ready, has_history=has_history)
                else:
                    await asyncio.shield(channel.ready)
        except BaseException:
            await self.release(topic)
            raise

    async def _subscribe(self, topic: Topic, ready: asyncio.Future[None], *, has_history: bool) -> None:
        try:
            await self._broker.subscribe(topic)
            if has_history and self._following is not None:
                await self._follow(self._following, topic)
        except Exception as error:
            self._channels[topic].ready = None
            ready.set_exception(error)
            ready.exception()  # marks it as seen: nobody else may be waiting, and asyncio would complain
            raise
        except BaseException:
            self._channels[topic].ready = None
            ready.set_result(None)  # only this caller was cancelled: the next one that waits subscribes in its place
            raise
        ready.set_result(None)

    async def _follow(self, broker: FollowingBroker, topic: Topic) -> None:
        try:
            await broker.follow(topic)
        except BaseException:
            await broker.unsubscribe(topic)
            raise

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

    def members(self, topic: Topic) -> list[str]:
        """The ids of the connections that `topic` is delivered to."""
        channel = self._channels.get(topic)
        return [] if channel is None else list(channel.members)

    def add(self, topic: Topic, id: str, write: Write) -> None:
        """Deliver `topic` to the connection `id` from now on, with `write`. Needs an `acquire` first."""
        channel = self._channels[topic]
        if id not in channel.members:
            self._write_waiting(channel)
            channel.add(id, write)
            if channel.slices is not None:
                channel.slices.skip(id, len(channel.queue))
        else:
            self._replace_write(channel, id, write)

    def _replace_write(self, channel: Channel, id: str, write: Write) -> None:
        """Write to a member in another way. What waits already takes the new way, after what was sent to it before."""
        channel.add(id, write)
        if self._waiting.pop(channel.topic, None) is not None:
            self.settle()
            self._serve(channel)

    def remove(self, topic: Topic, id: str, *, write_rest: bool) -> None:
        """Stop delivering to the connection `id`. With `write_rest`, what was published before is written first.

        Leave that out for connections that are lost: it would be in vain, and take long if many are lost at once.
        """
        channel = self._channels.get(topic)
        if channel is not None and id in channel.members:
            self._write_waiting(channel)
            if write_rest:
                self._write_rest(channel, id)
            channel.remove(id)

    def deliver(self, topic: Topic, publications: Sequence[Publication]) -> Awaitable[None] | None:
        """Hand publications that arrived together to the topic's local members, in order, in the loop's next turn.

        If `MESSAGES_BEHIND` publications wait then, returns what to await before reading more.
        """
        channel = self._channels.get(topic)
        if channel is None or not channel.members:
            return None
        members = len(channel.members)
        for publication in publications:
            self._counters.fanout_recipients.observe(members)
            message = Message(
                publication.event,
                publication.payload,
                room=topic.name,
                position=publication.position,
                exclude=publication.exclude,
            )
            if len(channel.queue) >= MAX_QUEUED:
                logger.error("Fan-out of %r is %d messages behind: dropped %r", topic.name, MAX_QUEUED, message)
            else:
                if publication.trace and (tracing := installed()) is not None:
                    message.span = tracing.delivering(topic, publication.event, publication.trace, members)
                channel.queue.append(message)
                self._pending += members
        if channel.slices is None:
            if not self._waiting:
                asyncio.get_running_loop().call_soon(self._take_turn)
            self._waiting[topic] = channel
        return channel.behind()

    def send(self, write: Write, message: Message) -> None:
        """Write to one connection, after what was published before in this turn of the loop.

        So the client sees a broadcast of a handler before the handler's answer.
        """
        self._counters.sent += 1
        if not self._waiting and not self._after:
            write(message)
            return
        self._after.append((write, message))
        self._after_size += len(message.payload) + OVERHEAD
        if self._after_size >= HELD_BYTES:
            self.settle()

    def finish(self, id: str) -> None:
        """Before a connection closes: write what was published to it so far."""
        self.settle()
        for channel in tuple(self._sliced):
            if id in channel.members:
                self._write_rest(channel, id)
                channel.remove(id)

    def _write_rest(self, channel: Channel, id: str) -> None:
        """Write to a member what a fan-out in slices has not written to it yet. It is still a member while that is
        written, because its `write` may replace itself."""
        if (slices := channel.slices) is not None:
            write, rest = channel.members[id], slices.rest(id, channel.queue)
            slices.skip(id, len(channel.queue))  # first: writing may close a slow client, which calls this again
            for start in range(0, len(rest), MESSAGES_A_WRITE):
                self._write(((id, write),), rest[start : start + MESSAGES_A_WRITE])

    def settle(self) -> None:
        """Write all that waits now, except what is written in slices."""
        while self._waiting:
            self._serve(self._waiting.pop(next(iter(self._waiting))))
        after, self._after, self._after_size = self._after, [], 0
        for write, message in after:
            try:
                write(message)
            except Exception:
                logger.exception("Writing %r failed", message)

    def _write_waiting(self, channel: Channel) -> None:
        """Write what waits for a channel before its members change: a join gets nothing older, a leave all of it."""
        if self._waiting and self._waiting.pop(channel.topic, None) is not None:
            self._serve(channel)

    def _take_turn(self) -> None:
        """Write what waits, as much as one turn of the event loop allows."""
        self._pending = written = 0
        while self._waiting:
            if written >= WRITES_A_TURN:
                asyncio.get_running_loop().call_soon(self._take_turn)
                return
            channel = self._waiting.pop(next(iter(self._waiting)))
            written += len(channel.members) * len(channel.queue)
            self._serve(channel)
        self.settle()

    def _serve(self, channel: Channel) -> None:
        recipients = channel.recipients()
        if len(recipients) * len(channel.queue) > WRITES_A_TURN:
            channel.slices = Slices()
            self._sliced.add(channel)
            self._tasks.spawn(self._serve_in_slices(channel, channel.slices), name=f"fan-out {channel.topic.name!r}")
            return
        while channel.queue:
            batch = channel.take()
            self._write(recipients, batch)
            _end_spans(batch)
        channel.has_caught_up()

    async def _serve_in_slices(self, channel: Channel, slices: Slices) -> None:
        try:
            while channel.queue:
                batch, recipients = channel.take(), channel.recipients()
                slices.begin(batch, recipients)
                step = max(1, WRITES_A_TURN // len(batch))
                for start in range(0, len(recipients), step):
                    slices.reached = start + step
                    for share in slices.shares(channel.current(recipients, recipients[start : start + step])):
                        self._write(*share)
                    await asyncio.sleep(0)
                _end_spans(batch)
        finally:
            channel.slices = None
            self._sliced.discard(channel)
            slices.drained.set()
            channel.has_caught_up()

    def _write(self, recipients: Recipients, messages: tuple[Message, ...]) -> None:
        began = perf_counter()
        excluded: set[str] = set()
        for message in messages:
            if message.exclude:
                excluded.update(message.exclude)
        for id, write in recipients:
            try:
                if id not in excluded:
                    write(*messages)
                elif theirs := tuple(message for message in messages if id not in message.exclude):
                    write(*theirs)
            except Exception:
                logger.exception("Writing %r to connection %s failed", messages, id)
        self._counters.sent += len(recipients) * len(messages)
        self._counters.fanout_seconds.observe(perf_counter() - began)

    async def breathe(self, topic: Topic) -> None:
        """Let the event loop turn after much was published, and wait while the fan-out of `topic` is behind.

        Otherwise a publisher in a tight loop would fill the buffers of clients that never get a chance to read.
        """
        channel = self._channels.get(topic)
        if self._pending >= PENDING_WRITES or (channel is not None and len(channel.queue) >= MESSAGES_A_WRITE):
            await asyncio.sleep(0)
            while channel is not None and channel.slices is not None and len(channel.queue) >= MESSAGES_A_WRITE:
                await channel.slices.drained.wait()
