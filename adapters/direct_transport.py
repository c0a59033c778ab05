"""A connection that a server has handed over: the outbound side, which writes finished frames.

A broadcast costs one write of shared bytes for each recipient that keeps up. What a slow client does not take waits in
its outbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from socketspec.adapters.handover import RawConnection
from socketspec.connection.outbox import Backpressure, Outbox, Overflow
from socketspec.connection.waiting import Waiting
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.telemetry.counters import Counters

__all__ = ("DirectTransport",)

JOINED_BYTES: Final = 65_536
"""Bytes of messages that are joined for one write, at most."""


@lru_cache(maxsize=32)
def _key(format: Format, deflate_bits: int) -> tuple[Format, int]:
    """The same object for all connections that share their frames, so that it can be compared by identity."""
    return format, deflate_bits


def _ignore_slow() -> None:
    """In the place of `on_slow` before the engine has set it, and once the connection is gone."""


class DirectTransport:
    """Writes finished frames: at once while the client keeps up, else by way of the connection's outbox."""

    __slots__ = (
        "_close_deadline",
        "_closing",
        "_counters",
        "_direct",
        "_drained",
        "_format",
        "_is_full",
        "_is_gone",
        "_key",
        "_limits",
        "_on_slow",
        "_outbox",
        "_raw",
        "_waiting",
        "_write",
    )

    can_ping: bool = True

    def __init__(
        self, raw: RawConnection, format: Format, limits: Backpressure, counters: Counters, waiting: Waiting
    ) -> None:
        self._raw = raw
        self._counters = counters
        self._waiting = waiting
        self._write = raw.write
        self._format = format
        self._key = _key(format, raw.deflate_bits)
        self._limits = limits
        self._direct = True
        """Whether messages may be written at once: nothing waits, and the connection is neither closing nor gone."""
        self._is_full = False
        self._is_gone = False
        self._closing: tuple[int, str] | None = None
        self._outbox: Outbox | None = None
        self._drained: asyncio.Future[None] | None = None
        self._close_deadline: asyncio.TimerHandle | None = None
        self._on_slow: Callable[[], None] = _ignore_slow

    @property
    def on_slow(self) -> Callable[[], None]:
        """Called once when the client does not keep up. The engine sets it."""
        return self._on_slow

    @on_slow.setter
    def on_slow(self, call: Callable[[], None]) -> None:
        self._on_slow = call

    @property
    def buffered(self) -> int:
        """Bytes that wait: in the outbox, and those that the server has not sent yet."""
        if self._direct:
            return 0
        return self._raw.buffered + (0 if self._outbox is None else self._outbox.size)

    def write(self, *messages: Message) -> None:
        """Write `messages`, in order, or queue them behind what waits."""
        # The hot path of a fan-out: mostly, the frame that was made for one recipient is the one for the next as well.
        if not self._direct:
            self._queue(messages)
        elif len(messages) == 1:
            message = messages[0]
            shared = message.shared  # what `_shared` does; to call it would cost as much as all the rest
            if shared is None or shared[0] is not self._key:
                shared = message.shared = (self._key, self._frame(message))
            self._write(shared[1])
            self._counters.sent_bytes += len(shared[1])
        else:
            first, *rest = messages
            joined = first.joined
            # With exclusions, two members may get different messages between the same first and last one.
            if joined is None or joined[0] is not self._key or joined[1] != rest:
                frames = [self._shared(message) for message in messages]
                data = b"".join(frames) if sum(map(len, frames)) <= JOINED_BYTES else b""
                joined = first.joined = (self._key, rest, data)
            if joined[2]:
                self._write(joined[2])
                self._counters.sent_bytes += len(joined[2])
            else:  # too much for one write: a client that takes nothing would make us keep more than its bound
                for message in messages:
                    self.write(message)

    def _shared(self, message: Message) -> bytes:
        """The message's frame, made (and compressed) once for all connections with this format and compression."""
        shared = message.shared
        if shared is None or shared[0] is not self._key:
            shared = message.shared = (self._key, self._frame(message))
        frame: bytes = shared[1]
        return frame

    def _frame(self, message: Message) -> bytes:
        return self._raw.encode(message.data(self._format), binary=self._format is Format.MSGPACK)

    def _queue(self, messages: tuple[Message, ...]) -> None:
        if self._closing is not None or self._is_gone:
            return
        if self._outbox is None:
            self._outbox = Outbox(self._limits, self._format, self._waiting, self.give_up)
        for message in messages:
            pushed = self._outbox.push(message)
            if pushed is Overflow.FULL:
                self.give_up()
                return
            if pushed is Overflow.DROPPED:
                self._counters.dropped += 1
        self._waiting.keep_to_limit()

    def full(self) -> None:
        """The client does not keep up: from now on messages wait."""
        self._direct = False
        self._is_full = True

    def writable(self) -> None:
        """The client has taken everything: write what waits, up to `JOINED_BYTES` at a time, until it is full again."""
        self._is_full = False
        while self._outbox and not self._is_full:
            frames: list[bytes] = []
            size = 0
            while self._outbox and size < JOINED_BYTES:
                frames.append(self._shared(self._outbox.pop()))
                size += len(frames[-1])
            self._write(b"".join(frames))
            self._counters.sent_bytes += size
        if self._is_full or self._is_gone:
            return
        self._outbox = None
        self._has_drained()
        if self._closing is not None:
            self._cancel_close_deadline()
            self._raw.close(*self._closing)
        else:
            self._direct = True

    async def drain(self) -> None:
        """Wait until everything was taken, or the connection is gone."""
        if self._is_gone or not self._is_full:
            return
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._drained)

    def _has_drained(self) -> None:
        waiting, self._drained = self._drained, None
        if waiting is not None:
            waiting.set_result(None)

    def ping(self) -> None:
        """Send a ping frame, unless bytes wait: a client that does not read would not answer either."""
        if self._direct:
            self._raw.ping()

    def close(self, code: int, reason: str) -> None:
        """Send what waits, then a close frame; give up after the send timeout."""
        if self._closing is not None or self._is_gone:
            return
        self._closing = code, reason
        self._direct = False
        if self._outbox:
            loop = asyncio.get_running_loop()
            self._close_deadline = loop.call_later(self._limits.send_timeout, self._raw.abort)
        else:
            self._raw.close(code, reason)

    def give_up(self) -> None:
        """The client is too slow, or has taken nothing for too long: drop what waits, and report it."""
        self._forget()
        self._on_slow()

    def gone(self) -> None:
        """The connection has ended."""
        self._is_gone = True
        self._direct = False
        self._forget()
        self._on_slow = _ignore_slow
        self._cancel_close_deadline()
        self._has_drained()

    def _forget(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            outbox.clear()

    def _cancel_close_deadline(self) -> None:
        if self._close_deadline is not None:
            self._close_deadline.cancel()
            self._close_deadline = None

    def abort(self) -> None:
        """Send nothing more."""
        self._raw.abort()
