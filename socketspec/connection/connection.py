"""One client's connection, as handlers see it."""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from socketspec.connection.states import TRANSITIONS, State
from socketspec.connection.transport import Transport
from socketspec.errors import CLOSE_CODES, CloseCode, EventError, check_close_code
from socketspec.identity import ANONYMOUS, Identity
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.protocol.messages import Message, encode_payload
from socketspec.protocol.names import check_outbound
from socketspec.protocol.publications import Topic
from socketspec.session.clock import SessionClock
from socketspec.session.config import Session
from socketspec.telemetry.context import telling

if TYPE_CHECKING:
    import asyncio

    from socketspec.backend.token_buckets import TokenBucket
    from socketspec.runtime.engine import Engine

__all__ = ("Connection", "connection_id")

logger: logging.Logger = logging.getLogger("socketspec.events")


def connection_id() -> str:
    """An id for a new connection, which nobody can guess."""
    return secrets.token_urlsafe(12)


class Connection:
    """One client's connection. SocketSpec makes it; handlers, hooks and dependencies get it.

    `metadata` is a dict of your own that lives as long as the connection.
    """

    __slots__ = (
        "__weakref__",
        "_metadata",
        "_state",
        "bucket",
        "changing",
        "clock",
        "close_code",
        "close_reason",
        "connected_at",
        "departed",
        "engine",
        "finished",
        "format",
        "handshake",
        "held",
        "id",
        "identity",
        "in_flight",
        "leaving",
        "order",
        "session",
        "slots",
        "subjects",
        "topics",
        "transport",
        "user_topic",
        "violations",
        "welcomed",
    )

    def __init__(
        self,
        *,
        engine: Engine,
        transport: Transport,
        handshake: Handshake,
        format: Format,
        session: Session,
        clock: SessionClock,
        identity: Identity = ANONYMOUS,
        state: State = State.OPENING,
        id: str = "",
    ) -> None:
        self.id: str = id or connection_id()
        self.identity: Identity = identity
        """Who is connected."""
        self.session: Session = session
        self.connected_at: float = time.time()
        """Seconds since the epoch."""
        self._metadata: dict[str, Any] | None = None
        self._state = state
        # What follows is for the engine and for adapters; handlers have no need of it.
        self.engine: Engine = engine
        self.transport: Transport = transport
        self.handshake: Handshake = handshake
        self.format: Format = format
        self.clock: SessionClock = clock
        self.topics: dict[str, Topic] = {}
        self.user_topic: Topic | None = None
        self.subjects: tuple[str, ...] = ()
        self.changing: dict[str, asyncio.Event] | None = None
        self.departed: frozenset[str] | None = None
        self.welcomed: bool = False
        self.bucket: TokenBucket | None = None
        self.violations: TokenBucket | None = None
        self.in_flight: int = 0
        self.leaving: bool = False
        self.held: bool = False
        self.slots: asyncio.Event | None = None
        self.order: asyncio.Lock | None = None
        self.close_code: int = 0
        self.close_reason: str = ""
        self.finished: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self._state.value} user={self.identity.user_id!r}>"

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._state

    def move(self, state: State) -> None:
        """Change the state. Raises `RuntimeError` where the table in `connection.states` does not allow it."""
        if state not in TRANSITIONS[self._state]:
            raise RuntimeError(f"a connection cannot go from {self._state.value} to {state.value}")
        self._state = state

    @property
    def is_open(self) -> bool:
        """Whether anything sent now has a chance to arrive."""
        return self._state is State.OPEN or self._state is State.OPENING

    @property
    def namespace(self) -> str:
        """The app's namespace."""
        return self.engine.settings.namespace

    @property
    def headers(self) -> Headers:
        """The opening handshake's headers."""
        return self.handshake.headers

    @property
    def query_params(self) -> QueryParams:
        """The query parameters of the URL the client connected to."""
        return self.handshake.query_params

    @property
    def metadata(self) -> dict[str, Any]:
        """A dict of your own for this connection."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms it is in. In `on_disconnect`: those it was in."""
        return frozenset(self.topics) if self.departed is None else self.departed

    @property
    def last_active(self) -> float:
        """When it last sent an event, in seconds since the epoch."""
        return time.time() - (self.engine.now() - self.clock.last_active)

    async def emit(self, event: str, payload: object = None) -> None:
        """Send one event to this client, at most once: a connection that is closing gets nothing.

        Waits while the client's buffer is more than half full, at most `send_timeout` seconds. Raises `TypeError`
        when the payload cannot be encoded, `ValueError` for a reserved name.
        """
        check_outbound(event)
        self.engine.contracts.check_emit(event, payload)
        self.send(Message(event, encode_payload(payload)))
        if self.transport.buffered > self.engine.settings.backpressure.max_buffer // 2:
            await self.transport.drain()

    async def disconnect(self, reason: str = "disconnected", *, code: int = CloseCode.DISCONNECTED) -> None:
        """Close the connection after what is buffered. `reason` reaches the client and `on_disconnect`.

        `code` is 1000 or one of 4000-4999. Raises `ValueError` for any other.
        """
        self.close(check_close_code(code), reason)

    def send(self, message: Message) -> None:
        """Send a finished message. For the engine."""
        if self.is_open or self._state is State.AUTHENTICATING:
            self.engine.observe("out", self, message.event, message.payload)
            self.engine.hub.send(self.transport.write, message)

    def send_error(self, error: EventError, *, event: str | None, id: str | int | None = None, number: int = 0) -> None:
        """Send `error` as ``__error__``, about the request with this number; 0: about one that has none yet."""
        requests = self.engine.requests
        number = number or next(requests.numbers)
        request_id = requests.id(number)
        payload = {
            "code": error.code,
            "event": event,
            "message": error.message,
            "request_id": request_id,
            "details": error.details,
        }
        self.send(Message("__error__", encode_payload(payload), id=id))
        if logger.isEnabledFor(logging.DEBUG):
            with telling(self.id, requests, event, number):
                logger.debug(
                    "Answered %r with %s: %r (request %s, connection %s)",
                    event,
                    error.code,
                    error.message,
                    request_id,
                    self.id,
                )

    def close(self, code: int, reason: str | None = None, *, error: EventError | None = None) -> None:
        """Close with a code of the table in `socketspec.errors`, after sending `error` if given. Idempotent."""
        if self._state in (State.CLOSING, State.CLOSED):
            return
        if error is not None:
            self.send_error(error, event=None)
        if reason is None:
            reason = CLOSE_CODES[CloseCode(code)].reason
        if code != CloseCode.SLOW_CONSUMER:  # nothing that waits is of use to it
            self.engine.hub.finish(self)
        if not self.is_open and self._state is not State.AUTHENTICATING:
            return  # what was written just now was too much for it
        self.engine.counters.count_closing(reason)
        self.move(State.CLOSING)
        self.close_code, self.close_reason = code, reason
        self.transport.close(code, reason)
        self.engine.finish(self)

    def leave(self) -> None:
        """Close because the node stops: now, or as soon as no handler of this connection is under way."""
        self.leaving = True
        if self.in_flight == 0:
            self.close(CloseCode.SERVICE_RESTART)

    def due(self, now: float) -> float | None:
        """Called by the timing wheel when one of the clock's deadlines has come."""
        return self.engine.keeper.due(self, now)
