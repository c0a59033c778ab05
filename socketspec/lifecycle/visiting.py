"""Connections that a test client opens: who they are taken for, and which one came of it."""

from __future__ import annotations

from contextvars import ContextVar

from socketspec.connection.connection import Connection
from socketspec.identity import Identity

__all__ = ("Visitor", "visiting")


class Visitor:
    """One opening handshake of a test client."""

    __slots__ = ("connection", "identity")

    def __init__(self, identity: Identity | None = None) -> None:
        self.identity: Identity | None = identity
        """Who the client is, whatever its credentials say; None: the auth backends are asked."""
        self.connection: Connection | None = None
        """What came of the handshake, as soon as it was accepted."""


visiting: ContextVar[Visitor | None] = ContextVar("socketspec_visiting", default=None)
"""Set by a test client where it calls the application. No client can set it from outside the process."""
