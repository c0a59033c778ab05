"""This node's connections, by what can revoke them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socketspec.connection.connection import Connection

__all__ = ("Directory",)


class Directory:
    """Which of this node's connections a subject stands for."""

    def __init__(self) -> None:
        self._found: dict[str, Connection | dict[Connection, None]] = {}

    def set(self, conn: Connection, subjects: tuple[str, ...]) -> None:
        """List `conn` under `subjects` and no others."""
        self.discard(conn)
        conn.subjects = subjects
        for subject in subjects:
            others = self._found.get(subject)
            if others is None:
                self._found[subject] = conn  # most subjects have one connection: no container for it
            elif isinstance(others, dict):
                others[conn] = None
            else:
                self._found[subject] = {others: None, conn: None}

    def discard(self, conn: Connection) -> None:
        """List `conn` no more."""
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

    def __len__(self) -> int:
        return len(self._found)
