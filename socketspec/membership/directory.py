"""This node's connections: found by id, or by what can be revoked; and when the last one has left."""

from __future__ import annotations

import asyncio

from socketspec.connection.connection import Connection

__all__ = ("Directory",)


class Directory:
    """Lists every connection from its handshake until it has been cleaned up after.

    A *subject* is something that can be revoked (a user, a session or a token), as a digest.
    """

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        """By id."""
        self.emptied: asyncio.Event = asyncio.Event()
        """Set when the last connection has been cleaned up after, cleared when another one comes."""
        self._by_subject: dict[str, Connection | dict[Connection, None]] = {}
        self._subjects: dict[Connection, tuple[str, ...]] = {}

    def add(self, conn: Connection) -> None:
        """List a new connection by its id."""
        self.connections[conn.id] = conn
        self.emptied.clear()

    def remove(self, conn: Connection) -> None:
        """Take out a connection that has been cleaned up after."""
        self.connections.pop(conn.id, None)
        if not self.connections:
            self.emptied.set()

    def set_subjects(self, conn: Connection, subjects: tuple[str, ...]) -> None:
        """Find `conn` by `subjects`, and by no others."""
        self.drop_subjects(conn)
        self._subjects[conn] = subjects
        for subject in subjects:
            others = self._by_subject.get(subject)
            if others is None:
                self._by_subject[subject] = conn  # most subjects have one connection: no container for it
            elif isinstance(others, dict):
                others[conn] = None
            else:
                self._by_subject[subject] = {others: None, conn: None}

    def drop_subjects(self, conn: Connection) -> None:
        """Find `conn` by no subject any more."""
        for subject in self._subjects.pop(conn, ()):
            found = self._by_subject.get(subject)
            if isinstance(found, dict):
                found.pop(conn, None)
                if not found:
                    del self._by_subject[subject]
            elif found is conn:
                del self._by_subject[subject]

    def subjects(self) -> list[str]:
        """Everything by which a connection can be found now."""
        return list(self._by_subject)

    def find(self, subject: str) -> list[Connection]:
        """The connections of `subject`."""
        found = self._by_subject.get(subject)
        if found is None:
            return []
        return list(found) if isinstance(found, dict) else [found]
