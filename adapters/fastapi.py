"""FastAPI (and Starlette): `mount` puts a `SocketApp` on an application or router, beside its other routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

try:
    from starlette.applications import Starlette
    from starlette.routing import Route, Router, WebSocketRoute
except ImportError as _error:
    raise ImportError("SocketSpec's FastAPI adapter needs FastAPI: pip install 'socketspec[fastapi]'") from _error

from socketspec.adapters.asgi import ASGIApp, Receive, Scope, Send, answer, send_response
from socketspec.app import SocketApp
from socketspec.errors import ConfigurationError
from socketspec.pages import Response

__all__ = ("mount",)


class _WebSocketEndpoint:
    """The connection endpoint. An object, not a function: Starlette then hands the ASGI call through as it is."""

    def __init__(self, socket: SocketApp) -> None:
        self._app = ASGIApp(socket)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app.websocket(scope, receive, send)


class _PageEndpoint:
    """One of the app's pages, under whatever path the router gives it."""

    def __init__(self, socket: SocketApp, page: str) -> None:
        self._socket = socket
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await answer(self._socket, scope, self._page)
        await send_response(send, response or Response(404, b'{"detail":"Not Found"}'))


def mount(socket: SocketApp, app: Starlette | Router, path: str = "/ws") -> None:
    """Serve `socket` at `path` of a FastAPI or Starlette application, or of an APIRouter.

    Clients connect to ``ws://host{path}``. The schema page, health report and debug feed get routes of their own at
    the paths `socket` was given. The application keeps its own lifespan; the socket app starts before it and stops
    after it. Mount on an APIRouter before you include it. A sub-application's lifespan is not run by its parent
    (Starlette's rule): there the socket app starts with its first connection; to stop it in order, enter
    ``socket.lifespan()`` in the parent's lifespan.

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
    pages = {route.path for route in router.routes if isinstance(route, Route)}
    for page in socket.pages.paths:
        if prefix + page not in pages:  # several apps may share a health path: the first one answers there
            router.routes.append(Route(prefix + page, _PageEndpoint(socket, page), include_in_schema=False))
    _wrap_lifespan(socket, router)


def _wrap_lifespan(socket: SocketApp, router: Router) -> None:
    inner = router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with socket.lifespan(), inner(app) as state:
            yield state

    router.lifespan_context = lifespan
