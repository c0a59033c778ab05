"""`socket.sessions`: revoke sessions, users and tokens, on all nodes.

Only digests are stored and sent between nodes, never a session token, a token id or a user id itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from socketspec.runtime.engine import Engine
from socketspec.session.revocation import REVOKED_FOR, check_ttl, revocation_subjects

__all__ = ("Sessions",)


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

        `session` is a ``conn.session.id``, or the ``sid`` or else ``jti`` that names it, which is whoever's session has
        that name. `token_id` is a JWT's ``jti`` or ``sid``. Open connections are closed with
        4005 and `reason`, on every node; for `ttl` seconds (10 years at most) new ones get ``AUTH_ERROR`` and 4005. Set
        `ttl` to what is left of the token's life. Other namespaces are not concerned.

        Raises `ValueError` if nothing is named, and `BackendError`: then call it again, which is safe.
        """
        check_ttl(ttl)
        engine = await self._engine()
        subjects = revocation_subjects(engine.settings.namespace, session=session, user=user, token_id=token_id)
        for subject in subjects:
            await engine.backend.sessions.revoke(subject, ttl=ttl)
        # Only now: a client that is closed connects again at once, and by then the revocation has to be stored.
        await engine.orders.revoke(subjects, reason)
