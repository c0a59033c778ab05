"""Who may come in: origin, authentication, session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from socketspec.declaration.refusals import as_event_error, status_of
from socketspec.declaration.registry import Hook
from socketspec.declaration.resources import Arrival, Resources
from socketspec.errors import AuthError, BackendError, CloseCode, ErrorCode, EventError
from socketspec.identity import ANONYMOUS, Identity
from socketspec.lifecycle.drain import Drain
from socketspec.lifecycle.visiting import visiting
from socketspec.protocol.formats import Format, negotiate
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.names import check_user_id
from socketspec.security._providing import provider
from socketspec.security.auth import AuthBackend, NoCredentials, authenticate
from socketspec.security.origins import OriginPolicy
from socketspec.session.config import Session
from socketspec.session.lookup import SessionLookup
from socketspec.session.revocation import Revoked
from socketspec.telemetry.failure_watch import FailureWatch
from socketspec.telemetry.log_pace import OnceAMinute
from socketspec.text import cut, get_logger, one_line, sendable

__all__ = ("Admission", "Admissions", "refusal_code", "unavailable")

logger: logging.Logger = get_logger("socketspec")

MAX_TEXT: Final = 1000
"""Characters of a refusal's text that are sent."""
UNAVAILABLE = (503, "The cluster backend cannot be reached; connect again.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What was decided about an opening handshake."""

    refusal: tuple[int, str] | None = None
    """Refuse before accepting, with this HTTP status and text."""
    connection: str
    """The id of the connection that is to come."""
    subprotocol: str | None = None
    format: Format = Format.PLAIN
    identity: Identity | None = ANONYMOUS
    """None: accept, and wait for credentials in the first message."""
    session: Session | None = None
    """None: a new one begins."""
    checked_at: float = 0.0
    """Just before the backend was asked what is revoked, on the event loop's clock."""
    error: EventError | None = None
    """Accept, send this error, and close with its `refusal_code`."""
    resources: Resources | None = None
    """What the handshake's dependencies keep for the connection that is to come."""
    cause: Exception | None = None
    """What a dependency of the handshake raised, which refuses it."""

    def followed_by(self, ended: Callable[[], None]) -> Admission:
        """The same; `ended` is called when the connection to come has ended and all that it kept is closed."""
        resources = Resources() if self.resources is None else self.resources
        resources.ended = ended
        return replace(self, resources=resources)

    async def abandon(self) -> None:
        """Close what is kept for a connection that did not come about. Nothing happens where it did."""
        if self.resources is not None and not self.resources.owned and not self.resources.closed:
            await self.resources.close()


def unavailable(connection: str, why: object) -> Admission:
    """Refuse a client because of the backend; the log says `why`."""
    logger.error("Refused a connection with HTTP 503: %s", why)
    return Admission(connection=connection, refusal=UNAVAILABLE)


def refusal_code(error: EventError) -> CloseCode:
    """The close code for a client whose credentials or session are refused."""
    if isinstance(error, Revoked):
        return CloseCode.REVOKED
    return CloseCode.SESSION_EXPIRED if error.code == ErrorCode.SESSION_EXPIRED else CloseCode.AUTH_FAILED


class Admissions:
    """Decides about opening handshakes: origin, then authentication, then the session."""

    def __init__(
        self,
        origins: OriginPolicy,
        auth: tuple[AuthBackend, ...],
        auth_hooks: Mapping[int, Hook],
        lookup: SessionLookup,
        drain: Drain,
        now: Callable[[], float],
        failures: FailureWatch,
    ) -> None:
        self._origins = origins
        self._auth = auth
        self._auth_hooks = auth_hooks
        self._waits_for_credentials = any(getattr(backend, "first_message", False) for backend in auth)
        self._lookup = lookup
        self._drain = drain
        self._now = now
        self._failures = failures
        self._origin_line = OnceAMinute(now)

    @property
    def wants_tokens(self) -> bool:
        """Whether this app authenticates clients, so that a token means something to it."""
        return bool(self._auth)

    async def admit(
        self, handshake: Handshake, connection: str, dependencies: Hook | None, arrival: Arrival | None = None
    ) -> Admission:
        """Decide about an opening handshake; `connection` is the id of the connection that comes of it.

        `dependencies`, given an `Arrival`, run after the check of the origin; what they raise refuses the client. With
        an `arrival` they have run.
        """
        if self._drain.stopping:
            return Admission(connection=connection, refusal=(503, "This node is stopping; connect again."))
        if not self._origins.allows(handshake.headers):
            self._say_origin(handshake)
            return Admission(connection=connection, refusal=(403, "This origin is not allowed."))
        if dependencies is not None:
            return await self._guarded(handshake, connection, dependencies)
        subprotocol, format = negotiate(handshake.subprotocols)
        resources = None if arrival is None else arrival.resources
        admit = partial(Admission, connection=connection, subprotocol=subprotocol, format=format, resources=resources)
        try:
            if arrival is not None:
                identity = await arrival.identity()
            else:
                identity = await self._identity(handshake)
            checked_at = self._now()
            session = await self._lookup.open(identity, handshake.query_params.get("session"))
        except NoCredentials as error:
            return admit(identity=None, error=None if self._waits_for_credentials else error)
        except EventError as error:
            return admit(identity=None, error=error)
        except BackendError as error:
            return unavailable(connection, f"unable to look up its session: {error}")
        return admit(identity=identity, session=session, checked_at=checked_at)

    async def _guarded(self, handshake: Handshake, connection: str, dependencies: Hook) -> Admission:
        arrival = Arrival(handshake, partial(self._identity, handshake))
        try:
            await dependencies(arrival)
            admission = await self.admit(handshake, connection, None, arrival)
        except BaseException as error:
            try:
                if arrival.resources is not None:
                    await arrival.resources.close(error)
            except Exception as replaced:  # a dependency raised another error, or its clean-up failed
                return self._turned_away(replaced, handshake, connection)
            if not isinstance(error, Exception):
                raise
            return self._turned_away(error, handshake, connection)
        if admission.refusal is not None and arrival.resources is not None:
            await arrival.resources.close()
        return admission

    def _turned_away(self, error: Exception, handshake: Handshake, connection: str) -> Admission:
        if isinstance(error, AuthError):  # the client's credentials, which a dependency asked for
            subprotocol, format = negotiate(handshake.subprotocols)
            return Admission(connection=connection, subprotocol=subprotocol, format=format, identity=None, error=error)
        if isinstance(error, BackendError):
            return unavailable(connection, error)
        refusal = as_event_error(error)
        if refusal is None and status_of(error) == 500:
            logger.error("A dependency of the handshake failed", exc_info=error)
            self._failures.note(error)
        text = "The server failed." if refusal is None else cut(sendable(refusal.message), MAX_TEXT)
        return Admission(connection=connection, refusal=(status_of(error), text), cause=error)

    def _provide(self, arrival: Arrival, owner: object, function: Callable[..., Any]) -> Callable[..., Any]:
        hook = self._auth_hooks.get(id(owner))
        if hook is None:
            return function

        async def call(*passed: Any) -> Any:
            try:
                return await hook(arrival, *passed)
            except Exception as error:
                refusal = as_event_error(error)
                if refusal is None or isinstance(refusal, AuthError):
                    raise
                raise AuthError(refusal.message, details=refusal.details) from error  # a dependency's HTTPException

        return call

    async def _identity(self, handshake: Handshake) -> Identity:
        visitor = visiting.get()
        if visitor is not None and visitor.identity is not None:
            return visitor.identity
        return await self.authenticate(handshake) if self._auth else ANONYMOUS

    async def identify(self, handshake: Handshake) -> Identity:
        """Who sends a request that becomes no connection. Raises `AuthError`, `Revoked` and `BackendError`."""
        identity = await self._identity(handshake)
        await self._lookup.check(identity, None)
        return identity

    def _say_origin(self, handshake: Handshake) -> None:
        if self._origin_line.is_due():
            logger.warning(
                "Refused a page of the origin %s with HTTP 403: allowed_origins has %s. If the page is yours, add its "
                "origin there. This line comes once a minute at most.",
                one_line(", ".join(map(repr, handshake.headers.getlist("origin"))), 200),
                cut(", ".join(map(repr, sorted(self._origins.origins))), 500),
            )

    async def authenticate(self, handshake: Handshake) -> Identity:
        """Who the client is. Raises `AuthError`."""
        if not self._auth_hooks:
            identity = await authenticate(self._auth, handshake)
        else:
            token = provider.set(partial(self._provide, Arrival(handshake, partial(self.authenticate, handshake))))
            try:
                identity = await authenticate(self._auth, handshake)
            finally:
                provider.reset(token)
        if identity.user_id is not None:
            try:
                check_user_id(identity.user_id)
            except ValueError as error:
                logger.warning("refused: %s", error)
                raise AuthError("The server cannot use the user id of these credentials.") from None
        return identity
