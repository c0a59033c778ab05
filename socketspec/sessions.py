"""Sessions across connections and nodes: when one began, and who may not come back.

What is stored and sent between nodes are digests, never a session token, token id or user id itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from socketspec.backend import Sessions as Store
from socketspec.errors import AuthError, ErrorCode, EventError, ValidationFailed
from socketspec.identity import Identity
from socketspec.session import Session, SessionConfig

if TYPE_CHECKING:
    from socketspec.engine import Engine

__all__ = ("MAX_TTL", "REVOKED_FOR", "Revoked", "SessionBook", "Sessions", "check_session", "revocation_subjects")

MAX_TTL: Final = 10 * 365 * 86_400.0
"""The longest that a revocation may last, in seconds."""
REVOKED_FOR: Final = 86_400.0
"""Seconds a revocation lasts unless it says otherwise."""
REMEMBERED: Final = 86_400.0
"""Seconds that the begin of a session is remembered after its end, so that it cannot begin again."""

_SESSION = re.compile(r"[A-Za-z0-9_-]{16,128}")


class Revoked(AuthError):
    """The session, user or token of this client was revoked."""

    def __init__(self) -> None:
        super().__init__("These credentials were revoked. Sign in again.", details={"reason": "revoked"})


class Sessions:
    """`socket.sessions`: end what a user, a session or a token may do, on every node."""

    def __init__(self, engine: Callable[[], Awaitable[Engine]]) -> None:
        self._engine = engine

    async def revoke(
        self,
        *,
        session: str | None = None,
        user: str | None = None,
        token_id: str | None = None,
        ttl: float = REVOKED_FOR,
        reason: str = "revoked",
    ) -> None:
        """Refuse a session, a user's every connection or a token from now on, and close what they have open.

        `session` is a ``conn.session.id``, `token_id` a JWT's ``jti`` or ``sid``. Live connections are closed with
        4005 and `reason`, on every node; for `ttl` seconds (10 years at most) new ones get ``AUTH_ERROR`` and 4005. Set
        `ttl` to what is left of the token's life. Connections of other namespaces are not concerned.

        Raises `ValueError` where nothing is named, and `BackendError`: call it again then, it may be called twice.
        """
        if isinstance(ttl, bool) or not 0 < ttl <= MAX_TTL:
            raise ValueError(f"revoke(ttl={ttl!r}) must be more than 0 seconds and at most 10 years")
        engine = await self._engine()
        subjects = revocation_subjects(engine.settings.namespace, session=session, user=user, token_id=token_id)
        for subject in subjects:
            await engine.backend.sessions.revoke(subject, ttl=ttl)
        # Not earlier: who is closed comes back at once, and has to find the record.
        await engine.control.revoke(subjects, reason)


def revocation_subjects(
    namespace: str, *, session: str | None = None, user: str | None = None, token_id: str | None = None
) -> tuple[str, ...]:
    """What `backend.Sessions.revoke` is told and nodes tell each other. Raises `ValueError` where nothing is named."""
    named: list[tuple[_Kind, str | None]] = [("session", session), ("user", user), ("token", token_id)]
    for kind, value in named:
        given: object = value  # untyped code passes anything
        if given is not None and not (isinstance(given, str) and given):
            raise ValueError(f"revoke: the {kind} must be a non-empty str, not {given!r}")
    subjects = tuple(_subject(namespace, kind, value) for kind, value in named if value is not None)
    if not subjects:
        raise ValueError("revoke: say what, with session=, user= or token_id=")
    return subjects


class SessionBook:
    """Finds out which session a connection belongs to, and whether that may go on. For the engine."""

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
        named: list[tuple[_Kind, str | None]] = [("user", user), *(("token", token) for token in tokens)]
        named.append(("session", session))
        return tuple(_subject(self._namespace, kind, value) for kind, value in named if value is not None)

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
        key = _digest(self._namespace, "begun", identity.user_id, id)
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


_Kind = Literal["session", "user", "token"]


def _claim(identity: Identity, name: str) -> str | None:
    """A claim that names something: text, or a whole number."""
    value: Any = identity.claims.get(name)
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and value else None


def _subject(namespace: str, kind: _Kind, value: str) -> str:
    return f"{kind}:{_digest(namespace, kind, value)}"


def _digest(*parts: str | None) -> str:
    """128 bits that stand for `parts`; their lengths are part of it, so none can run into the next."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = None if part is None else part.encode("utf-8", "surrogatepass")
        digest.update(b"-:" if data is None else b"%d:%b" % (len(data), data))
    return digest.hexdigest()
