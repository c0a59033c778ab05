"""A connection's outbound side on any ASGI server: everything is written through ``send``."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from types import CoroutineType
from typing import Any

from socketspec.concurrency.tasks import Tasks
from socketspec.connection.outbox import Backpressure, Outbox, Overflow
from socketspec.connection.waiting import Waiting
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.telemetry.counters import Counters
from socketspec.text import close_reason, get_logger

__all__ = ("ASGITransport", "Event", "Send")

logger: logging.Logger = get_logger("socketspec.asgi")

Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]


class _Suspended:
    """A coroutine that was begun outside a task and now has to wait. Awaiting this continues it."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        waits_for = self._waits_for
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                step: Callable[[Any], Any] = self._coroutine.throw
                argument: Any = error
            else:
                step, argument = self._coroutine.send, sent
            try:
                waits_for = step(argument)
            except StopIteration:
                return


class _StalledError(Exception):
    """The server took nothing within the send timeout."""


class ASGITransport:
    """Writes through ASGI's `send`.

    While the server takes messages without waiting, each `send` is run to its end within `write`: no task, no queue.
    The first one that has to wait is handed to a writer task, and later messages wait behind it in the outbox.
    `send` runs in a context of its own, so the context variables of middleware around it are always this
    connection's; but middleware must not rely on `asyncio.current_task()` in there.
    """

    can_ping: bool = False

    def __init__(
        self, send: Send, format: Format, limits: Backpressure, tasks: Tasks, counters: Counters, waiting: Waiting
    ) -> None:
        self._send = send
        self._waiting = waiting
        self._counters = counters
        self._format = format
        self._binary = format is Format.MSGPACK
        self._limits = limits
        self._tasks = tasks
        self._run = contextvars.copy_context().run
        self._direct = True
        """Whether messages may be sent at once: nothing waits, and the connection is neither closing nor gone."""
        self._outbox = Outbox(limits, format, waiting, self._give_up)
        self._writer: asyncio.Task[None] | None = None
        self._idle: asyncio.Event | None = None
        self._close: tuple[int, str] | None = None
        self._gone = False
        self.on_slow: Callable[[], None] = self.abort
        self.on_closing: Callable[[], None] = lambda: None
        """Called when we are about to close the connection."""

    @property
    def buffered(self) -> int:
        """Bytes in the outbox."""
        return self._outbox.size

    def write(self, *messages: Message) -> None:
        """Send `messages` now, in order, or queue them behind what waits."""
        # The hot path of a fan-out: the ASGI event is made once for all recipients of a format, and no task is needed.
        for message in messages:
            if not self._direct:
                self._queue(message)
                continue
            shared = message.shared
            if shared is None or shared[0] is not self._format:
                shared = message.shared = (self._format, self._event(message))
            self._counters.sent_bytes += len(message.data(self._format))
            awaitable = self._send(shared[1])
            if type(awaitable) is not CoroutineType:
                self._start_writer(awaitable)  # some servers return an awaitable of their own
                continue
            try:
                waits_for = self._run(awaitable.send, None)
            except StopIteration:
                continue
            except Exception as error:
                self._lost(error)
            else:
                self._start_writer(_Suspended(awaitable, waits_for))

    def _queue(self, message: Message) -> None:
        if self._close is not None or self._gone:
            return
        pushed = self._outbox.push(message)
        if pushed is Overflow.FULL:
            self._give_up()
            return
        if pushed is Overflow.DROPPED:
            self._counters.dropped += 1
        self._waiting.keep_to_limit()

    def _give_up(self) -> None:
        self._outbox.clear()
        self.on_slow()

    def _event(self, message: Message) -> Event:
        if self._binary:
            return {"type": "websocket.send", "bytes": message.data(self._format)}
        return {"type": "websocket.send", "text": message.text(self._format)}

    def _start_writer(self, first: Awaitable[None] | None) -> None:
        self._direct = False
        self._idle = asyncio.Event()
        self._writer = self._run(self._tasks.spawn, self._write_out(first, self._idle), name="websocket writer")
        if self._writer.done():  # eager tasks may have finished already
            self._writer = None

    async def _write_out(self, first: Awaitable[None] | None, idle: asyncio.Event) -> None:
        try:
            if first is not None:
                await self._timed(first)
            while self._outbox and not self._gone:
                message = self._outbox.pop()
                await self._timed(self._send(self._event(message)))
                self._counters.sent_bytes += len(message.data(self._format))
            if self._close is not None and not self._gone:
                code, reason = self._close
                event = {"type": "websocket.close", "code": code, "reason": close_reason(reason)}
                try:
                    await self._timed(self._send(event))
                except (_StalledError, OSError):
                    raise
                except Exception:
                    # daphne (autobahn) sends only 1000 and 3000-4999; at any other code the connection would stay open.
                    await self._timed(self._send({**event, "code": 1000}))
        except _StalledError:
            self._gone = True
            self._give_up()
        except Exception as error:
            self._lost(error)
        finally:
            self._writer = None
            self._direct = self._close is None and not self._gone
            idle.set()

    async def _timed(self, sending: Awaitable[None]) -> None:
        limit = asyncio.timeout(self._limits.send_timeout)
        try:
            async with limit:
                await sending
        except TimeoutError as error:
            if limit.expired():
                raise _StalledError from error
            raise  # the socket's own: the connection is lost, not slow

    def _lost(self, error: Exception) -> None:
        """The server cannot send any more. It tells the reader, too, which then ends the connection."""
        logger.debug("Sending failed: %r", error)
        self._gone = True
        self._direct = False
        self._outbox.clear()

    async def drain(self) -> None:
        """Wait until everything was handed to the server."""
        if self._writer is not None and self._idle is not None:
            await self._idle.wait()

    async def flush(self) -> None:
        """Wait until what is buffered and the close frame are out, at most the send timeout."""
        try:
            async with asyncio.timeout(self._limits.send_timeout):
                await self.drain()
        except TimeoutError:
            logger.debug("Closed before everything was sent")

    def ping(self) -> None:
        """ASGI has no ping."""
        raise RuntimeError("ASGI cannot send ping frames; look at can_ping first")

    def close(self, code: int, reason: str) -> None:
        """Send what waits, then a close frame."""
        if self._close is None:
            self._close = (code, reason)
            self._direct = False
            self.on_closing()
            if self._writer is None and not self._gone:
                self._start_writer(None)

    def abort(self) -> None:
        """Send nothing more."""
        self._gone = True
        self._direct = False
        self._outbox.clear()
        if self._writer is not None:
            self._writer.cancel()
        if self._idle is not None:  # a writer that is cancelled before its first step does not set it
            self._idle.set()
