"""Which identity and session a connection has, until when, and what can revoke them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from socketspec.concurrency.timing_wheel import TimingWheel
from socketspec.connection.connection import Connection
from socketspec.errors import CloseCode
from socketspec.identity import Identity
from socketspec.membership.directory import Directory
from socketspec.membership.node_orders import NodeOrders
from socketspec.session.config import Session
from socketspec.session.lookup import SessionLookup
from socketspec.session.revocation import Revoked
from socketspec.session.session_tokens import check_session

__all__ = ("Credentials",)


class Credentials:
    """Sets a connection's identity and session, and what follows from them: its deadlines, and what can revoke it."""

    def __init__(
        self,
        lookup: SessionLookup,
        directory: Directory,
        orders: NodeOrders,
        wheel: TimingWheel[Connection],
        now: Callable[[], float],
    ) -> None:
        self._lookup = lookup
        self._directory = directory
        self._orders = orders
        self._wheel = wheel
        self._now = now

    def adopt(self, conn: Connection, identity: Identity, session: Session, checked_at: float) -> None:
        """Set the connection's identity and session; close it if either was revoked after `checked_at`."""
        now = self._now()
        ahead = now - time.time()  # makes a time since the epoch one of the event loop's clock
        if session.expires_at is not None and (conn.session is not session or conn.clock.expires_at is None):
            conn.clock.session_resumed(session.expires_at + ahead, now)
        conn.authenticated(identity, session)
        expires_at = identity.token_expires_at
        conn.clock.token_refreshed(None if expires_at is None else expires_at + ahead)
        deadline = conn.clock.next_deadline()
        if deadline is None:
            self._wheel.cancel(conn)
        else:
            self._wheel.schedule(conn, deadline)
        subjects = self._lookup.subjects(identity, session.id)
        self._directory.set_subjects(conn, subjects)
        if self._orders.has_revoked(subjects, since=checked_at):
            conn.close(CloseCode.REVOKED, error=Revoked())

    async def refresh(self, conn: Connection, identity: Identity) -> None:
        """Replace the connection's token by a newer one of the same user. Raises `Revoked` and `BackendError`."""
        checked_at = self._now()
        await self._lookup.check(identity, conn.session.id)
        if conn.is_open:
            self.adopt(conn, identity, conn.session, checked_at)

    async def resume_session(self, conn: Connection, brought: object) -> None:
        """Continue the session whose token the client brought. The connection never lasts longer because of it.

        If the client's own credentials name a session, or there is none for the token, the connection keeps the one it
        has. Raises as `SessionLookup.open` does.
        """
        if self._lookup.named(conn.identity) is not None or check_session(brought) == conn.session.id:
            return
        checked_at = self._now()
        session = await self._lookup.find(conn.identity, brought)
        if session is None or not conn.is_open:
            return
        own = conn.session
        if own.expires_at is not None and session.expires_at is not None and own.expires_at < session.expires_at:
            session = replace(session, started_at=own.started_at, expires_at=own.expires_at)
        self.adopt(conn, conn.identity, session, checked_at)
