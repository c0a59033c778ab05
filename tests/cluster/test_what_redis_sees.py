"""What a Redis and whoever watches it learn of clients: no session, no token, and users only as addresses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from redis.asyncio import Redis

from socketspec import Identity, SocketApp
from socketspec.protocol.handshake import Handshake
from socketspec.session import SessionConfig
from socketspec.testing import TestClient
from tests.servers import Server

END = "the-last-thing-said"


class ByClaims:
    """Takes a JSON object of claims for a verified token."""

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        claims: dict[str, Any] = json.loads(handshake.query_params["token"])
        return Identity(user_id=claims["sub"], claims=claims)


def claims(**named: Any) -> dict[str, str]:
    return {"token": json.dumps(named)}


async def watched(redis: Redis, heard: list[str], begun: asyncio.Event) -> None:
    """What the server is told, up to `END`."""
    async with redis.monitor() as monitor:
        begun.set()
        while not heard or END not in heard[-1]:
            heard.append(str((await monitor.next_command())["command"]))


async def test_no_session_or_token_is_in_redis_or_on_its_way_as_it_is(standalone_server: Server) -> None:
    heard: list[str] = []
    app = SocketApp(
        backend=standalone_server.url, auth=ByClaims(), session=SessionConfig(max_duration=600), namespace="/seen"
    )
    async with Redis.from_url(standalone_server.url) as redis:
        watching = asyncio.create_task(watched(redis, heard, begun := asyncio.Event()))
        await asyncio.wait_for(begun.wait(), 10)
        async with TestClient(app) as client:
            named = await client.connect(query_params=claims(sub="seen-ada", sid="the-sid-0001", jti="the-jti-0001"))
            given = (await client.connect(query_params=claims(sub="seen-bob"))).connection.session.id
            back = await client.connect(query_params=claims(sub="seen-bob") | {"session": given})
            assert back.connection.session.id == given
            await app.sessions.revoke(session=given, user="revoked-user", token_id="the-jti-0001")
            await app.sessions.revoke(session=named.connection.session.id)
            await app.sessions.revoke(session="the-sid-0001")
            await app.users.send(END, "event")
        await asyncio.wait_for(watching, 10)
        keys = [key.decode() async for key in redis.scan_iter(count=1000)]
    seen = "\n".join((*heard, *keys))
    for secret in (given, given[:32], "the-sid-0001", "the-jti-0001", "revoked-user"):
        assert secret not in seen
    assert "seen-ada" in seen, "an address: of the user's channel"
