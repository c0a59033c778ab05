"""A limit of WebSockets for each address that clients come from."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

from socketspec.adapters.uvicorn.gate import RETRY_AFTER

__all__ = ("WHEN_CLOSED", "PerAddress")

WHEN_CLOSED: Final = "socketspec.when_closed"
"""The extension of the scope that takes a function, and calls it when the connection is gone."""
ONE_CLIENT: Final = 64
"""Bits of an IPv6 address by which it is counted: a client has all addresses that begin with them."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class PerAddress:
    """The application `app`, for whose WebSockets each address may have `limit` connections; more get 429.

    `refused` is called for each of those. To be called behind what reads the address from trusted proxies' headers.
    """

    def __init__(self, app: Callable[..., Awaitable[Any]], limit: int, refused: Callable[[], None]) -> None:
        self._app = app
        self._refused = refused
        self._limit = limit
        self._connections: Counter[str] = Counter()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and scope["client"] and not self._counted(scope):
            self._refused()
            headers = [(b"retry-after", b"%d" % RETRY_AFTER), (b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "websocket.http.response.start", "status": 429, "headers": headers})
            body = b"There are too many connections from this address.\n"
            await send({"type": "websocket.http.response.body", "body": body})
        else:
            await self._app(scope, receive, send)

    def _counted(self, scope: MutableMapping[str, Any]) -> bool:
        """Whether there is a place; if so, it is taken until the connection is gone."""
        when_closed = scope["extensions"].get(WHEN_CLOSED)
        if when_closed is None:
            return True
        address = _counted_by(scope["client"][0])
        if self._connections.get(address, 0) >= self._limit:
            return False
        self._connections[address] += 1
        when_closed(partial(self._left, address))
        return True

    def _left(self, address: str) -> None:
        self._connections[address] -= 1
        if not self._connections[address]:
            del self._connections[address]


def _counted_by(address: str) -> str:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # a proxy may name it in another way
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found.packed, ONE_CLIENT), strict=False))
