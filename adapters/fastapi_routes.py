"""The routes that clients connect to. FastAPI's kind of route, so that its dependencies guard the socket as well."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from socketspec.adapters.asgi import ASGIApp, Receive, Scope
from socketspec.adapters.asgi_transport import Send
from socketspec.app.app import SocketApp
from socketspec.declaration.signatures import Kind, kind_of
from socketspec.errors import ConfigurationError

__all__ = ("add_websocket_route", "mounted_on")


def add_websocket_route(socket: SocketApp, router: Any, path: str, dependencies: Sequence[Any]) -> None:
    """Put `socket` on `router` at `path`."""
    app = ASGIApp(socket, dependencies=dependencies)
    name = f"socketspec {path}"
    routing: Any = sys.modules.get("fastapi.routing")  # not imported: Starlette alone has no dependencies
    is_fastapi = routing is not None and isinstance(router, routing.APIRouter)
    provider = router.dependency_overrides_provider if is_fastapi else None
    mounted_on(socket, provider)
    if routing is None or not is_fastapi or (provider is not None and not router.dependencies):
        # Nothing guards it: the router is an application's own, so nobody includes it elsewhere with more dependencies.
        path = router.prefix + path if is_fastapi else path
        router.routes.append(WebSocketRoute(path, _Endpoint(app), name=name))
        return
    route: Any = routing.APIWebSocketRoute(
        router.prefix + path,
        _guarded_endpoint(app),
        name=name,
        dependencies=router.dependencies,
        dependency_overrides_provider=provider,
    )
    router.routes.append(route)


def mounted_on(socket: SocketApp, app: Any) -> None:
    """Have `socket` respect the `dependency_overrides` of `app`, if it has any: FastAPI's do."""
    if app is not None and isinstance(getattr(app, "dependency_overrides", None), dict):
        socket.registry.overrides.add(app)


class _Endpoint:
    """As an object, not a function, it is called by Starlette as an ASGI app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.socket: SocketApp = app.socket
        self._mounted_on: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        application = scope.get("app")
        if application is not self._mounted_on:
            mounted_on(self._app.socket, application)
            self._mounted_on = application
        await self._app.websocket(scope, receive, send, raises=True)


def _guarded_endpoint(app: ASGIApp) -> Any:
    """What FastAPI calls when the dependencies of the route have let the client pass.

    A route that is included elsewhere is made anew around this, with the dependencies of all routers together.
    """

    async def socketspec(websocket: WebSocket) -> None:
        mounted_on(app.socket, websocket.scope.get("app"))
        stays = bool(app.socket.registry.overrides.current) or _may_open(websocket.scope.get("route"))
        await app.websocket(websocket.scope, websocket.receive, websocket.send, stays=stays, raises=True)

    socketspec.socket = app.socket  # type: ignore[attr-defined] # where a test client finds it
    return socketspec


def _may_open(route: Any) -> bool:
    """Whether a dependency of FastAPI's `route` has something to close, as far as that can be told.

    FastAPI closes it where its endpoint returns, in the endpoint's own task, as anyio's cancel scopes want it.
    """
    try:
        waiting: list[Any] = list(route.dependant.dependencies)
        while waiting:
            dependant = waiting.pop()
            if kind_of(dependant.call) in (Kind.GENERATOR, Kind.ASYNC_GENERATOR):
                return True
            waiting += dependant.dependencies
    except (AttributeError, TypeError, ConfigurationError):
        return True  # a FastAPI that is built otherwise
    return False
