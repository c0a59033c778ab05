"""Which session a connection belongs to, and whether it may go on."""

from __future__ import annotations

import re
from typing import Any, Final

from socketspec.backend.protocols import Sessions as Store
from socketspec.errors import ErrorCode, EventError, ValidationFailed
from socketspec.identity import Identity
from socketspec.session.config import Session, SessionConfig
from socketspec.session.revocation import Kind, Revoked, digest, subject_of

__all__ = ("SessionVerifier", "check_session")

REMEMBERED: Final = 86_400.0
"""Seconds that the begin of a session is remembered after its end, so that it cannot begin again."""

_SESSION = re.compile(r"[A-Za-z0-9_-]{16,128}")


class SessionVerifier:
    """Finds out which session a connection belongs to, and whether that may go on."""

    def __init__(self, namespace: str, config: SessionConfig, sessions: Store) -> None:
        self._namespace = namespace
        self._config = config
        self._sessions = sessions

    def named(self, identity: Identity) -> str | None:
        """The session that the client's token names; None where it names none, so that the client may."""
        return _claim(identity, "sid") or _claim(identity, "jti")

    def subjects(self, identity: Identity, session: str | None) -> tuple[str, ...]:
        """Everything by which a connection can be revoked."""
        user = identity.user_id if identity.is_authenticated else None
        tokens = dict.fromkeys((_claim(identity, "sid"), _claim(identity, "jti")))
        named: list[tuple[Kind, str | None]] = [("user", user), *(("token", token) for token in tokens)]
        named.append(("session", session))
        return tuple(subject_of(self._namespace, kind, value) for kind, value in named if value is not None)

    async def check(self, identity: Identity, session: str | None) -> None:
        """Raises `Revoked`, and `BackendError` where that cannot be known."""
        subjects = self.subjects(identity, session)
        if subjects and await self._sessions.is_revoked(subjects):
            raise Revoked

    async def open(self, identity: Identity, brought: object = None) -> Session:
        """The session of a connection that may be opened; `brought` is the session token the client came with.

        Raises `Revoked`, an `EventError` with ``SESSION_EXPIRED``, `ValidationFailed` for what cannot be a session
        token, and `BackendError`.
        """
        known = self.named(identity)
        if known is None and brought is not None:
            known = check_session(brought)
        await self.check(identity, known)
        fresh = Session(config=self._config)
        id = fresh.id if known is None else known
        duration = self._config.max_duration
        if duration is None:
            return fresh if known is None else Session(id=id, config=self._config, started_at=fresh.started_at)
        key = digest(self._namespace, "begun", identity.user_id, id)
        began = await self._sessions.begin(key, ttl=duration + REMEMBERED)
        # The backend's clock is not ours; a session that began just now began now.
        started_at = fresh.started_at if known is None else min(began, fresh.started_at)
        if started_at + duration <= fresh.started_at:
            raise EventError("The session reached its maximum duration.", code=ErrorCode.SESSION_EXPIRED)
        return Session(id=id, config=self._config, started_at=started_at, expires_at=started_at + duration)


def check_session(value: object) -> str:
    """Return `value` if it can be a session token. Raises `ValidationFailed` with a sentence for the client."""
    if isinstance(value, str) and _SESSION.fullmatch(value):
        return value
    raise ValidationFailed(
        "`session` must be the session token from `__connect__`: 16 to 128 letters, digits, hyphens or underscores.",
        details={"reason": "session"},
    )


def _claim(identity: Identity, name: str) -> str | None:
    """A claim that names something: text, or a whole number."""
    value: Any = identity.claims.get(name)
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and value else None
