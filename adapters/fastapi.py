"""FastAPI (and Starlette): `mount` puts a `SocketApp` on an application or router, beside its other routes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from socketspec.extras import install

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import HTTPConnection
    from starlette.routing import Route, Router, WebSocketRoute
except ImportError as _error:
    raise ImportError(f"SocketSpec's FastAPI adapter needs FastAPI: {install('fastapi')}") from _error

from socketspec.adapters.asgi import NOT_FOUND, Receive, Scope, answer, handshake_of, send_response
from socketspec.adapters.asgi_transport import Event, Send
from socketspec.adapters.fastapi_errors import answer_errors
from socketspec.adapters.fastapi_routes import add_websocket_route, mounted_on
from socketspec.app.app import SocketApp
from socketspec.app.mounts import mounted, place_problems, refuse_bare
from socketspec.declaration.signatures import listed
from socketspec.errors import BackendError, ConfigurationError, EventError
from socketspec.identity import Identity
from socketspec.text import one_line

__all__ = ("CurrentIdentity", "mount")


class CurrentIdentity:
    """A dependency for HTTP routes and events alike: the client's `Identity`, by the auth backends of `socket`.

        Caller = Annotated[Identity, Depends(CurrentIdentity(socket))]

    Of an HTTP request it reads what it reads of a handshake: headers, query, not the body. Bad or no credentials are
    answered with 401, and an unreachable backend with 503. On an event it is the connection's identity.
    """

    provides_identity: bool = True

    def __init__(self, socket: SocketApp) -> None:
        self._socket = socket

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CurrentIdentity) and other._socket is self._socket

    def __hash__(self) -> int:
        return hash((CurrentIdentity, id(self._socket)))

    async def __call__(self, connection: HTTPConnection) -> Identity:
        """Authenticate an HTTP request."""
        try:
            engine = await self._socket.ensure_started()
            return await engine.identify(handshake_of(connection.scope))
        except EventError as error:  # bad, no or revoked credentials
            raise HTTPException(401, error.message, {"WWW-Authenticate": "Bearer"}) from error
        except ValueError as error:
            raise HTTPException(400, "Too many query parameters.") from error
        except BackendError as error:
            raise HTTPException(503, "The service cannot be reached at the moment.") from error


class _PageEndpoint:
    """One page of an app, or of several that share a health path: then the first one that is not ready answers."""

    def __init__(self, socket: SocketApp, page: str) -> None:
        self.sockets = [socket]
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = [await answer(socket, scope, self._page) for socket in self.sockets]
        found = [response or NOT_FOUND for response in answers]
        await send_response(send, next((response for response in found if response.status != 200), found[0]))


def mount(socket: SocketApp, app: Starlette | Router, path: str = "/ws", *, dependencies: Sequence[Any] = ()) -> None:
    """Serve `socket` at `path` of a FastAPI or Starlette application, or of an APIRouter.

    Clients connect to ``ws://host{path}``; variables of the path (``/ws/{tenant}``) are in `Connection.path_params`.
    What guards the routes of a FastAPI application or router guards the socket: dependencies of the application, of the
    router and of `include_router` run at the opening handshake, as for FastAPI's own WebSocket routes, then
    `dependencies`, then those of `socket`. What one raises is answered by the application's exception handlers. What
    they open is closed when the connection has ended. An `EventError`, such as `PermissionDenied`, is answered by the
    application with the status for it, over HTTP too, unless it has an exception handler for it.

    The schema page, health report and debug feed get routes of their own at the paths `socket` was given; apps may
    share a health path, which is ready when all of them are. The application keeps its own lifespan; the socket app
    starts before it and stops after it. Mount on an APIRouter before you
    include it. Starlette does not run the lifespan of a sub-application: there the socket app starts when its health is
    asked for or with its first connection, and is stopped in order only if the parent's lifespan enters
    ``socket.lifespan()``.

    Raises `ConfigurationError` for a path that is taken or does not begin with "/", or another kind of app.
    """
    if not isinstance(socket, SocketApp):  # pyright: ignore[reportUnnecessaryIsInstance] - what untyped code passes
        raise ConfigurationError(
            f"mount() serves a SocketApp, not {type(socket).__name__}: write mount(socket, app). An EventRouter is "
            "included in one: socket.include_router(router)."
        )
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
    listed("mount", dependencies)
    if isinstance(app, Starlette):
        answer_errors(app)
    add_websocket_route(socket, router, path, dependencies)
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
        mounted_on(socket, app)
        answer_errors(app)
        refuse_bare(router)
        for problem in place_problems(socket, [place for place in mounted(app) if place.socket is socket]):
            raise problem
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
