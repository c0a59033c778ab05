"""One client's connection, as handlers see it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any, Final, Never

from socketspec.concurrency.elsewhere import ELSEWHERE
from socketspec.connection.gone import is_expected
from socketspec.connection.in_flight import InFlight
from socketspec.connection.sender import Sender
from socketspec.connection.states import TRANSITIONS, State
from socketspec.connection.transport import Transport
from socketspec.declaration.resources import Resources
from socketspec.errors import CLOSE_CODES, CloseCode, Disconnected, EventError, check_close_code
from socketspec.identity import ANONYMOUS, Identity
from socketspec.protocol.encoding import Message
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.protocol.publications import Topic
from socketspec.session.clock import SessionClock
from socketspec.session.config import Session
from socketspec.text import close_reason

__all__ = ("Connection", "connection_id")

EMITS_A_TURN: Final = 64
"""Events that handlers of a node emit before the event loop gets its turn: only then is a client that left noticed."""
_IS_AUTHENTICATED: Final = (
    "conn.identity cannot be set: rooms, limits and revocation go by the credentials that the client came with. Who a "
    "client is, an auth backend says (SocketApp(auth=…)). What a handler finds out goes into conn.metadata['user']."
)
_IS_OWN: Final = (
    "conn.{name} cannot be set. What is to be kept for this connection goes into its dict: conn.metadata['key'] = …"
)


def connection_id() -> str:
    """An id for a new connection, which nobody can guess."""
    return secrets.token_urlsafe(12)


class Connection:
    """One client's connection. SocketSpec makes it; handlers, hooks and dependencies get it.

    `metadata` is a dict of your own that lives as long as the connection.
    """

    __slots__ = (
        "__weakref__",
        "_closing",
        "_identity",
        "_metadata",
        "_sender",
        "_session",
        "_state",
        "clock",
        "close_reason",
        "connected_at",
        "departed",
        "format",
        "handshake",
        "held",
        "id",
        "in_flight",
        "resources",
        "spent",
        "topics",
        "transport",
        "user_topic",
        "welcomed",
    )

    def __init__(
        self,
        *,
        sender: Sender,
        closing: Callable[[Connection], object],
        transport: Transport,
        handshake: Handshake,
        format: Format,
        session: Session,
        clock: SessionClock,
        identity: Identity = ANONYMOUS,
        state: State,
        id: str,
    ) -> None:
        self.id: str = id
        self._identity = identity
        self._session = session
        self.connected_at: float = time.time()
        """Seconds since the epoch."""
        self._metadata: dict[str, Any] | None = None
        self._state = state
        # What follows is for the parts of a running app and for adapters; handlers do not need it.
        self._sender = sender
        self._closing = closing
        self.transport: Transport = transport
        self.handshake: Handshake = handshake
        self.format: Format = format
        self.clock: SessionClock = clock
        self.in_flight: InFlight = InFlight()
        self.topics: dict[str, Topic] = {}
        """The topics of the rooms it is in, by room."""
        self.user_topic: Topic | None = None
        """Its user's topic, while it is counted among the user's connections."""
        self.departed: frozenset[str] | None = None
        """The rooms it was in when it ended; None before that."""
        self.welcomed: bool = False
        """Whether an `on_connect` hook was called for it: then the `on_disconnect` hooks have to be, too."""
        self.held: bool = False
        """Whether nothing is read from it for now, not even its pongs."""
        self.spent: float = 0.0
        """Seconds that its messages have taken the event loop since it last gave way. Only `Dispatcher` looks at it; it
        is here because looking a connection up for every message would cost more than the message's share of this."""
        self.resources: Resources | None = None
        """What its dependencies keep as long as it; None while they keep nothing."""
        self.close_reason: str = ""

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self._state.value} user={self._identity.user_id!r}>"

    @property
    def state(self) -> State:
        """Where the connection stands."""
        return self._state

    @state.setter
    def state(self, value: Never) -> None:
        raise AttributeError(_IS_OWN.format(name="state"))

    def move(self, state: State) -> None:
        """Change the state. Raises `RuntimeError` if the table in `connection.states` does not allow it."""
        if state not in TRANSITIONS[self._state]:
            raise RuntimeError(f"a connection cannot go from {self._state.value} to {state.value}")
        self._state = state

    @property
    def identity(self) -> Identity:
        """Who is connected."""
        return self._identity

    @identity.setter
    def identity(self, value: Never) -> None:
        raise AttributeError(_IS_AUTHENTICATED)

    @property
    def session(self) -> Session:
        """How long the client may stay, and by what it may come back."""
        return self._session

    @session.setter
    def session(self, value: Never) -> None:
        raise AttributeError(_IS_OWN.format(name="session"))

    def authenticated(self, identity: Identity, session: Session) -> None:
        """Go on as this identity, in this session. For the parts of a running app: limits and revocation follow it."""
        self._identity = identity
        self._session = session

    @property
    def is_open(self) -> bool:
        """Whether anything sent now has a chance to arrive."""
        return self._state is State.OPEN or self._state is State.OPENING

    @property
    def namespace(self) -> str:
        """The app's namespace."""
        return self._sender.namespace

    @property
    def headers(self) -> Headers:
        """The opening handshake's headers."""
        return self.handshake.headers

    @property
    def cookies(self) -> dict[str, str]:
        """The opening handshake's cookies, by name."""
        return self.handshake.cookies

    @property
    def query_params(self) -> QueryParams:
        """The query parameters of the URL the client connected to."""
        return self.handshake.query_params

    @property
    def path_params(self) -> Mapping[str, Any]:
        """The variables of the path it is mounted at: of ``/ws/{tenant}``, the `tenant`."""
        return self.handshake.path_params

    @property
    def metadata(self) -> dict[str, Any]:
        """A dict of your own for this connection."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @metadata.setter
    def metadata(self, value: Never) -> None:
        raise AttributeError(_IS_OWN.format(name="metadata"))

    @property
    def rooms(self) -> frozenset[str]:
        """The rooms it is in. In `on_disconnect`: those it was in."""
        return frozenset(self.topics) if self.departed is None else self.departed

    @property
    def last_active(self) -> float:
        """When it last sent an event, in seconds since the epoch."""
        return time.time() - (self._sender.now() - self.clock.last_active)

    async def emit(self, event: str, payload: object = None) -> None:
        """Send one event to this client, at most once.

        Waits while the client's buffer is more than half full, at most `send_timeout` seconds. Raises `TypeError`
        if the payload cannot be encoded, `ValueError` for a reserved name, and `Disconnected` where the connection has
        gone or is being closed: a handler that sends in a loop ends with it, need not catch that, and leaves others
        their turn. In the hooks that run after a connection's end, such as `on_disconnect`, it does nothing instead.
        Raises `RuntimeError` in another thread than the app's event loop: see `socket.sync`.
        """
        if get_ident() != self._sender.thread:
            raise RuntimeError(ELSEWHERE)
        message = self._sender.event(event, payload)
        if not self.is_open and self._state is not State.AUTHENTICATING:
            if is_expected():
                return
            raise Disconnected(self.id, self.close_reason)
        sender = self._sender
        sender.send(self.id, self._session.id, self.transport.write, message)
        if self.transport.buffered > sender.max_buffer // 2:
            await self.transport.drain()
        sender.emits += 1
        if sender.emits % EMITS_A_TURN == 0:
            await asyncio.sleep(0)

    async def disconnect(self, reason: str = "disconnected", *, code: int = CloseCode.DISCONNECTED) -> None:
        """Send what is buffered, then close the connection. `reason` reaches the client and `on_disconnect`.

        At most 123 bytes of it do. `code` is 1000 or one of 4000-4999. Raises `ValueError` for any other, and
        `RuntimeError` as `emit` does.
        """
        if get_ident() != self._sender.thread:
            raise RuntimeError(ELSEWHERE)
        self.close(check_close_code(code), reason)

    def send(self, message: Message) -> None:
        """Send a finished message. For the parts of a running app."""
        if self.is_open or self._state is State.AUTHENTICATING:
            self._sender.send(self.id, self._session.id, self.transport.write, message)

    def send_error(self, error: EventError, *, event: str | None, id: str | int | None = None, number: int = 0) -> None:
        """Send `error` as ``__error__``, for the request with this number; 0: it gets a number now."""
        self.send(self._sender.error(self.id, error, event=event, id=id, number=number))

    def close(self, code: int, reason: str | None = None, *, error: EventError | None = None) -> None:
        """Close with a code of the table in `socketspec.errors`, after sending `error` if given. Idempotent."""
        if self._state in (State.CLOSING, State.CLOSED):
            return
        if error is not None:
            self.send_error(error, event=None)
        reason = CLOSE_CODES[CloseCode(code)].reason if reason is None else close_reason(reason)
        if code != CloseCode.SLOW_CONSUMER:  # who reads too slowly gets nothing more
            self._sender.finish(self.id)
        if not self.is_open and self._state is not State.AUTHENTICATING:
            return  # writing that was too much for the client, and has closed the connection
        self.move(State.CLOSING)
        self.close_reason = reason
        self.transport.close(code, reason)
        self._closing(self)

    def leave(self) -> None:
        """Close because the node stops: now, or as soon as no handler of this connection is under way."""
        if self.in_flight.leave():
            self.close(CloseCode.SERVICE_RESTART)

    def handled(self) -> None:
        """One of its handlers has ended. A connection that leaves closes after its last one."""
        if self.in_flight.end():
            self.close(CloseCode.SERVICE_RESTART)
