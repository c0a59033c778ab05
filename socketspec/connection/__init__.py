"""One client: its connection, and what its messages go out through."""

from socketspec.connection.connection import Connection
from socketspec.connection.outbox import Backpressure

__all__ = ("Backpressure", "Connection")
