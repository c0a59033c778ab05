"""FastAPI-style WebSocket pub/sub that scales horizontally."""

from socketspec.app.app import SocketApp
from socketspec.app.router import EventRouter
from socketspec.connection.connection import Connection
from socketspec.declaration.contracts import Broadcasts, Emits
from socketspec.declaration.dependencies import Depends
from socketspec.declaration.events import Event
from socketspec.declaration.rooms import Room
from socketspec.identity import Identity
from socketspec.protocol.publications import History

__version__ = "0.2.0.dev0"

__all__ = (
    "Broadcasts",
    "Connection",
    "Depends",
    "Emits",
    "Event",
    "EventRouter",
    "History",
    "Identity",
    "Room",
    "SocketApp",
    "__version__",
)
