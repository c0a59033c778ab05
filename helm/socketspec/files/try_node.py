"""What `helm test` runs: two clients connect, join a room, one publishes, and both must receive it.

It needs nothing but what is in the image: websockets, and PyJWT where it makes a token from the nodes' own secret.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from websockets.asyncio.client import ClientConnection, connect


def credentials() -> dict[str, str]:
    """A header that lets us in: from TRY_TOKEN, an API key of the nodes, or a token signed with their secret."""
    if token := os.environ.get("TRY_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    if keys := os.environ.get("SOCKETSPEC_API_KEYS"):
        # Only the last equals sign parts key and user: keys may end with some.
        first = keys.split(",")[0].strip()
        return {"X-API-Key": first.rpartition("=")[0] or first}
    if secret := os.environ.get("SOCKETSPEC_JWT_SECRET"):
        import jwt

        claims: dict[str, Any] = {"sub": "helm-test", "iat": int(time.time()), "exp": int(time.time()) + 300}
        for claim, variable in (("aud", "SOCKETSPEC_JWT_AUDIENCE"), ("iss", "SOCKETSPEC_JWT_ISSUER")):
            if value := os.environ.get(variable):
                claims[claim] = value
        algorithm = os.environ.get("SOCKETSPEC_JWT_ALGORITHM") or "HS256"
        return {"Authorization": f"Bearer {jwt.encode(claims, secret, algorithm)}"}
    return {}


async def ask(client: ClientConnection, envelope: str) -> dict[str, Any] | None:
    """Send `envelope` and wait for its answer; what arrives before that and is `TRY_RECEIVE` is returned."""
    await client.send(json.dumps({**json.loads(envelope), "id": "ask"}))
    received = None
    async for text in client:
        message = json.loads(text)
        if message["event"] == "__error__":
            raise SystemExit(f"the node refused {envelope}: {message['payload']}")
        if message["event"] == "__ack__" and message.get("id") == "ask":
            return received
        if message["event"] == os.environ["TRY_RECEIVE"]:
            received = message
    raise SystemExit(f"the node closed the connection at {envelope}: {client.close_code} {client.close_reason}")


async def receive(client: ClientConnection) -> dict[str, Any]:
    """The next `TRY_RECEIVE`."""
    async for text in client:
        message: dict[str, Any] = json.loads(text)
        if message["event"] == os.environ["TRY_RECEIVE"]:
            return message
    raise SystemExit(f"the node closed the connection: {client.close_code} {client.close_reason}")


async def main() -> None:
    """Try it once."""
    url, headers = os.environ["TRY_URL"], credentials()
    async with (
        asyncio.timeout(float(os.environ.get("TRY_TIMEOUT", "60"))),
        connect(url, additional_headers=headers) as publisher,
        connect(url, additional_headers=headers) as listener,
    ):
        began = time.monotonic()
        for client in (publisher, listener):
            await ask(client, os.environ["TRY_JOIN"])
        early = await ask(publisher, os.environ["TRY_PUBLISH"])
        heard = await receive(listener)
        own = early or await receive(publisher)
        if own["payload"] != heard["payload"]:
            raise SystemExit(f"the two clients received different messages: {own} and {heard}")
        sys.stdout.write(f"Both clients received {heard} after {time.monotonic() - began:.3f} s.\n")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except TimeoutError:
        sys.exit(f"It took too long; the event {os.environ['TRY_RECEIVE']!r} did not arrive.")
    except Exception as error:
        sys.exit(f"{os.environ['TRY_URL']}: {type(error).__name__}: {error}")
