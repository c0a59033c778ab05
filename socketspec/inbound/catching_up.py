"""From a client's position in a room to its live messages: held, read a page at a time, sent no faster than it takes.

What is new is held while what was missed is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from socketspec.backend.protocols import HistoryStore
from socketspec.connection.connection import Connection
from socketspec.connection.sender import MAX_MESSAGE
from socketspec.errors import BackendError
from socketspec.fanout.hub import Hub
from socketspec.protocol.encoding import OVERHEAD, Message, encode_payload
from socketspec.protocol.publications import Position, Publication, Topic
from socketspec.protocol.spans import HISTORY_LOST, Span
from socketspec.protocol.spans import unrecovered as unrecovered_row
from socketspec.text import cut, get_logger, sendable

__all__ = ("CatchingUp", "Held", "Keep", "Lag", "unrecovered")

logger: logging.Logger = get_logger("socketspec.events")

PAGE: Final = 100
"""Messages of a history that are read at once."""
MAX_HELD: Final = 10_000
"""Live messages that wait for one client while it resumes, of all its rooms."""
MAX_HELD_BYTES: Final = 4_194_304
"""Bytes that wait for it then, payloads of live messages and of what was read."""


class Keep:
    """What one resume holds in memory: bounded for all its rooms together."""

    def __init__(self) -> None:
        self.messages: int = 0
        self.bytes: int = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be held."""
        return self.messages > MAX_HELD or self.bytes > MAX_HELD_BYTES

    def change(self, messages: int, size: int) -> None:
        """So many messages more, or with negative numbers fewer."""
        self.messages += messages
        self.bytes += size


