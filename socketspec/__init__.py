"""FastAPI-style WebSocket pub/sub that scales horizontally."""

from socketspec.app import SocketApp
from socketspec.backend import History
from socketspec.connection import Connection
from socketspec.contracts import Broadcasts, Emits
from socketspec.dependencies import Depends
from socketspec.identity import Identity
from socketspec.rooms import Room

__version__ = "0.2.0.dev0"

__all__ = (
    "Broadcasts",
    "Connection",
    "Depends",
    "Emits",
    "History",
    "Identity",
    "Room",
    "SocketApp",
    "__version__",
)
