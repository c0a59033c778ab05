"""Connections of redis-py in an event loop: which kind an address wants, and what these do otherwise than usual."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection

from socketspec.cluster.options import Address
from socketspec.cluster.servers.connections import side_by_side

__all__ = ("make_connection",)


def make_connection(
    address: Address, settings: Mapping[str, Any], context: ssl.SSLContext | None
) -> AbstractConnection:
    """A connection to `address` that has yet to connect. `context`: of TLS; None: without."""
    if address.is_unix:
        return UnixDomainSocketConnection(**settings)
    if context is None:
        return _PlainConnection(**settings)
    return _TlsConnection(context, **settings)


class _Eager:
    """Tries the addresses of a name side by side: the first of them may be one that nobody has any more."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments: Mapping[str, Any] = super()._connection_arguments()  # type: ignore[misc] # a mix-in for redis-py's connections
        return {**arguments, **side_by_side(arguments["host"])}


class _PlainConnection(_Eager, Connection):
    """Without TLS."""


class _TlsConnection(_Eager, SSLConnection):
    """Uses our TLS settings, which redis-py would read from files for each connection (measured: 38 ms of CPU).

    And ends at once when it is told not to wait: the polite end of TLS would wait for the server's for up to 30 s, long
    after the event loop is closed.
    """

    def __init__(self, context: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(**settings)
        self.ssl_context.context = context

    async def disconnect(self, nowait: bool = False, *args: Any, **kwargs: Any) -> None:
        if nowait and self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(nowait, *args, **kwargs)
