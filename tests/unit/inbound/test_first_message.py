"""A client that authenticates by its first message: what it may send before, and what it is let in with."""

from __future__ import annotations

from typing import Any

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.protocol.handshake import Handshake
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import TestClient
from tests.backends import SharedBackend


class ByToken:
    """The token is the user's name; it may come as the first message."""

    first_message = True

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        return None if handshake.token is None else Identity(user_id=handshake.token)


def _by_path(conn: Connection) -> str:
    return conn.handshake.path


@pytest.mark.parametrize("scope", ["ip", "user", "connection", None, _by_path])
@pytest.mark.parametrize("backend", [MemoryBackend, SharedBackend])
async def test_a_rate_limit_lets_the_first_message_through(backend: type[MemoryBackend], scope: Any) -> None:
    app = SocketApp(backend=backend(), auth=ByToken(), rate_limit=RateLimit(10, 10, scope=scope))
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("__refresh_auth__", {"token": "ada"}, id=1)
        assert (await conn.receive(timeout=1))["event"] == "__ack__"
        assert conn.identity.user_id == "ada"
