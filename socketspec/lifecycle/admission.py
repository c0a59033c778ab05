"""Who may come in: origin, authentication, session."""

from __future__ import annotations

from dataclasses import dataclass, field

from socketspec.connection.connection import connection_id
from socketspec.errors import CloseCode, ErrorCode, EventError
from socketspec.identity import ANONYMOUS, Identity
from socketspec.protocol.formats import Format
from socketspec.session.config import Session
from socketspec.session.revocation import Revoked

__all__ = ("Admission", "refusal_code")


UNAVAILABLE = (503, "The cluster backend cannot be reached; connect again.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What became of an opening handshake."""

    refusal: tuple[int, str] | None = None
    """Refuse before accepting, with this HTTP status and text."""
    connection: str = field(default_factory=connection_id)
    """The id of the connection that is to come."""
    subprotocol: str | None = None
    format: Format = Format.PLAIN
    identity: Identity | None = ANONYMOUS
    """None: accept, and wait for credentials in the first message."""
    session: Session | None = None
    """None: begin one."""
    checked_at: float = 0.0
    """When it was found that nothing of this is revoked, on the engine's clock."""
    error: EventError | None = None
    """Accept, send this error, and close with its `refusal_code`."""


def refusal_code(error: EventError) -> CloseCode:
    """The close code for a client whose credentials or session are refused."""
    if isinstance(error, Revoked):
        return CloseCode.REVOKED
    return CloseCode.SESSION_EXPIRED if error.code == ErrorCode.SESSION_EXPIRED else CloseCode.AUTH_FAILED
