"""A connection of a `SocketApp` on a line that was handed over: finished frames out, messages straight into the engine.

This is where the fast path earns its name: a broadcast costs one write of shared bytes for each recipient, a message
from a client one call of the dispatcher, and an idle connection neither a task nor a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, Final

from socketspec.adapters.handover import HandOver, Line
from socketspec.connection.connection import Connection
from socketspec.connection.outbox import Backpressure, Outbox, Overflow
from socketspec.connection.states import State
from socketspec.lifecycle.admission import Admission
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.messages import Message
from socketspec.runtime.engine import Engine
from socketspec.runtime.engines import drain_soon
from socketspec.telemetry.counters import Counters

__all__ = ("DirectTransport", "take_over")

LARGEST: Final = 16
"""How many times `max_payload_size` a message may have to be answered with PAYLOAD_TOO_LARGE; larger ones close."""
LEAST_LIMIT: Final = 1_048_576
"""Bytes that a message may have, however small `max_payload_size` is, before it closes the connection."""
BATCH: Final = 65_536
"""Bytes of waiting messages that are joined for one write, once the client takes some again."""


async def take_over(hand_over: HandOver, engine: Engine, admission: Admission, handshake: Handshake) -> None:
    """Serve an accepted connection from now on. Returns after the `on_connect` hooks: the rest is driven by events."""
    session = _Session(engine, hand_over, admission.format)
    if admission.identity is None:
        session.line.max_size = engine.settings.max_first_message
    try:
        session.conn = await engine.open(admission, handshake, session.transport)
    except BaseException:
        session.line.abort()
        raise
    session.begin()


def _max_size(engine: Engine) -> int:
    return max(LEAST_LIMIT, LARGEST * engine.settings.max_payload_size)


class _Session:
    """What one connection is to its server: a `Sink`."""

    __slots__ = ("_end", "_engine", "conn", "line", "transport")

    def __init__(self, engine: Engine, hand_over: HandOver, format: Format) -> None:
        self._engine = engine
        self._end: int | None = None
        self.conn: Connection | None = None
        self.line: Line = hand_over(self)
        self.line.max_size = _max_size(engine)
        self.line.stall_timeout = engine.settings.backpressure.send_timeout
        self.transport: DirectTransport = DirectTransport(
            self.line, format, engine.settings.backpressure, engine.counters
        )

    def begin(self) -> None:
        """The connection is made: its messages may come, and so may its end, which may have come already."""
        if self._end is not None and self.conn is not None:
            self._engine.lost(self.conn, self._end)
        self.line.go_on()

    def received(self, data: str | bytes) -> None:
        conn = self.conn
        if conn is None:
            return
        pending = self._engine.receive(conn, data, binary=type(data) is bytes)
        if pending is not None:
            self.line.hold()
            conn.held = True
            self._engine.tasks.spawn(self._settle(conn, pending), name=f"message of {conn.id}")

    async def _settle(self, conn: Connection, pending: Coroutine[Any, Any, None]) -> None:
        try:
            await pending
        finally:
            if conn.state is State.OPEN:  # it may have authenticated just now
                self.line.max_size = _max_size(self._engine)
            conn.held = False
            self.line.go_on()

    def too_large(self) -> None:
        if self.conn is not None:
            self._engine.oversized(self.conn)

    def heard(self) -> None:
        if self.conn is not None:
            self.conn.clock.last_heard = self._engine.now()

    def full(self) -> None:
        self.transport.full()

    def writable(self) -> None:
        self.transport.writable()

    def stalled(self) -> None:
        self.transport.give_up()

    def shutting_down(self) -> None:
        drain_soon()

    def lost(self, code: int, reason: str) -> None:
        self.transport.gone()
        if self.conn is None:
            self._end = code
        else:
            self._engine.lost(self.conn, code)


@lru_cache(maxsize=32)
def _key(format: Format, deflate_bits: int) -> tuple[Format, int]:
    """One object for all connections that share their frames."""
    return format, deflate_bits


def _nobody() -> None:
    """Is told of a slow client when there is nobody left to tell."""


class DirectTransport:
    """Finished frames, written at once while the client keeps up; the connection's outbox where it does not."""

    __slots__ = (
        "_closing",
        "_counters",
        "_direct",
        "_drained",
        "_format",
        "_is_full",
        "_is_gone",
        "_key",
        "_last_moment",
        "_limits",
        "_line",
        "_on_slow",
        "_outbox",
        "_write",
    )

    can_ping: bool = True

    def __init__(self, line: Line, format: Format, limits: Backpressure, counters: Counters | None = None) -> None:
        self._line = line
        self._counters = counters or Counters()
        self._write = line.write
        self._format = format
        self._key = _key(format, line.deflate_bits)
        self._limits = limits
        self._direct = True
        """Whether what comes may be written at once: nothing waits, and the connection is neither closing nor gone."""
        self._is_full = False
        self._is_gone = False
        self._closing: tuple[int, str] | None = None
        self._outbox: Outbox | None = None
        self._drained: asyncio.Future[None] | None = None
        self._last_moment: asyncio.TimerHandle | None = None
        self._on_slow: Callable[[], None] = _nobody

    @property
    def on_slow(self) -> Callable[[], None]:
        """Called once when the client does not keep up. The engine sets it."""
        return self._on_slow

    @on_slow.setter
    def on_slow(self, call: Callable[[], None]) -> None:
        self._on_slow = call

    @property
    def buffered(self) -> int:
        """Bytes that wait in the outbox and in the line."""
        if self._direct:
            return 0
        return self._line.buffered + (0 if self._outbox is None else self._outbox.size)

    def write(self, *messages: Message) -> None:
        """Write `messages`, in order, or queue them behind what waits."""
        # The hot path of a fan-out. What was made for the last recipient is mostly what the next one gets.
        if not self._direct:
            self._queue(messages)
        elif len(messages) == 1:
            message = messages[0]
            shared = message.shared  # as in `_shared`; a call would cost as much as all the rest
            if shared is None or shared[0] is not self._key:
                shared = message.shared = (self._key, self._frame(message))
            self._write(shared[1])
            self._counters.sent_bytes += len(shared[1])
        else:
            first, *rest = messages
            joined = first.joined
            # Members that are excluded from different messages get different ones between the same first and last.
            if joined is None or joined[0] is not self._key or joined[1] != rest:
                frames = [self._shared(message) for message in messages]
                data = b"".join(frames) if sum(map(len, frames)) <= BATCH else b""
                joined = first.joined = (self._key, rest, data)
            if joined[2]:
                self._write(joined[2])
                self._counters.sent_bytes += len(joined[2])
            else:  # too much for one write: a client that takes nothing would be given more than its bound
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
        return self._line.encode(message.data(self._format), binary=self._format is Format.MSGPACK)

    def _queue(self, messages: tuple[Message, ...]) -> None:
        if self._closing is not None or self._is_gone:
            return
        if self._outbox is None:
            self._outbox = Outbox(self._limits, self._format)
        for message in messages:
            pushed = self._outbox.push(message)
            if pushed is Overflow.FULL:
                self._outbox = None
                self._on_slow()
                return
            if pushed is Overflow.DROPPED:
                self._counters.dropped += 1

    def full(self) -> None:
        """The client does not keep up: from now on messages wait."""
        self._direct = False
        self._is_full = True

    def writable(self) -> None:
        """The client has taken all: write what waits, some of it at a time."""
        self._is_full = False
        while self._outbox and not self._is_full:
            frames: list[bytes] = []
            size = 0
            while self._outbox and size < BATCH:
                frames.append(self._shared(self._outbox.pop()))
                size += len(frames[-1])
            self._write(b"".join(frames))
            self._counters.sent_bytes += size
        if self._is_full or self._is_gone:
            return
        self._outbox = None
        self._has_drained()
        if self._closing is not None:
            self._forget_last_moment()
            self._line.close(*self._closing)
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
        """Send a ping frame. While bytes wait there is no use: a client that does not read would not answer."""
        if self._direct:
            self._line.ping()

    def close(self, code: int, reason: str) -> None:
        """Send what waits, then a close frame; give up after the send timeout."""
        if self._closing is not None or self._is_gone:
            return
        self._closing = code, reason
        self._direct = False
        if self._outbox:
            loop = asyncio.get_running_loop()
            self._last_moment = loop.call_later(self._limits.send_timeout, self._line.abort)
        else:
            self._line.close(code, reason)

    def give_up(self) -> None:
        """The client has taken nothing for too long: nothing that waits is of use."""
        self._outbox = None
        self._on_slow()

    def gone(self) -> None:
        """The line is lost."""
        self._is_gone = True
        self._direct = False
        self._outbox = None
        self._on_slow = _nobody
        self._forget_last_moment()
        self._has_drained()

    def _forget_last_moment(self) -> None:
        if self._last_moment is not None:
            self._last_moment.cancel()
            self._last_moment = None

    def abort(self) -> None:
        """Send nothing more."""
        self._line.abort()
