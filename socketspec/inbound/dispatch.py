"""From an inbound frame to a handler and its reply.

The order of checks: rate limit → size → parse and validate → middleware → dependencies → handler. (Origin and
authentication came before, at the handshake; where credentials come by message, nothing else is heard before them.)
Everything up to the handler is synchronous: a refused message costs no task. Handlers of one connection run side by
side, at most `max_in_flight` of them, then reading pauses; those of events registered with ``ordered=True`` run one
after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.concurrency.tasks import Tasks
from socketspec.connection.connection import Connection
from socketspec.connection.gone import is_disconnect
from socketspec.connection.hooks import Hooks
from socketspec.connection.states import State
from socketspec.declaration.refusals import as_event_error
from socketspec.declaration.registry import EventSpec, Registry
from socketspec.declaration.sending import Contracts
from socketspec.errors import (
    BackendError,
    CloseCode,
    ErrorCode,
    EventError,
    PayloadTooLarge,
    RateLimited,
    UnknownEvent,
    ValidationFailed,
)
from socketspec.inbound.limiter import Limiter
from socketspec.inbound.protocol_events import ProtocolEvents
from socketspec.protocol.decoding import Envelope, decode
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.protocol.names import CLIENT_EVENTS, is_reserved
from socketspec.telemetry.context import Requests, current_request, log_context
from socketspec.telemetry.counters import Counters
from socketspec.telemetry.debug_feed import DebugFeed
from socketspec.telemetry.log_pace import OnceAMinute
from socketspec.telemetry.tracing import Tracing, installed
from socketspec.text import did_you_mean, get_logger, one_line

__all__ = ("Dispatcher", "InboundLimits", "Receive")

logger: logging.Logger = get_logger("socketspec.events")

Pending = Coroutine[Any, Any, None]

SMALL: Final = 1024
"""Characters up to which a message is never worth a turn of the event loop."""
TURN: Final = 0.001
"""Seconds of parsing and validation of one connection's messages after which the event loop gets a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundLimits:
    """What clients may send, and what they are told of failures."""

    max_payload_size: int
    max_payload_items: int
    max_first_message: int
    """Bytes of a message from a client that has yet to authenticate."""
    max_in_flight: int
    debug: bool
    """Whether clients are told the text of exceptions."""


class Receive(Protocol):
    """Takes one message of a connection, see `Dispatcher.receive`."""

    def __call__(self, conn: Connection, data: str | bytes, *, binary: bool) -> Pending | None: ...


