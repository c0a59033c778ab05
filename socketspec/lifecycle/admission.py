"""Who may come in: origin, authentication, session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from socketspec.errors import AuthError, BackendError, CloseCode, ErrorCode, EventError
from socketspec.identity import ANONYMOUS, Identity
from socketspec.lifecycle.drain import Drain
from socketspec.protocol.formats import Format, negotiate
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.names import check_user_id
from socketspec.security.auth import AuthBackend, NoCredentials, authenticate
from socketspec.security.origins import OriginPolicy
from socketspec.session.config import Session
from socketspec.session.lookup import SessionLookup
from socketspec.session.revocation import Revoked
from socketspec.telemetry.log_pace import OnceAMinute
from socketspec.text import cut, get_logger, one_line

__all__ = ("Admission", "Admissions", "refusal_code")

logger: logging.Logger = get_logger("socketspec")

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
        lookup: SessionLookup,
        drain: Drain,
        now: Callable[[], float],
    ) -> None:
        self._origins = origins
        self._auth = auth
        self._waits_for_credentials = any(getattr(backend, "first_message", False) for backend in auth)
        self._lookup = lookup
        self._drain = drain
        self._now = now
        self._origin_line = OnceAMinute(now)

    @property
    def wants_tokens(self) -> bool:
        """Whether this app authenticates clients, so that a token means something to it."""
        return bool(self._auth)

    async def admit(self, handshake: Handshake, connection: str) -> Admission:
        """Decide about an opening handshake; `connection` is the id of the connection that comes of it."""
        if self._drain.stopping:
            return Admission(connection=connection, refusal=(503, "This node is stopping; connect again."))
        if not self._origins.allows(handshake.headers):
            self._say_origin(handshake)
            return Admission(connection=connection, refusal=(403, "This origin is not allowed."))
        subprotocol, format = negotiate(handshake.subprotocols)
        admit = partial(Admission, connection=connection, subprotocol=subprotocol, format=format)
        try:
            identity = await self.authenticate(handshake) if self._auth else ANONYMOUS
            checked_at = self._now()
            session = await self._lookup.open(identity, handshake.query_params.get("session"))
        except NoCredentials as error:
            return admit(identity=None, error=None if self._waits_for_credentials else error)
        except EventError as error:
            return admit(identity=None, error=error)
        except BackendError as error:
            logger.error("Refused a connection with HTTP 503, unable to look up its session: %s", error)
            return Admission(connection=connection, refusal=UNAVAILABLE)
        return admit(identity=identity, session=session, checked_at=checked_at)

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
        identity = await authenticate(self._auth, handshake)
        if identity.user_id is not None:
            try:
                check_user_id(identity.user_id)
            except ValueError as error:
                logger.warning("refused: %s", error)
                raise AuthError("The server cannot use the user id of these credentials.") from None
        return identity
