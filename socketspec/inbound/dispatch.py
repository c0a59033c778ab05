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
from socketspec.connection.states import State
from socketspec.declaration.refusals import as_event_error
from socketspec.declaration.registry import EventSpec, Registry
from socketspec.declaration.sending import Contracts
from socketspec.errors import (
    CloseCode,
    EventError,
    PayloadTooLarge,
    RateLimited,
    TimedOut,
    UnknownEvent,
    ValidationFailed,
)
from socketspec.inbound.event_limits import EventLimits, Refused
from socketspec.inbound.failures import Failures, outcome_of
from socketspec.inbound.limiter import Limiter
from socketspec.inbound.protocol_events import ProtocolEvents
from socketspec.inbound.timeouts import within
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
    """What clients may send."""

    max_payload_size: int
    max_payload_items: int
    max_first_message: int
    """Bytes of a message from a client that has yet to authenticate."""
    max_in_flight: int


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
        event_limits: EventLimits,
        protocol_events: ProtocolEvents,
        failures: Failures,
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
        self._event_limits = event_limits
        self._protocol_events = protocol_events
        self._failures = failures
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
                return self._failures.failed(conn, None, None, error)  # a scope function of the user's
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
            await self._failures.failed(conn, None, None, error)
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

    def _parse(self, conn: Connection, data: str | bytes, now: float, passed: bool = False) -> Pending | None:
        """`passed`: whether it has passed the limits of its event."""
        try:
            envelope = decode(data, conn.format, max_items=self._limits.max_payload_items)
        except ValidationFailed as error:
            self._counters.count_event("unknown", "malformed")
            conn.send_error(error, event=None)
            return None
        spec = self._registry.events.get(envelope.event)
        if spec is None:
            return self._other(conn, envelope, now)
        if spec.buckets and not passed:
            pending, is_refused = self._check_limits(conn, spec, envelope.id, data, now)
            if is_refused:
                return pending
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
            return self._failures.failed(conn, envelope.event, envelope.id, error)
        if self._feed is not None:
            self._feed.add("in", conn.id, envelope.event, data, None, session=conn.session.id)
        if conn.in_flight.count >= self._limits.max_in_flight:
            return self._when_free(conn, spec, payload, envelope.id)
        self._start(conn, spec, payload, envelope.id)
        return None

    def _check_limits(
        self, conn: Connection, spec: EventSpec, id: str | int | None, data: str | bytes, now: float
    ) -> tuple[Pending | None, bool]:
        """Apply the limits of an event. The second: whether it ends here, with the first, or has passed."""
        try:
            refused = self._event_limits.check(conn, spec.buckets, now)
        except Exception as error:  # a scope function of the user's
            return self._failures.failed(conn, spec.name, id, error), True
        if refused is None:
            return None, False
        if not isinstance(refused, Refused):
            return self._after_event_limits(conn, spec, id, data, refused), True
        self._event_limits.refuse(conn, spec.name, id, refused, now)
        return None, True

    async def _after_event_limits(
        self,
        conn: Connection,
        spec: EventSpec,
        id: str | int | None,
        data: str | bytes,
        verdict: Coroutine[Any, Any, Refused | None],
    ) -> None:
        try:
            refused = await verdict
        except Exception as error:
            await self._failures.failed(conn, spec.name, id, error)
            return
        if refused is not None:
            self._event_limits.refuse(conn, spec.name, id, refused, self._now())
        elif conn.state is State.OPEN:
            pending = self._parse(conn, data, self._now(), passed=True)
            if pending is not None:
                await pending

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
                await self._failures.failed(conn, envelope.event, envelope.id, error, number)

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
            handling.ended("ok" if error is None else outcome_of(error), error)

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
                    result = await self._call(conn, spec, payload, id, number)
            else:
                result = await self._call(conn, spec, payload, id, number)
            if id is not None or result is not None:
                conn.send(Message("__ack__", spec.encode_reply(result), id=id))
            elif spec.always_replies:
                spec.encode_reply(result)  # raises
        except Exception as error:
            refusal = as_event_error(error)
            if isinstance(error, TimedOut):
                outcome = "timeout"
                await self._failures.timed_out(conn, spec, id, error, number)
                return error
            if refusal is None:
                outcome = outcome_of(error)
                await self._failures.failed(conn, spec.name, id, error, number)
                return error
            outcome = "refused"
            conn.send_error(refusal, event=spec.name, id=id, number=number)
            return refusal
        finally:
            self._counters.count_handled(spec.name, outcome, self._now() - began)
            conn.handled()
        return None

    async def _call(self, conn: Connection, spec: EventSpec, payload: Any, id: str | int | None, number: int) -> Any:
        handling = self._registry.handler(spec)(conn, payload)
        if spec.timeout is not None:
            message = f"This takes longer than {spec.timeout:g} seconds."
            error = TimedOut(message, details={"timeout": spec.timeout})
            answer = partial(conn.send_error, error, event=spec.name, id=id, number=number)
            handling = within(handling, error, spec.timeout, answer)
        if not self._contracts.strict and not spec.contract_binds:
            return await unless_cancelled(handling)
        with self._contracts.handling(spec.contract):
            return await unless_cancelled(handling)


def _is_larger(data: str | bytes, limit: int) -> bool:
    if len(data) > limit:
        return True
    # A character has at most four bytes, so most strings need not be encoded to be measured.
    return isinstance(data, str) and not data.isascii() and len(data) * 4 > limit and len(data.encode()) > limit


async def _breathe() -> None:
    await asyncio.sleep(0)
