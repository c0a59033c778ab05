"""Test an app in process: the whole stack but the network, with the real codec.

async with TestClient(socket) as client, client.connect() as conn:
    reply = await conn.request("ping", {"n": 1}, Pong)
"""

from socketspec.testing.connection import TestConnection
from socketspec.testing.entry import TestClient
from socketspec.testing.errors import ConnectionClosed, EventFailed, HandshakeRefused, Unexpected
from socketspec.testing.sync import SyncTestClient, SyncTestConnection

__all__ = (
    "ConnectionClosed",
    "EventFailed",
    "HandshakeRefused",
    "SyncTestClient",
    "SyncTestConnection",
    "TestClient",
    "TestConnection",
    "Unexpected",
)
