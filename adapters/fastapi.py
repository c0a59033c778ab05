"""FastAPI (and Starlette): `mount` puts a `SocketApp` on an application or router, beside its other routes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from socketspec.extras import install

try:
    from starlette.applications import Starlette
    from starlette.routing import Route, Router, WebSocketRoute
except ImportError as _error:
    raise ImportError(f"SocketSpec's FastAPI adapter needs FastAPI: {install('fastapi')}") from _error

from socketspec.adapters.asgi import NOT_FOUND, ASGIApp, Receive, Scope, answer, send_response
from socketspec.adapters.asgi_transport import Event, Send
from socketspec.app.app import SocketApp
from socketspec.errors import BackendError, ConfigurationError
from socketspec.text import one_line

__all__ = ("mount",)


class _WebSocketEndpoint:
    """The route that clients connect to. As an object, not a function, it is called by Starlette as an ASGI app."""

    def __init__(self, socket: SocketApp) -> None:
        self._app = ASGIApp(socket)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app.websocket(scope, receive, send)


class _PageEndpoint:
    """One page of an app, or of several that share a health path: then the first one that is not ready answers."""

    def __init__(self, socket: SocketApp, page: str) -> None:
        self.sockets = [socket]
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = [await answer(socket, scope, self._page) for socket in self.sockets]
        found = [response or NOT_FOUND for response in answers]
        await send_response(send, next((response for response in found if response.status != 200), found[0]))


def mount(socket: SocketApp, app: Starlette | Router, path: str = "/ws") -> None:
    """Serve `socket` at `path` of a FastAPI or Starlette application, or of an APIRouter.

    Clients connect to ``ws://host{path}``. The schema page, health report and debug feed get routes of their own at
    the paths `socket` was given; apps may share a health path, which is ready when all of them are. The application
    keeps its own lifespan; the socket app starts before it and stops after it. Mount on an APIRouter before you
    include it. Starlette does not run the lifespan of a sub-application: there the socket app starts with its first
    connection, and is stopped in order only if the parent's lifespan enters ``socket.lifespan()``.

    Raises `ConfigurationError` for a path that is taken or does not begin with "/", or another kind of app.
    """
    router = app.router if isinstance(app, Starlette) else app
    if not isinstance(router, Router):
        raise ConfigurationError(
            f"mount() needs a FastAPI or Starlette application or an APIRouter, not {type(app).__name__}; "
            "for other frameworks use socketspec.adapters.asgi.ASGIApp(socket)."
        )
    if not path.startswith("/"):
        raise ConfigurationError(f"mount(path={path!r}) must begin with '/': write path={'/' + path!r}.")
    prefix: str = getattr(router, "prefix", "")
    taken = {route.path for route in router.routes if isinstance(route, WebSocketRoute)}
    if prefix + path in taken:
        raise ConfigurationError(f"There is a WebSocket route at {prefix + path!r} already; mount at another path.")
    router.routes.append(WebSocketRoute(prefix + path, _WebSocketEndpoint(socket), name=f"socketspec {path}"))
    for page in socket.pages.paths:
        _add_page(socket, router, prefix, page)
    _wrap_lifespan(socket, router)


def _add_page(socket: SocketApp, router: Router, prefix: str, page: str) -> None:
    there = next((route for route in router.routes if isinstance(route, Route) and route.path == prefix + page), None)
    if there is None:
        router.routes.append(Route(prefix + page, _PageEndpoint(socket, page), include_in_schema=False))
    elif page == socket.pages.health_url and isinstance(there.endpoint, _PageEndpoint):
        there.endpoint.sockets.append(socket)
    elif not isinstance(there.endpoint, _PageEndpoint) or socket not in there.endpoint.sockets:
        raise ConfigurationError(
            f"There is a route at {prefix + page!r} already; give this SocketApp another docs_url, debug_url or "
            "health_url."
        )


def _wrap_lifespan(socket: SocketApp, router: Router) -> None:
    inner = router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with socket.lifespan(), inner(app) as state:
            yield state

    router.lifespan_context = lifespan
    _wrap_lifespan_messages(router)


def _wrap_lifespan_messages(router: Router) -> None:
    """Where Redis is away at the start, have the server log a sentence. Starlette sends it a traceback, as of a bug."""
    inner = router.lifespan

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_shortly(event: Event) -> None:
            error = sys.exc_info()[1]  # Starlette sends this event while it handles the error
            if event["type"] == "lifespan.startup.failed" and isinstance(error, BackendError):
                event = {**event, "message": one_line(error)}
            await send(event)

        await inner(scope, receive, send_shortly)

    router.lifespan = lifespan  # type: ignore[method-assign] # the one place that all its lifespan events go through
