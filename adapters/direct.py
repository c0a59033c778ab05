"""A connection that a server has handed over: the session, which passes each of its messages straight to the engine.

A message from a client costs one call of the dispatcher; an idle connection has neither a task nor a timer.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

from socketspec.adapters.direct_transport import DirectTransport
from socketspec.adapters.handover import HandOver, RawConnection
from socketspec.connection.connection import Connection
from socketspec.connection.states import State
from socketspec.lifecycle.admission import Admission
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.runtime.engine import Engine
from socketspec.runtime.engines import drain_soon

__all__ = ("take_over",)

ANSWERED_SIZES: Final = 16
"""A message may have so many times `max_payload_size` and is still answered with PAYLOAD_TOO_LARGE; a larger one closes
the connection."""
LEAST_LIMIT: Final = 1_048_576
"""Bytes that a message may have, however small `max_payload_size` is, before it closes the connection."""


async def take_over(hand_over: HandOver, engine: Engine, admission: Admission, handshake: Handshake) -> None:
    """Serve an accepted connection from now on. Returns after the `on_connect` hooks: the rest is driven by events."""
    session = _DirectSession(engine, hand_over, admission.format)
    if admission.identity is None:
        session.raw.max_size = engine.settings.max_first_message
    try:
        session.conn = await engine.open(admission, handshake, session.transport)
    except BaseException:
        session.raw.abort()
        raise
    session.begin()


def _max_size(engine: Engine) -> int:
    return max(LEAST_LIMIT, ANSWERED_SIZES * engine.settings.max_payload_size)


class _DirectSession:
    """The `Receiver` of one connection."""

    __slots__ = ("_end", "_engine", "conn", "raw", "transport")

    def __init__(self, engine: Engine, hand_over: HandOver, format: Format) -> None:
        self._engine = engine
        self._end: int | None = None
        """The close code, if the connection ended before it was open."""
        self.conn: Connection | None = None
        self.raw: RawConnection = hand_over(self)
        self.raw.max_size = _max_size(engine)
        self.raw.keep(engine.settings.max_payload_size, self._skipped)  # what has more is refused, and only counted
        self.raw.stall_timeout = engine.settings.backpressure.send_timeout
        self.transport: DirectTransport = DirectTransport(
            self.raw, format, engine.settings.backpressure, engine.counters, engine.waiting
        )

    def begin(self) -> None:
        """`conn` is there now: its messages may come, and its end is reported if it has come already."""
        if self._end is not None and self.conn is not None:
            self._engine.lost(self.conn, self._end)
        self.raw.go_on()

    def received(self, data: str | bytes) -> None:
        conn = self.conn
        if conn is None:
            return
        pending = self._engine.receive(conn, data, binary=type(data) is bytes)
        if pending is not None:
            self.raw.hold()
            conn.held = True
            self._engine.tasks.spawn(self._finish_and_go_on(conn, pending), name=f"message of {conn.id}")

    async def _finish_and_go_on(self, conn: Connection, pending: Coroutine[Any, Any, None]) -> None:
        try:
            await pending
        finally:
            if conn.state is State.OPEN:  # it may have authenticated just now
                self.raw.max_size = _max_size(self._engine)
            conn.held = False
            self.raw.go_on()

    def _skipped(self, size: int) -> None:
        self._engine.counters.received_bytes += size

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
