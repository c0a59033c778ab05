"""The states of a connection. Every legal transition is in the one table of this file, and nowhere else.

The diagram in ``docs/protocol.md`` is checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

__all__ = ("TRANSITIONS", "State")

_IS_SHARED: Final = (
    "conn.state.{name} cannot be set: conn.state says where the connection stands, and all connections share its "
    "values. What is to be kept for this connection goes into its dict: conn.metadata[{name!r}] = …"
)


class State(Enum):
    """Where a connection stands.

    Other frameworks have a `state` to keep things on. Here all connections share these members, so what is set on one
    would be seen by everybody: it is refused.
    """

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

    def __setattr__(self, name: str, value: object) -> None:
        """Raise `AttributeError`, except for what `enum` itself sets."""
        if name[:1] != "_":
            raise AttributeError(_IS_SHARED.format(name=name))
        super().__setattr__(name, value)


TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.AUTHENTICATING: frozenset({State.OPENING, State.CLOSING, State.CLOSED}),
    State.OPENING: frozenset({State.OPEN, State.CLOSING, State.CLOSED}),
    State.OPEN: frozenset({State.CLOSING, State.CLOSED}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}