class Dispatcher:
    """Takes every inbound frame of an app's connections."""

    def __init__(
        self,
        registry: Registry,
        contracts: Contracts,
        limiter: Limiter | None,
        protocol_events: ProtocolEvents,
        hooks: Hooks,
        handlers: Tasks,
        requests: Requests,
        counters: Counters,
        feed: DebugFeed | None,
        limits: InboundLimits,
        now: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._contracts = contracts
        self._limiter = limiter
        self._protocol_events = protocol_events
        self._hooks = hooks
        self._handlers = handlers
        self._requests = requests
        self._counters = counters
        self._feed = feed
        self._limits = limits
        self._now = now
        self._unknown_line = OnceAMinute(now)

    def receive(self, conn: Connection, data: str | bytes, *, binary: bool) -> Pending | None:
        """Take one message. Where this returns a coroutine, await it before reading the next message.

        That is how reading pauses: the caller's socket fills up and TCP slows the client down.
        """
        now = self._now()
        conn.clock.last_heard = now
        self._counters.received_bytes += len(data)
        state = conn.state
        if conn.in_flight.leaving or (state is not State.OPEN and state is not State.AUTHENTICATING):
            return None
        if binary is not (conn.format is Format.MSGPACK) or (
            state is State.AUTHENTICATING and _is_larger(data, self._limits.max_first_message)
        ):
            self._refuse_frame(conn)
            return None
        if state is State.AUTHENTICATING and not self._is_credentials(conn, data):
            self._protocol_events.refuse_unauthenticated(conn)
            return None
        limiter = self._limiter
        if limiter is not None:
            try:
                wait = limiter.check(conn, now)
            except Exception as error:
                return self._failed(conn, None, None, error)  # a scope function of the user's
            if not isinstance(wait, float | int):
                return self._after_limit(conn, data, wait)
            if wait > 0:
                self._refuse(conn, wait, now)
                return None
        return self._take(conn, data, now)

    def _is_credentials(self, conn: Connection, data: str | bytes) -> bool:
        """Whether a client that has yet to authenticate does. Asked before the rate limit: anything else closes anyhow,
        and this may come again where the limit refuses it.
        """
        try:
            return decode(data, conn.format, max_items=self._limits.max_payload_items).event == "__refresh_auth__"
        except ValidationFailed:
            self._counters.count_event("unknown", "malformed")
            return False

    def oversized(self, conn: Connection) -> None:
        """A message was larger than the adapter reads; where this has not closed the connection, it does, with 1009."""
        self._counters.count_event("unknown", "too_large")
        if conn.state is State.AUTHENTICATING:
            self._protocol_events.refuse_unauthenticated(conn)

    def _refuse_frame(self, conn: Connection) -> None:
        """Close a connection for a message that is not looked into."""
        if conn.state is State.AUTHENTICATING:
            self._protocol_events.refuse_unauthenticated(conn)
            return
        expected = "binary MessagePack" if conn.format is Format.MSGPACK else "JSON text"
        error = ValidationFailed(f"This connection speaks {expected} frames.")
        conn.close(CloseCode.UNSUPPORTED_DATA, error=error)

    async def _after_limit(self, conn: Connection, data: str | bytes, verdict: Coroutine[Any, Any, float]) -> None:
        try:
            wait = await verdict
        except Exception as error:
            await self._failed(conn, None, None, error)
            return
        if wait > 0:
            self._refuse(conn, wait, self._now())
        elif conn.state is State.OPEN or conn.state is State.AUTHENTICATING:
            pending = self._take(conn, data, self._now())
            if pending is not None:
                await pending

    def _refuse(self, conn: Connection, wait: float, now: float) -> None:
        self._counters.rate_limited += 1
        self._counters.count_event("unknown", "rate_limited")
        self._turn_away(conn, RateLimited("Too many events.", details={"retry_after": round(wait, 3)}), now)

    def _turn_away(self, conn: Connection, error: EventError, now: float) -> None:
        """Answer a message that is refused unread; a client that goes on with those is closed."""
        if self._limiter is not None and self._limiter.is_abuse(conn, now):
            conn.close(CloseCode.RATE_LIMITED, error=error)
        else:
            conn.send_error(error, event=None)

    def _take(self, conn: Connection, data: str | bytes, now: float) -> Pending | None:
        """What has passed the rate limit."""
        limit = self._limits.max_payload_size
        if _is_larger(data, limit):
            self._counters.count_event("unknown", "too_large")
            error = PayloadTooLarge(f"A message may have {limit} bytes.", details={"max_payload_size": limit})
            self._turn_away(conn, error, now)
            return None
        pending = self._parse(conn, data, now)
        if len(data) > SMALL:
            conn.spent += self._now() - now
            if conn.spent > TURN and pending is None:
                conn.spent = 0.0
                return _breathe()  # else one with many costly messages would keep the event loop from everybody
        return pending

    def _parse(self, conn: Connection, data: str | bytes, now: float) -> Pending | None:
        try:
            envelope = decode(data, conn.format, max_items=self._limits.max_payload_items)
        except ValidationFailed as error:
            self._counters.count_event("unknown", "malformed")
            conn.send_error(error, event=None)
            return None
        spec = self._registry.events.get(envelope.event)
        if spec is None:
            return self._other(conn, envelope, now)
        conn.clock.last_active = now
        try:
            payload = spec.plan.payload.validate(envelope.payload) if spec.plan.payload is not None else None
        except EventError as error:
            self._counters.count_event(spec.name, "invalid")
            conn.send_error(error, event=envelope.event, id=envelope.id)
            return None
        except Exception as error:
            self._counters.count_event(spec.name, "error")
            # A validator of the user's raised something that Pydantic does not take for a refusal.
            return self._failed(conn, envelope.event, envelope.id, error)
        if self._feed is not None:
            self._feed.add("in", conn.id, envelope.event, data, None, session=conn.session.id)
        if conn.in_flight.count >= self._limits.max_in_flight:
            return self._when_free(conn, spec, payload, envelope.id)
        self._start(conn, spec, payload, envelope.id)
        return None

    def _other(self, conn: Connection, envelope: Envelope, now: float) -> Pending | None:
        """An event without a handler: one of the protocol's, or unknown."""
        if envelope.event in CLIENT_EVENTS:
            self._counters.count_event(envelope.event, "ok")
            number = next(self._requests.numbers)
            pending = self._protocol_events.handle(conn, envelope, number)
            return None if pending is None else self._guarded(conn, envelope, pending, number)
        conn.clock.last_active = now
        self._counters.count_event("unknown", "unknown")
        if is_reserved(envelope.event):
            error = UnknownEvent(
                f"{envelope.event[:80]!r} is reserved; a client may send {', '.join(sorted(CLIENT_EVENTS))}."
            )
        else:
            error = UnknownEvent(f"There is no event {envelope.event[:80]!r}.")
            error.hint = partial(did_you_mean, envelope.event, self._registry.events)
            self._say_unknown(error)
        conn.send_error(error, event=envelope.event[:200], id=envelope.id)
        return None

    def _say_unknown(self, error: UnknownEvent) -> None:
        if self._unknown_line.is_due() and error.hint is not None and error.hint():
            logger.warning("A client sent an event that nobody handles: %s", one_line(error))

    async def _guarded(self, conn: Connection, envelope: Envelope, pending: Pending, number: int) -> None:
        # Room guards and hooks of the user's run in there; their failure must not end the reading of this connection.
        with log_context(conn.id, self._requests, envelope.event, number):
            try:
                await pending
            except Exception as error:
                await self._failed(conn, envelope.event, envelope.id, error, number)

    async def _when_free(self, conn: Connection, spec: EventSpec, payload: Any, id: str | int | None) -> None:
        await conn.in_flight.below(self._limits.max_in_flight)
        if conn.is_open:
            self._start(conn, spec, payload, id)

    def _start(self, conn: Connection, spec: EventSpec, payload: Any, id: str | int | None) -> None:
        conn.in_flight.begin()
        number = next(self._requests.numbers)
        tracing = installed()
        if tracing is None:
            handling = self._handle(conn, spec, payload, id, number)
        else:
            handling = self._traced(tracing, conn, spec, payload, id, number)
        self._handlers.spawn(handling, name=f"event {spec.name!r} of {conn.id}")

    async def _traced(
        self, tracing: Tracing, conn: Connection, spec: EventSpec, payload: Any, id: str | int | None, number: int
    ) -> None:
        namespace, request = self._requests.namespace, self._requests.id(number)
        with tracing.handling(namespace, spec.name, conn.id, request) as handling:
            error = await self._handle(conn, spec, payload, id, number)
            handling.ended("ok" if error is None else _outcome(error), error)

    async def _handle(
        self, conn: Connection, spec: EventSpec, payload: Any, id: str | int | None, number: int
    ) -> Exception | None:
        """Call the handler and answer; what it raised."""
        began = self._now()
        current_request.set((conn.id, self._requests, spec.name, number))  # ends with this task
        outcome = "ok"
        try:
            if spec.ordered:
                async with conn.in_flight.order:
                    result = await self._call(conn, spec, payload)
            else:
                result = await self._call(conn, spec, payload)
            if id is not None or result is not None:
                conn.send(Message("__ack__", spec.encode_reply(result), id=id))
            elif spec.always_replies:
                spec.encode_reply(result)  # raises
        except Exception as error:
            refusal = as_event_error(error)
            if refusal is None:
                outcome = _outcome(error)
                await self._failed(conn, spec.name, id, error, number)
                return error
            outcome = "refused"
            conn.send_error(refusal, event=spec.name, id=id, number=number)
            return refusal
        finally:
            self._counters.count_handled(spec.name, outcome, self._now() - began)
            conn.handled()
        return None

    async def _call(self, conn: Connection, spec: EventSpec, payload: Any) -> Any:
        handler = self._registry.handler(spec)
        if not self._contracts.strict and not spec.contract_binds:
            return await unless_cancelled(handler(conn, payload))
        with self._contracts.handling(spec.contract):
            return await unless_cancelled(handler(conn, payload))

    async def _failed(
        self, conn: Connection, event: str | None, id: str | int | None, error: Exception, number: int = 0
    ) -> None:
        """Log a handler's failure, tell the client a request id and nothing else, and call the `on_error` hooks.

        That a connection has gone is no failure: then only its client, if it is another's that has, gets an answer.
        """
        if is_disconnect(error):
            gone = EventError("The connection that this was for has gone.", details={"reason": "disconnected"})
            conn.send_error(gone, event=event, id=id, number=number)
            return
        number = number or next(self._requests.numbers)
        with log_context(conn.id, self._requests, event, number):
            self._report(conn, event, id, error, number)
            await self._hooks.failed(self._registry.on_error, conn, error)

    def _report(self, conn: Connection, event: str | None, id: str | int | None, error: Exception, number: int) -> None:
        request_id = self._requests.id(number)
        what = f"Handling {event!r} failed (request {request_id}, connection {conn.id})"
        ids = {"request": request_id, "connection": conn.id}
        if isinstance(error, BackendError):
            logger.error("%s: %s", what, error, extra=ids)  # nothing is wrong with the handler: no traceback
        else:
            logger.error("%s", what, exc_info=error, extra=ids)
        message = "The server failed to handle this event."
        details: dict[str, Any] = {}
        if self._limits.debug:
            text = str(error)[:1000].encode(errors="backslashreplace").decode()
            details = {"exception": type(error).__name__, "text": text}
        conn.send_error(
            EventError(message, code=ErrorCode.HANDLER_ERROR, details=details),
            event=event,
            id=id,
            number=number,
        )


def _outcome(error: Exception) -> str:
    """What became of an event whose handler raised `error`, for metrics and spans."""
    if isinstance(error, EventError):
        return "refused"
    return "disconnected" if is_disconnect(error) else "error"


def _is_larger(data: str | bytes, limit: int) -> bool:
    if len(data) > limit:
        return True
    # A character has at most four bytes, so most strings need not be encoded to be measured.
    return isinstance(data, str) and not data.isascii() and len(data) * 4 > limit and len(data.encode()) > limit


async def _breathe() -> None:
    await asyncio.sleep(0)
