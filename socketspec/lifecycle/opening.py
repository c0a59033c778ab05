"""From an accepted handshake to an open connection: session, user, `on_connect` hooks."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.concurrency.timing_wheel import TimingWheel
from socketspec.connection.connection import Connection
from socketspec.connection.gone import is_disconnect
from socketspec.connection.hooks import Hooks
from socketspec.connection.sender import Sender
from socketspec.connection.states import State
from socketspec.connection.transport import Transport
from socketspec.declaration.refusals import as_event_error
from socketspec.declaration.registry import Registry
from socketspec.errors import BackendError, CloseCode, ErrorCode, PermissionDenied
from socketspec.fanout.hub import Hub
from socketspec.identity import Identity
from socketspec.lifecycle.admission import Admission, refusal_code
from socketspec.lifecycle.closing import Closing
from socketspec.lifecycle.credentials import Credentials
from socketspec.lifecycle.drain import Drain
from socketspec.lifecycle.visiting import visiting
from socketspec.membership.directory import Directory
from socketspec.membership.users import UserMembership
from socketspec.protocol.encoding import Message, encode_payload
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.publications import Topic
from socketspec.session.clock import SessionClock
from socketspec.session.config import AUTOMATIC_HEARTBEAT, Session, SessionConfig
from socketspec.session.lookup import SessionLookup
from socketspec.text import get_logger

__all__ = ("Opening",)

logger: logging.Logger = get_logger("socketspec")


class Opening:
    """Makes a connection of an accepted handshake, and lets it in."""

    def __init__(
        self,
        node: str,
        everybody: Topic,
        sender: Sender,
        directory: Directory,
        wheel: TimingWheel[Connection],
        hub: Hub,
        users: UserMembership,
        hooks: Hooks,
        registry: Registry,
        lookup: SessionLookup,
        credentials: Credentials,
        closing: Closing,
        drain: Drain,
        *,
        config: SessionConfig,
        auth_timeout: float,
    ) -> None:
        self._node = node
        self._everybody = everybody
        self._sender = sender
        self._directory = directory
        self._wheel = wheel
        self._hub = hub
        self._users = users
        self._hooks = hooks
        self._registry = registry
        self._lookup = lookup
        self._credentials = credentials
        self._closing = closing
        self._drain = drain
        self._config = config
        self._auth_timeout = auth_timeout

    async def open(self, admission: Admission, handshake: Handshake, transport: Transport) -> Connection:
        """Make the connection of an accepted handshake and run the `on_connect` hooks."""
        waiting = admission.identity is None
        session = admission.session or Session(config=self._config)
        conn = Connection(
            sender=self._sender,
            closing=self._closing.by_server,
            transport=transport,
            handshake=handshake,
            format=admission.format,
            session=session,
            clock=self._clock(admission.format, transport),
            state=State.AUTHENTICATING if waiting else State.OPENING,
            id=admission.connection,
        )
        if admission.resources is not None:
            conn.resources, admission.resources.owned = admission.resources, True
        if (visitor := visiting.get()) is not None:
            visitor.connection = conn
        self._directory.add(conn)
        try:
            await self._begin(conn, admission, session)
        except BaseException:  # cancelled: the adapter never gets the connection, so nobody else cleans up
            await self._closing.closed(conn, 1006)
            raise
        return conn

    async def _begin(self, conn: Connection, admission: Admission, session: Session) -> None:
        conn.transport.on_slow = partial(conn.close, CloseCode.SLOW_CONSUMER)
        if self._drain.stopping:
            conn.close(CloseCode.SERVICE_RESTART)
        elif admission.error is not None:
            conn.close(refusal_code(admission.error), error=admission.error)
        elif admission.identity is None:
            self._wheel.schedule(conn, self._sender.now() + self._auth_timeout)
        else:
            await self._let_in(conn, admission.identity, session, admission.checked_at)

    def _clock(self, format: Format, transport: Transport) -> SessionClock:
        interval = self._config.heartbeat_interval
        if interval is None and (transport.can_ping or format is not Format.PLAIN):
            interval = AUTOMATIC_HEARTBEAT
        return SessionClock(self._config, now=self._sender.now(), heartbeat_interval=interval)

    async def first_message(self, conn: Connection, identity: Identity) -> None:
        """Let in a client that authenticated by message. Raises as `SessionLookup.open` does."""
        checked_at = self._sender.now()
        session = await self._lookup.open(identity, conn.handshake.query_params.get("session"))
        if conn.state is State.AUTHENTICATING:
            conn.move(State.OPENING)
            await self._let_in(conn, identity, session, checked_at)

    async def _let_in(self, conn: Connection, identity: Identity, session: Session, checked_at: float) -> None:
        conn.in_flight.begin()  # counts as a handler, so that a drain lets the hooks finish
        try:
            await self._enter(conn, identity, session, checked_at)
        finally:
            conn.handled()

    async def _enter(self, conn: Connection, identity: Identity, session: Session, checked_at: float) -> None:
        self._credentials.adopt(conn, identity, session, checked_at)
        try:
            await self._users.enter(conn)
        except PermissionDenied as error:
            conn.close(CloseCode.TOO_MANY_CONNECTIONS, error=error)
        except BackendError as error:
            self._unavailable(conn, error)
        if conn.state is State.OPENING:
            await self._welcome(conn)

    def _unavailable(self, conn: Connection, error: BackendError) -> None:
        logger.error("Opening connection %s failed: %s", conn.id, error)
        conn.close(CloseCode.TRY_AGAIN_LATER)

    async def _welcome(self, conn: Connection) -> None:
        """Run the `on_connect` hooks; when they let the client in, the connection is open."""
        if conn.format is not Format.PLAIN:
            conn.send(Message("__connect__", encode_payload(self._introduction(conn))))
        completed = 0
        conn.welcomed = True  # already now: a hook that does not finish may have set something up
        try:
            for hook in self._registry.on_connect:
                await unless_cancelled(hook(conn))
                completed += 1
        except Exception as error:
            if is_disconnect(error) and not conn.is_open:
                return  # the client left meanwhile; what the hook had set up by then, `on_disconnect` takes down
            conn.welcomed = completed > 0
            refusal = as_event_error(error)
            if refusal is None:
                await self._hook_failed(conn, error)
            else:
                is_auth = refusal is not error or refusal.code in (ErrorCode.AUTH_ERROR, ErrorCode.PERMISSION_ERROR)
                code = CloseCode.AUTH_FAILED if is_auth else CloseCode.DISCONNECTED
                conn.close(code, f"refused: {refusal.code.lower()}", error=refusal)
        if conn.state is State.OPENING:
            conn.move(State.OPEN)
            if conn.user_topic is not None:
                self._hub.add(conn.user_topic, conn.id, conn.transport.write)
            self._hub.add(self._everybody, conn.id, conn.transport.write)

    async def _hook_failed(self, conn: Connection, error: Exception) -> None:
        if isinstance(error, BackendError):
            self._unavailable(conn, error)
        else:
            logger.exception("on_connect failed for connection %s", conn.id)
            conn.close(CloseCode.INTERNAL_ERROR)
        await self._hooks.failed(self._registry.on_error, conn, error)

    def _introduction(self, conn: Connection) -> dict[str, Any]:
        heartbeat = None
        if conn.clock.heartbeat_interval is not None:
            heartbeat = {
                "interval": conn.clock.heartbeat_interval,
                "timeout": self._config.heartbeat_timeout,
                "frames": conn.transport.can_ping,
            }
        return {
            "connection_id": conn.id,
            "session": conn.session.id,
            "session_expires_at": conn.session.expires_at,
            "heartbeat": heartbeat,
            "node": self._node,
        }
