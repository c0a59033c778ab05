"""How many connections one server process has, and how many it may have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol

from uvicorn.server import ServerState

__all__ = ("RETRY_AFTER", "Gate", "GatedState", "gate_of")

RETRY_AFTER: Final = 5
"""Seconds after which a client that found the node full may come again."""


class Dropped(Protocol):
    """A connection that has not been upgraded: a request, or nothing yet."""

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""
        ...

    def drop(self) -> None:
        """Close at once."""
        ...


class Gate:
    """Counts connections. Beyond `max_connections` WebSockets, only requests are answered, such as those of probes."""

    def __init__(self, max_connections: int, spare: int) -> None:
        self.max_connections: int = max_connections
        self.ceiling: int = max_connections + spare
        """Connections of all kinds."""
        self.refused: int = 0
        """Upgrades that were answered with 503."""
        self.address_refused: int = 0
        """Upgrades that were answered with 429: their address had as many as it may have."""
        self.dropped: int = 0
        """Connections that asked for nothing, and had to make room."""
        self._all: Collection[object] = ()
        self._plain: dict[Dropped, None] = {}
        """Connections that have not been upgraded, the oldest first."""

    def count(self, everything: Collection[object]) -> None:
        """The server's own set of its connections, from which this one reads how many there are."""
        self._all = everything

    @property
    def connections(self) -> int:
        """WebSocket connections."""
        return len(self._all) - len(self._plain)

    @property
    def is_full(self) -> bool:
        """Whether a further WebSocket would be refused."""
        return self.connections >= self.max_connections

    def came(self, connection: Dropped) -> None:
        """A connection, of which nothing has been read yet."""
        self._plain[connection] = None

    def left(self, connection: Dropped) -> None:
        """It was closed, or became a WebSocket; no error if it did before."""
        self._plain.pop(connection, None)

    def refuses(self) -> bool:
        """Whether the next WebSocket has to be refused; counts those that are."""
        self.refused += self.is_full
        return self.is_full

    def has_room(self, opening: int) -> bool:
        """Whether one more connection may be accepted, beside `opening` ones whose TLS handshake is under way."""
        return len(self._all) + opening < self.ceiling

    def drop_idle(self) -> bool:
        """Drop the oldest connection that asks for nothing: whoever holds such ones cannot keep probes out.

        Returns whether there was one.
        """
        idle = next((connection for connection in self._plain if connection.is_idle), None)
        if idle is None:
            return False
        self.dropped += 1
        self.left(idle)
        idle.drop()
        return True


class GatedState(ServerState):
    """uvicorn's state of a server, which every protocol gets, with its gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate: Gate = gate
        gate.count(self.connections)


def gate_of(state: ServerState) -> Gate | None:
    """The gate of a server; None where it has none."""
    return state.gate if isinstance(state, GatedState) else None
