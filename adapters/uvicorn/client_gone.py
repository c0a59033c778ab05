"""A client that leaves before its request is complete: one line in the log, not the traceback of an error."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote

__all__ = ("ASGIApp", "quiet_about_clients_that_left")

logger: logging.Logger = logging.getLogger("uvicorn.error")

DISCONNECTS: Final = frozenset({"ClientDisconnect", "ClientDisconnected", "RequestAborted"})
"""What frameworks raise where a body ends with the connection: Starlette, Litestar, Django. Known by their names, so
that none of them has to be installed."""

ASGIApp = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[Any]]


def quiet_about_clients_that_left(app: ASGIApp) -> ASGIApp:
    """`app`, without the error that its framework raises when a client has left before its request was complete.

    Any client can have that raised with a few bytes, so it must neither fill the log nor set off an alert.
    """

    async def call(
        scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> Any:
        has_left = False

        async def watched() -> Any:
            nonlocal has_left
            event = await receive()
            has_left = has_left or event["type"] == "http.disconnect"
            return event

        try:
            return await app(scope, watched, send)
        except Exception as error:
            if not (has_left and _is_disconnect(error)):
                raise
            logger.info("The client left before its request was complete: %s %s", scope["method"], quote(scope["path"]))
            return None

    return call


def _is_disconnect(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # of a middleware with tasks
        return all(map(_is_disconnect, error.exceptions))
    return any(kind.__name__ in DISCONNECTS for kind in type(error).__mro__)
