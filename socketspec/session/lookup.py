"""Which session a connection belongs to, and whether it may go on."""

from __future__ import annotations

import time
from typing import Any, Final

from socketspec.backend.first_seen import FirstSeen
from socketspec.backend.protocols import Sessions as Store
from socketspec.errors import ErrorCode, EventError
from socketspec.identity import Identity
from socketspec.session.config import Session, SessionConfig
from socketspec.session.revocation import Kind, Revoked, digest, subject_of
from socketspec.session.session_tokens import bound_name, check_session, is_given_to, name_of, new_token

__all__ = ("SessionLookup",)

REMEMBERED: Final = 86_400.0
"""Seconds that the begin of a session is remembered after its end, so that it cannot begin again."""


class SessionLookup:
    """Finds out which session a connection belongs to, and whether that may go on."""

    def __init__(self, namespace: str, config: SessionConfig, sessions: Store) -> None:
        self._namespace = namespace
        self._config = config
        self._sessions = sessions

    def named(self, identity: Identity) -> str | None:
        """What the client's token calls its session; None where it names none, so that the client may."""
        return _claim(identity, "sid") or _claim(identity, "jti")

    def subjects(self, identity: Identity, session: str | None) -> tuple[str, ...]:
        """Everything by which a connection can be revoked."""
        user = _user(identity)
        tokens = dict.fromkeys((_claim(identity, "sid"), _claim(identity, "jti")))
        named: list[tuple[Kind, str | None]] = [("user", user), *(("token", token) for token in tokens)]
        if session is not None:  # by its id, which is this user's alone, and by the bare claim, which others may share
            named += [("session", session), ("session", name_of(session, self._namespace, user))]
        return tuple(subject_of(self._namespace, kind, value) for kind, value in named if value is not None)

    async def check(self, identity: Identity, session: str | None) -> None:
        """Raises `Revoked`, and `BackendError` where that cannot be known."""
        subjects = self.subjects(identity, session)
        if subjects and await self._sessions.is_revoked(subjects):
            raise Revoked

    async def open(self, identity: Identity, brought: object = None) -> Session:
        """The session of a connection that may be opened; `brought` is the session token the client came with.

        A token that was not given to this user, or of which nothing is known, names none: a session begins then.
        Raises `Revoked`, an `EventError` with ``SESSION_EXPIRED``, `ValidationFailed` for what cannot be a session
        token, and `BackendError`.
        """
        named = self.named(identity)
        if named is None and brought is not None:
            found = await self.find(identity, brought)
            if found is not None:
                return found
        await self.check(identity, None if named is None else self._bound(identity, named))
        return await self._begin(identity, named)

    async def find(self, identity: Identity, brought: object) -> Session | None:
        """The session of a token that a client brought; None where there is none. Creates nothing.

        Raises as `open` does.
        """
        user = _user(identity)
        token = check_session(brought)
        if not is_given_to(token, self._namespace, user):
            return None
        await self.check(identity, token)
        if self._config.max_duration is None:  # nothing is stored then; that the token is bound to this user is enough
            return Session(id=token, config=self._config)
        began = await self._sessions.began(self._key(user, token))
        return None if began is None else self._session(token, began)

    async def _begin(self, identity: Identity, named: str | None) -> Session:
        user = _user(identity)
        id = new_token(self._namespace, user) if named is None else self._bound(identity, named)
        now = time.time()
        duration = self._config.max_duration
        if duration is None:
            return Session(id=id, config=self._config, started_at=now)
        began = await self._sessions.begin(self._key(user, named or id), ttl=duration + REMEMBERED)
        return self._session(id, now if named is None else began)

    def _session(self, id: str, began: float) -> Session:
        """A session with a record. Raises an `EventError` where its time is over."""
        now = time.time()
        duration = self._config.max_duration or 0.0
        # The backend's clock is not ours, which decides neither when a session began nor how long ago that is.
        age = began.age if isinstance(began, FirstSeen) else max(now - began, 0.0)
        started_at = now - age
        if age >= duration:
            raise EventError("The session reached its maximum duration.", code=ErrorCode.SESSION_EXPIRED)
        return Session(id=id, config=self._config, started_at=started_at, expires_at=started_at + duration)

    def _bound(self, identity: Identity, named: str) -> str:
        return bound_name(self._namespace, _user(identity), named)

    def _key(self, user: str | None, id: str) -> str:
        return digest(self._namespace, "begun", user, id)


def _user(identity: Identity) -> str | None:
    """Who a session belongs to; None: anybody who is anonymous."""
    return identity.user_id if identity.is_authenticated else None


def _claim(identity: Identity, name: str) -> str | None:
    """A claim that names something: text, or a whole number."""
    value: Any = identity.claims.get(name)
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and value else None