class Held:
    """Takes a room's live messages until the client has what came before. Where they are too many, it forgets them
    all: they are in the history, or the client is told that they are lost.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep: Keep = keep
        self._messages: list[Message] = []
        self.overflowed: bool = False

    def __bool__(self) -> bool:
        return bool(self._messages)

    def __call__(self, *messages: Message) -> None:
        """What the fan-out writes to."""
        if not self.overflowed:
            self.keep.change(len(messages), sum(len(message.payload) for message in messages))
            self._messages += messages
            if self.keep.is_full:
                self.take()
                self.overflowed = True

    def take(self) -> list[Message]:
        """What is held, which is held no longer."""
        taken, self._messages = self._messages, []
        self.keep.change(-len(taken), -sum(len(message.payload) for message in taken))
        return taken


@dataclass(slots=True)
class Lag:
    """How far a client is behind in one room."""

    room: str
    topic: Topic
    held: Held
    seen: Span = field(default_factory=Span)
    """What the client has."""
    page: Sequence[Publication] = ()
    """What follows, as far as it has been read."""
    has_more: bool = False
    """Whether more follows in the history."""
    is_verified: bool = False
    """Whether the history can be read on from what the client has."""
    keep: Keep = field(default_factory=Keep)

    @property
    def is_long(self) -> bool:
        """Whether something has to be replayed."""
        return bool(self.page) or self.has_more

    def unseen(self, messages: Iterable[Message]) -> list[Message]:
        """Of `messages`, which arrive in this order, those that the client has not got. It gets them now."""
        new: list[Message] = []
        for message in messages:
            position = message.position
            if position is None:
                if message.event == HISTORY_LOST:
                    self.seen.fork()
                new.append(message)
            elif not self.seen.has(position):
                new.append(message)
                if self.seen.last is not None:  # else it stays unknown what came before
                    self.seen.got(position)
        return new

    def has_seen(self, messages: Iterable[Message]) -> None:
        """The client has got `messages`: what is read from now on follows them."""
        for message in messages:
            if message.position is not None:
                self.seen.got(message.position)

    def lose(self) -> None:
        """Something is lost: nobody can say what the history that there is now has to do with what the client has."""
        self.has_more = False
        self.set_page(())
        self.seen.fork()
        self.is_verified = False

    def set_page(self, page: Sequence[Publication]) -> None:
        """Keep another page."""
        self.keep.change(0, _size(page) - _size(self.page))
        self.page = page


class _Hole(LookupError):
    """The history misses something that should be in it."""


class CatchingUp:
    """Brings clients from their positions to live messages. `max_buffer`: bytes that may wait for one connection."""

    def __init__(self, history: HistoryStore, hub: Hub, *, max_buffer: int) -> None:
        self._history = history
        self._hub = hub
        self._share = max_buffer // 4  # what else is sent to the client meanwhile has to fit, too

    async def begin(self, lag: Lag, since: Position) -> int:
        """Go on from `since`: how many messages follow. From now on `run` sends them.

        Raises `LookupError` where they are not all there, and `BackendError`.
        """
        limit = 0 if lag.keep.is_full else PAGE
        page = await self._history.read(lag.topic, since=since, limit=limit)
        _check(page, since)
        count = len(page)
        if count == limit:
            newest = [item.position for item in await self._history.read(lag.topic, limit=1)]
            if not newest or newest[0] is None or newest[0].epoch != since.epoch:
                raise _Hole
            count = max(newest[0].offset - since.offset, len(page))
        lag.seen, lag.is_verified, lag.has_more = Span(since), True, count > len(page)
        lag.set_page(page)
        return count

    async def run(self, conn: Connection, lag: Lag) -> None:
        """Send what was missed, then what came meanwhile, and let the room through directly.

        Where something is lost after all, the client is told before it gets anything newer.
        """
        while _is_in(conn, lag):
            try:
                if await self._step(conn, lag):
                    return
            except LookupError as error:
                self._tell(conn, lag, unrecovered("history_lost", str(error)))
            except BackendError as error:
                logger.error("Resuming room %r failed for connection %s: %s", lag.room, conn.id, error)
                self._tell(conn, lag, unrecovered("failed"))

    async def _step(self, conn: Connection, lag: Lag) -> bool:
        """Send one page, or read one, or send what was held; True when the room is let through."""
        if lag.page:
            page = [_message(lag.room, item) for item in lag.page]
            await self._send(conn, lag, page)
            lag.has_seen(page)
            lag.set_page(())
        elif lag.has_more or lag.held.overflowed:
            await self._read_on(lag)
        elif lag.held:
            await self._send(conn, lag, lag.unseen(lag.held.take()))
        else:
            self._let_through(conn, lag)
            return True
        return False

    async def _read_on(self, lag: Lag) -> None:
        lag.has_more = lag.held.overflowed = False  # from here on it holds again, so nothing falls in between
        since = lag.seen.last
        if since is None or not lag.is_verified:
            raise _Hole
        page = await self._history.read(lag.topic, since=since, limit=PAGE)
        _check(page, since)
        lag.has_more = len(page) == PAGE
        lag.set_page(page)

    def _tell(self, conn: Connection, lag: Lag, row: dict[str, Any]) -> None:
        lag.lose()
        conn.send(Message("__resume__", encode_payload({"rooms": {lag.room: row}})))

    async def _send(self, conn: Connection, lag: Lag, messages: Iterable[Message]) -> None:
        """Send `messages`, and wait whenever the client has to take some first. Nothing goes to who has left."""
        unlooked = self._share
        for message in messages:
            size = len(message.payload) + OVERHEAD
            if unlooked + size > self._share:
                await self._give_way(conn, size)
                unlooked = 0
            if not _is_in(conn, lag):
                return
            conn.send(message)
            unlooked += size

    async def _give_way(self, conn: Connection, size: int) -> None:
        """Let the event loop turn, and wait until a message of `size` bytes finds half of the buffer empty, or all."""
        while conn.is_open:
            await asyncio.sleep(0)
            self._hub.settle()  # else what was sent just now would not show yet
            if conn.transport.buffered + size <= 2 * self._share:
                return
            await conn.transport.drain()
            if not conn.transport.buffered:
                return

    def _let_through(self, conn: Connection, lag: Lag) -> None:
        topic, write = lag.topic, conn.transport.write
        if lag.seen.last is None:
            self._hub.add(topic, conn.id, write)
            return

        def write_unseen(*messages: Message) -> None:
            # A fan-out under way may still come with what was replayed; with the first newer one it is past that.
            is_past = any(item.position is not None and lag.seen.is_beyond(item.position) for item in messages)
            if is_past:
                self._hub.add(topic, conn.id, write)
            if new := lag.unseen(messages):
                write(*new)

        self._hub.add(topic, conn.id, write_unseen)


def _is_in(conn: Connection, lag: Lag) -> bool:
    return conn.is_open and conn.topics.get(lag.room) is lag.topic


def unrecovered(reason: str, message: str = "") -> dict[str, Any]:
    """What the answer says of a room that could not be recovered."""
    row = unrecovered_row(reason)
    return {**row, "message": sendable(cut(message, MAX_MESSAGE))} if message else row


def _message(room: str, item: Publication) -> Message:
    return Message(item.event, item.payload, room=room, position=item.position)


def _check(page: Sequence[Publication], since: Position) -> None:
    """Raise `_Hole` unless `page` follows `since` without one."""
    for expected, item in enumerate(page, since.offset + 1):
        if item.position is None or item.position[:2] != (expected, since.epoch):
            raise _Hole


def _size(page: Sequence[Publication]) -> int:
    return sum(len(item.payload) for item in page)
