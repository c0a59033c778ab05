"""What runs between an app's start and its stop: connections, fan-out, timers and tasks, in one event loop.

An adapter calls `admit` with the opening handshake, `open` once it has accepted, `receive` for every message, and
`closed` when the transport is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from socketspec.backend import Backend, Member, Topic
from socketspec.client_events import ClientEvents
from socketspec.connection import Connection
from socketspec.contracts import Contracts
from socketspec.debug import DebugFeed
from socketspec.dispatch import Dispatcher
from socketspec.errors import AuthError, CloseCode, ErrorCode, EventError
from socketspec.handshake import Handshake
from socketspec.hub import Hub
from socketspec.identity import ANONYMOUS, Identity
from socketspec.keeper import Keeper
from socketspec.lifecycle import State
from socketspec.limiter import Limiter
from socketspec.names import check_event_name, is_reserved
from socketspec.registry import Hook, Registry
from socketspec.rooms import Rooms
from socketspec.security.auth import AuthBackend, NoCredentials, authenticate
from socketspec.security.origins import OriginPolicy
from socketspec.security.ratelimit import RateLimit
from socketspec.session import AUTOMATIC_HEARTBEAT, Session, SessionClock, SessionConfig
from socketspec.tasks import Tasks, unless_cancelled
from socketspec.timing import TimingWheel
from socketspec.transport import Backpressure, Transport
from socketspec.wire import Format, Message, encode_payload, negotiate

__all__ = ("Admission", "Engine", "Settings")

logger: logging.Logger = logging.getLogger("socketspec")

HOOK_TIMEOUT: Final = 30.0
"""Seconds a hook that cleans up after a connection may take."""
RECONNECT_SPREAD: Final = 5.0
"""Clients of a stopping node are told to reconnect after a random time of at most this many seconds."""

CLIENT_REASONS: Final = {
    1000: "client_closed",
    1001: "client_going_away",
    1005: "connection_lost",
    1006: "connection_lost",
    1009: "message_too_big",
    1012: "server_shutdown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """An app's options, checked. What each means is documented at `SocketApp`."""

    namespace: str
    auth: tuple[AuthBackend, ...]
    origins: OriginPolicy
    max_payload_size: int
    rate_limit: RateLimit | None
    session: SessionConfig
    backpressure: Backpressure
    max_in_flight: int
    max_rooms_per_connection: int
    auth_timeout: float
    strict: bool
    debug: bool

    @property
    def first_message_auth(self) -> bool:
        """Whether a client without credentials may send them as its first message."""
        return any(getattr(backend, "first_message", False) for backend in self.auth)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What became of an opening handshake."""

    refusal: tuple[int, str] | None = None
    """Refuse before accepting, with this HTTP status and text."""
    subprotocol: str | None = None
    format: Format = Format.PLAIN
    identity: Identity | None = ANONYMOUS
    """None: accept, and wait for credentials in the first message."""
    error: AuthError | None = None
    """Accept, send this error, and close with 4001."""


class Engine:
    """One app at work in one event loop."""

    def __init__(self, settings: Settings, registry: Registry, rooms: Rooms, backend: Backend) -> None:
        self.settings = settings
        self.registry = registry
        self.rooms = rooms
        self.backend = backend
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.now: Callable[[], float] = self.loop.time
        self.connections: dict[str, Connection] = {}
        self.contracts: Contracts = Contracts(strict=settings.strict)
        self.tasks: Tasks = Tasks()
        self.handlers: Tasks = Tasks()
        self.wheel: TimingWheel = TimingWheel()
        self.hub: Hub = Hub(backend.broker, self.tasks)
        self.everybody: Topic = Topic(settings.namespace, "all", "")
        self.keeper: Keeper = Keeper(self)
        self.client_events: ClientEvents = ClientEvents(self)
        self.dispatcher: Dispatcher = Dispatcher(self)
        self.feed: DebugFeed | None = DebugFeed() if settings.debug else None
        self.stopping: bool = False
        self.limiter: Limiter | None = (
            Limiter(settings.rate_limit, backend.limits, shared=backend.shared) if settings.rate_limit else None
        )
        self._request_prefix = secrets.token_hex(4)
        self._requests = itertools.count(1)

    async def start(self) -> None:
        """Connect the backend. Raises `BackendError`."""
        await self.backend.start(self.settings.namespace, self.hub.deliver, self._lost)
        try:
            await self.hub.acquire(self.everybody)
        except BaseException:
            await self.backend.stop(self.settings.namespace, self.hub.deliver)
            raise

    def _lost(self, topic: Topic, members: Sequence[Member]) -> None:
        """Members of a room whose node died."""
        logger.info("%d members of %r are gone with their node", len(members), topic.name)

    async def stop(self, *, grace: float = 10.0) -> None:
        """Say goodbye, let handlers finish, close what is left with 1012. Takes at most about twice `grace` seconds."""
        self.stopping = True
        for conn in list(self.connections.values()):
            delay = round(random.uniform(0.1, RECONNECT_SPREAD), 3)  # noqa: S311 - spreads load, hides nothing
            conn.send(Message("__server_shutdown__", encode_payload({"reconnect_in": delay})))
        await self.handlers.close(grace)
        for conn in list(self.connections.values()):
            conn.close(CloseCode.SERVICE_RESTART)
        await self.handlers.close(0)  # those that began meanwhile
        await self.tasks.close(grace)
        await self.hub.release(self.everybody)
        self.wheel.close()
        await self.backend.stop(self.settings.namespace, self.hub.deliver)

    async def admit(self, handshake: Handshake) -> Admission:
        """Decide about an opening handshake: origin, then authentication."""
        if self.stopping:
            return Admission(refusal=(503, "This node is stopping; connect again."))
        if not self.settings.origins.allows(handshake.headers):
            return Admission(refusal=(403, "This origin is not allowed."))
        subprotocol, format = negotiate(handshake.subprotocols)
        identity: Identity | None = ANONYMOUS
        error = None
        if self.settings.auth:
            try:
                identity = await authenticate(self.settings.auth, handshake)
            except AuthError as failure:
                identity = None
                if not (self.settings.first_message_auth and isinstance(failure, NoCredentials)):
                    error = failure
        return Admission(subprotocol=subprotocol, format=format, identity=identity, error=error)

    async def open(self, admission: Admission, handshake: Handshake, transport: Transport) -> Connection:
        """Make the connection of an accepted handshake and run the `on_connect` hooks."""
        waiting = admission.identity is None
        config = self.settings.session
        started_at = time.time()
        expires_at = None if config.max_duration is None else started_at + config.max_duration
        session = Session(config=config, started_at=started_at, expires_at=expires_at)
        conn = Connection(
            engine=self,
            transport=transport,
            handshake=handshake,
            format=admission.format,
            session=session,
            clock=self._clock(admission.format, transport, session),
            identity=admission.identity or ANONYMOUS,
            state=State.AUTHENTICATING if waiting else State.OPENING,
        )
        self.connections[conn.id] = conn
        transport.on_slow = partial(conn.close, CloseCode.SLOW_CONSUMER)
        if self.stopping:
            conn.close(CloseCode.SERVICE_RESTART)
        elif admission.error is not None:
            conn.close(CloseCode.AUTH_FAILED, error=admission.error)
        elif waiting:
            self.wheel.schedule(conn, self.now() + self.settings.auth_timeout)
        else:
            self.refresh_deadlines(conn)
            try:
                await self.welcome(conn)
            except BaseException:  # cancelled: the adapter never gets the connection, so nobody else cleans up
                await self.closed(conn, 1006)
                raise
        return conn

    def _clock(self, format: Format, transport: Transport, session: Session) -> SessionClock:
        config = self.settings.session
        interval = config.heartbeat_interval
        if interval is None and (transport.can_ping or format is not Format.PLAIN):
            interval = AUTOMATIC_HEARTBEAT
        now = self.now()
        expires_at = None if session.expires_at is None else now + session.expires_at - time.time()
        return SessionClock(config, now=now, expires_at=expires_at, heartbeat_interval=interval)

    def refresh_deadlines(self, conn: Connection) -> None:
        """Go by the identity's token from now on."""
        expires_at = conn.identity.token_expires_at
        conn.clock.token_refreshed(None if expires_at is None else self.now() + expires_at - time.time())
        deadline = conn.clock.next_deadline()
        if deadline is None:
            self.wheel.cancel(conn)
        else:
            self.wheel.schedule(conn, deadline)

    async def welcome(self, conn: Connection) -> None:
        """Run the `on_connect` hooks; when they let the client in, the connection is open."""
        if conn.format is not Format.PLAIN:
            conn.send(Message("__connect__", encode_payload(self._introduction(conn))))
        completed = 0
        conn.welcomed = True  # a hook that is under way has set something up already
        try:
            for hook in self.registry.on_connect:
                await unless_cancelled(hook(conn))
                completed += 1
        except EventError as error:
            conn.welcomed = completed > 0
            is_auth = error.code in (ErrorCode.AUTH_ERROR, ErrorCode.PERMISSION_ERROR)
            code = CloseCode.AUTH_FAILED if is_auth else CloseCode.DISCONNECTED
            conn.close(code, f"refused: {error.code.lower()}", error=error)
        except Exception as error:
            conn.welcomed = completed > 0
            logger.exception("on_connect failed for connection %s", conn.id)
            conn.close(CloseCode.INTERNAL_ERROR)
            await self.run_hooks(self.registry.on_error, conn, error)
        if conn.state is State.OPENING:
            conn.move(State.OPEN)
            self.hub.add(self.everybody, conn)

    def _introduction(self, conn: Connection) -> dict[str, Any]:
        heartbeat = None
        if conn.clock.heartbeat_interval is not None:
            heartbeat = {
                "interval": conn.clock.heartbeat_interval,
                "timeout": self.settings.session.heartbeat_timeout,
                "frames": conn.transport.can_ping,
            }
        return {
            "connection_id": conn.id,
            "session": conn.session.id,
            "session_expires_at": conn.session.expires_at,
            "heartbeat": heartbeat,
        }

    def receive(self, conn: Connection, data: str | bytes, *, binary: bool) -> Coroutine[Any, Any, None] | None:
        """Take one message; await what it returns before reading on."""
        return self.dispatcher.receive(conn, data, binary=binary)

    async def closed(self, conn: Connection, code: int) -> None:
        """The transport is gone. Returns when the connection has been cleaned up after."""
        if conn.state is not State.CLOSED:
            if conn.state is not State.CLOSING:
                conn.close_code = code
                conn.close_reason = CLIENT_REASONS.get(code, f"client:{code}")
            conn.move(State.CLOSED)
        await asyncio.shield(self.finish(conn))

    def finish(self, conn: Connection) -> asyncio.Task[None]:
        """Start cleaning up after a connection, once."""
        if conn.finished is None:
            conn.finished = self.tasks.spawn(self._clean_up(conn), name=f"clean-up of {conn.id}")
        return conn.finished

    async def _clean_up(self, conn: Connection) -> None:
        self.wheel.cancel(conn)
        self.hub.remove(self.everybody, conn)
        conn.departed = conn.rooms
        topics, conn.topics = conn.topics, {}
        try:
            for topic in topics.values():
                try:
                    await self.rooms.exit(self, conn, topic)
                except Exception:
                    logger.exception("Leaving room %r failed for connection %s", topic.name, conn.id)
            for room in topics:
                await self._run_final_hooks(self.registry.on_room_leave, conn, room)
            if conn.welcomed:
                await self._run_final_hooks(self.registry.on_disconnect, conn, conn.close_reason)
        finally:
            self.connections.pop(conn.id, None)

    async def _run_final_hooks(self, hooks: Sequence[Hook], *arguments: Any) -> None:
        try:
            async with asyncio.timeout(HOOK_TIMEOUT):
                await self.run_hooks(hooks, *arguments)
        except TimeoutError:
            logger.error("A hook took longer than %.0f s and was cancelled", HOOK_TIMEOUT)

    async def run_hooks(self, hooks: Sequence[Hook], *arguments: Any) -> None:
        """Call hooks one after the other; one that fails is logged and does not stop the others."""
        with self.contracts.handling(None):  # what a hook sends is not the handler's that caused it
            for hook in hooks:
                try:
                    await unless_cancelled(hook(*arguments))
                except Exception:
                    logger.exception("The hook %s failed", getattr(hook, "__qualname__", hook))

    def check_outbound(self, event: str) -> None:
        """Raises `ValueError` for an event name that is not the app's to send."""
        if is_reserved(event):
            raise ValueError(f"event {event!r} is reserved for the protocol; names of your own do not begin with __")
        check_event_name(event)

    def observe(
        self, direction: str, conn: Connection | None, event: str, payload: str | bytes, *, room: str | None = None
    ) -> None:
        """Show an event in the debug feed, if there is one."""
        if self.feed is not None:
            self.feed.add(direction, conn.id if conn is not None else None, event, payload, room)

    def next_request_id(self) -> str:
        """An id that stands in an error sent to a client and in the log."""
        return f"{self._request_prefix}-{next(self._requests):x}"
