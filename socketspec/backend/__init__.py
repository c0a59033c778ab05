"""The seam between nodes: all the names that a backend of your own needs."""

from socketspec.backend.first_seen import FirstSeen
from socketspec.backend.protocols import (
    Backend,
    BackendFigures,
    Broker,
    Deliver,
    Displaced,
    Health,
    HistoryStore,
    LeasedPresence,
    Limits,
    Lost,
    Measured,
    Presence,
    Sessions,
)
from socketspec.protocol.publications import History, Member, Position, Publication, Receipt, Topic

__all__ = (
    "Backend",
    "BackendFigures",
    "Broker",
    "Deliver",
    "Displaced",
    "FirstSeen",
    "Health",
    "History",
    "HistoryStore",
    "LeasedPresence",
    "Limits",
    "Lost",
    "Measured",
    "Member",
    "Position",
    "Presence",
    "Publication",
    "Receipt",
    "Sessions",
    "Topic",
)
