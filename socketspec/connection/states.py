"""The states of a connection. Every legal transition is in the one table of this file, and nowhere else.

The diagram in ``docs/protocol.md`` is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

__all__ = ("TRANSITIONS", "State")


class State(Enum):
    """Where a connection stands."""

    AUTHENTICATING = "authenticating"
    """Accepted without credentials: only `__refresh_auth__` is heard, until a deadline."""
    OPENING = "opening"
    """Authenticated; the `on_connect` hooks run."""
    OPEN = "open"
    """Events are handled."""
    CLOSING = "closing"
    """The server has decided to close: what is buffered is sent, nothing more is read."""
    CLOSED = "closed"
    """The transport is gone."""


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.AUTHENTICATING: frozenset({State.OPENING, State.CLOSING, State.CLOSED}),
    State.OPENING: frozenset({State.OPEN, State.CLOSING, State.CLOSED}),
    State.OPEN: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}
