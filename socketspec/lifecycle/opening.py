"""From an opening handshake to an open connection: origin, authentication, session, limits, `on_connect` hooks."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.connection.connection import Connection
from socketspec.connection.states import State
from socketspec.connection.transport import Transport
from socketspec.errors import AuthError, BackendError, CloseCode, ErrorCode, EventError, PermissionDenied
from socketspec.identity import ANONYMOUS, Identity
from socketspec.membership import users
from socketspec.protocol.formats import Format, negotiate
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.messages import Message, encode_payload
from socketspec.protocol.names import check_user_id
from socketspec.security.auth import NoCredentials, authenticate
from socketspec.session.clock import SessionClock
from socketspec.session.config import AUTOMATIC_HEARTBEAT, Session
from socketspec.session.revocation import Revoked
from socketspec.session.verifier import SessionBook, check_session

if TYPE_CHECKING:
    from socketspec.runtime.engine import Engine
from socketspec.lifecycle.admission import UNAVAILABLE, Admission, refusal_code

__all__ = ("Opening",)

logger: logging.Logger = logging.getLogger("socketspec")


class Opening:
    """Lets an engine's connections in."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._settings = engine.settings
        self.book: SessionBook = SessionBook(
            engine.settings.namespace, engine.settings.session, engine.backend.sessions
        )

    async def admit(self, handshake: Handshake, connection: str) -> Admission:
        """Decide about an opening handshake: origin, then authentication, then the session.

        `connection` is the id of the connection that comes of it.
        """
        if self._engine.stopping:
            return Admission(connection=connection, refusal=(503, "This node is stopping; connect again."))
        if not self._settings.origins.allows(handshake.headers):
            return Admission(connection=connection, refusal=(403, "This origin is not allowed."))
        subprotocol, format = negotiate(handshake.subprotocols)
        admit = partial(Admission, connection=connection, subprotocol=subprotocol, format=format)
        try:
            identity = await self.authenticate(handshake) if self._settings.auth else ANONYMOUS
            checked_at = self._engine.now()
            session = await self.book.open(identity, handshake.query_params.get("session"))
        except NoCredentials as error:
            return admit(identity=None, error=None if self._settings.first_message_auth else error)
        except EventError as error:
            return admit(identity=None, error=error)
        except BackendError as error:
            logger.error("Refused a connection with HTTP 503, unable to look up its session: %s", error)
            return Admission(connection=connection, refusal=UNAVAILABLE)
        return admit(identity=identity, session=session, checked_at=checked_at)

    async def authenticate(self, handshake: Handshake) -> Identity:
        """Who this is. Raises `AuthError`."""
        identity = await authenticate(self._settings.auth, handshake)
        if identity.user_id is not None:
            try:
                check_user_id(identity.user_id)
            except ValueError as error:
                logger.warning("refused: %s", error)
                raise AuthError("The server cannot use the user id of these credentials.") from None
        return identity

    async def open(self, admission: Admission, handshake: Handshake, transport: Transport) -> Connection:
        """Make the connection of an accepted handshake and run the `on_connect` hooks."""
        engine = self._engine
        waiting = admission.identity is None
        session = admission.session or Session(config=self._settings.session)
        conn = Connection(
            engine=engine,
            transport=transport,
            handshake=handshake,
            format=admission.format,
            session=session,
            clock=self._clock(admission.format, transport),
            state=State.AUTHENTICATING if waiting else State.OPENING,
            id=admission.connection,
        )
        engine.connections[conn.id] = conn
        engine.emptied.clear()
        transport.on_slow = partial(conn.close, CloseCode.SLOW_CONSUMER)
        if engine.stopping:
            conn.close(CloseCode.SERVICE_RESTART)
        elif admission.error is not None:
            conn.close(refusal_code(admission.error), error=admission.error)
        elif admission.identity is None:
            engine.wheel.schedule(conn, engine.now() + self._settings.auth_timeout)
        else:
            try:
                await self._let_in(conn, admission.identity, session, admission.checked_at)
            except BaseException:  # cancelled: the adapter never gets the connection, so nobody else cleans up
                await engine.closed(conn, 1006)
                raise
        return conn

    def _clock(self, format: Format, transport: Transport) -> SessionClock:
        config = self._settings.session
        interval = config.heartbeat_interval
        if interval is None and (transport.can_ping or format is not Format.PLAIN):
            interval = AUTOMATIC_HEARTBEAT
        return SessionClock(config, now=self._engine.now(), heartbeat_interval=interval)

    async def first_message(self, conn: Connection, identity: Identity) -> None:
        """Let in a client that authenticated by message. Raises as `SessionBook.open` does."""
        checked_at = self._engine.now()
        session = await self.book.open(identity, conn.handshake.query_params.get("session"))
        if conn.state is State.AUTHENTICATING:
            conn.move(State.OPENING)
            await self._let_in(conn, identity, session, checked_at)

    async def refreshed(self, conn: Connection, identity: Identity) -> None:
        """Go by a newer token of the same user. Raises `Revoked` and `BackendError`."""
        checked_at = self._engine.now()
        await self.book.check(identity, conn.session.id)
        if conn.is_open:
            self._adopt(conn, identity, conn.session, checked_at)

    async def resume_session(self, conn: Connection, brought: object) -> None:
        """Go on with the session that the client brought, unless its token names one.

        It never ends later for that. Raises as `SessionBook.open` does.
        """
        if check_session(brought) == conn.session.id or self.book.named(conn.identity) is not None:
            return
        checked_at = self._engine.now()
        session = await self.book.open(conn.identity, brought)
        if not conn.is_open:
            return
        own = conn.session
        if own.expires_at is not None and session.expires_at is not None and own.expires_at < session.expires_at:
            session = replace(session, started_at=own.started_at, expires_at=own.expires_at)
        self._adopt(conn, conn.identity, session, checked_at)

    def _adopt(self, conn: Connection, identity: Identity, session: Session, checked_at: float) -> None:
        """From now on `conn` is this user's, in this session. Closes it where that was revoked since `checked_at`."""
        now = self._engine.now()
        ahead = now - time.time()
        conn.identity = identity
        if session.expires_at is not None and (conn.session is not session or conn.clock.expires_at is None):
            conn.clock.session_resumed(session.expires_at + ahead, now)
        conn.session = session
        expires_at = identity.token_expires_at
        conn.clock.token_refreshed(None if expires_at is None else expires_at + ahead)
        deadline = conn.clock.next_deadline()
        if deadline is None:
            self._engine.wheel.cancel(conn)
        else:
            self._engine.wheel.schedule(conn, deadline)
        control = self._engine.control
        control.directory.set(conn, self.book.subjects(identity, session.id))
        if control.has_revoked(conn.subjects, since=checked_at):
            conn.close(CloseCode.REVOKED, error=Revoked())

    async def _let_in(self, conn: Connection, identity: Identity, session: Session, checked_at: float) -> None:
        conn.in_flight += 1  # a node that stops lets the hooks finish, as it does with handlers
        try:
            await self._enter(conn, identity, session, checked_at)
        finally:
            conn.in_flight -= 1
            if conn.leaving:
                conn.leave()

    async def _enter(self, conn: Connection, identity: Identity, session: Session, checked_at: float) -> None:
        self._adopt(conn, identity, session, checked_at)
        try:
            await users.enter(self._engine, conn)
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
        conn.welcomed = True  # a hook that is under way has set something up already
        try:
            for hook in self._engine.registry.on_connect:
                await unless_cancelled(hook(conn))
                completed += 1
        except EventError as error:
            conn.welcomed = completed > 0
            is_auth = error.code in (ErrorCode.AUTH_ERROR, ErrorCode.PERMISSION_ERROR)
            code = CloseCode.AUTH_FAILED if is_auth else CloseCode.DISCONNECTED
            conn.close(code, f"refused: {error.code.lower()}", error=error)
        except Exception as error:
            conn.welcomed = completed > 0
            await self._hook_failed(conn, error)
        if conn.state is State.OPENING:
            conn.move(State.OPEN)
            if conn.user_topic is not None:
                self._engine.hub.add(conn.user_topic, conn)
            self._engine.hub.add(self._engine.everybody, conn)

    async def _hook_failed(self, conn: Connection, error: Exception) -> None:
        if isinstance(error, BackendError):
            self._unavailable(conn, error)
        else:
            logger.exception("on_connect failed for connection %s", conn.id)
            conn.close(CloseCode.INTERNAL_ERROR)
        await self._engine.run_hooks(self._engine.registry.on_error, conn, error)

    def _introduction(self, conn: Connection) -> dict[str, Any]:
        heartbeat = None
        if conn.clock.heartbeat_interval is not None:
            heartbeat = {
                "interval": conn.clock.heartbeat_interval,
                "timeout": self._settings.session.heartbeat_timeout,
                "frames": conn.transport.can_ping,
            }
        return {
            "connection_id": conn.id,
            "session": conn.session.id,
            "session_expires_at": conn.session.expires_at,
            "heartbeat": heartbeat,
            "node": self._engine.backend.node,
        }
