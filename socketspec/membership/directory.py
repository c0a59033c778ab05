"""This node's connections: by id, and by what revokes them; and when the last one has left."""

from __future__ import annotations

import asyncio

from socketspec.connection.connection import Connection

__all__ = ("Directory",)


class Directory:
    """Lists every connection from its handshake until it has been cleaned up after."""

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        """By id."""
        self.emptied: asyncio.Event = asyncio.Event()
        """Set from when the last connection has been cleaned up after until there is another one."""
        self._found: dict[str, Connection | dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self.connections)

    def add(self, conn: Connection) -> None:
        """List a new connection by its id."""
        self.connections[conn.id] = conn
        self.emptied.clear()

    def remove(self, conn: Connection) -> None:
        """`conn` has been cleaned up after."""
        self.connections.pop(conn.id, None)
        if not self.connections:
            self.emptied.set()

    def set_subjects(self, conn: Connection, subjects: tuple[str, ...]) -> None:
        """Find `conn` by `subjects`, and by no others."""
        self.drop_subjects(conn)
        conn.subjects = subjects
        for subject in subjects:
            others = self._found.get(subject)
            if others is None:
                self._found[subject] = conn  # most subjects have one connection: no container for it
            elif isinstance(others, dict):
                others[conn] = None
            else:
                self._found[subject] = {others: None, conn: None}

    def drop_subjects(self, conn: Connection) -> None:
        """Find `conn` by no subject any more."""
        subjects, conn.subjects = conn.subjects, ()
        for subject in subjects:
            found = self._found.get(subject)
            if isinstance(found, dict):
                found.pop(conn, None)
                if not found:
                    del self._found[subject]
            elif found is conn:
                del self._found[subject]

    def find(self, subject: str) -> list[Connection]:
        """The connections of `subject`."""
        found = self._found.get(subject)
        if found is None:
            return []
        return list(found) if isinstance(found, dict) else [found]

    @property
    def subjects(self) -> int:
        """How many subjects stand for a connection."""
        return len(self._found)
