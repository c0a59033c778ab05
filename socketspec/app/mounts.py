"""Finds the `SocketApp`s of an application: where they are served, what guards them there, and which are not served.

Known by their shape, not by their type: applications and routers have `routes`, what wraps one has it as `app`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from socketspec.app.app import SocketApp
from socketspec.app.misuse import NOT_ASGI
from socketspec.declaration.signatures import describe
from socketspec.errors import ConfigurationError

__all__ = ("Mounted", "Serves", "bare", "mounted", "place_problems", "refuse_bare")

_DEEPEST: Final = 32
"""Applications within applications, and wrappers around one, that are looked into."""


class Serves:
    """The base of whatever answers for an app: how it is found."""

    socket: SocketApp
    dependencies: tuple[Callable[..., Any], ...]
    """What runs at the handshake before the app's own."""


class Mounted(NamedTuple):
    """One place where clients reach an app."""

    socket: SocketApp
    path: str
    prefix: str
    """What stands before the paths of the app's pages."""
    dependencies: tuple[Callable[..., Any], ...]
    """What runs at the handshake before the app's own: of the application, its routers, `include_router`, `mount`."""
    passed_by: tuple[Callable[..., Any], ...]
    """What outer applications declare for all that is theirs, and frameworks do not run for a sub-application."""
    starts_with_it: bool
    """Whether the application's lifespan starts the app, and stops it in order."""
    route: Any = None
    """The route that serves it, where there is one."""


class _Place(NamedTuple):
    path: str = ""
    passed_by: tuple[Callable[..., Any], ...] = ()
    depth: int = 0


def mounted(application: Any) -> tuple[Mounted, ...]:
    """Every place in `application`, in the order of its routes."""
    return tuple(found for found in _found(application, _Place()) if isinstance(found, Mounted))


def bare(application: Any) -> tuple[tuple[str, SocketApp], ...]:
    """The apps mounted as they are, by ``app.mount("/ws", socket)``, each with its path: nobody serves them."""
    return tuple(found for found in _found(application, _Place()) if not isinstance(found, Mounted))


def refuse_bare(application: Any) -> None:
    """Raise `ConfigurationError` where a `SocketApp` is mounted as it is."""
    if isinstance(application, SocketApp):
        raise ConfigurationError(NOT_ASGI)
    for path, _ in bare(application):
        raise ConfigurationError(
            f"app.mount({path!r}, socket) serves nothing: a SocketApp is no ASGI application. Write "
            f"mount(socket, app, path={path!r}), with `from socketspec.adapters.fastapi import mount`."
        )


def place_problems(socket: SocketApp, places: Sequence[Mounted]) -> Iterator[ConfigurationError]:
    """What could work at none of the `places` at which `socket` is mounted, or refuses every client at one of them."""
    for place in places:
        for problem in _unfit(getattr(place.route, "dependant", None), place.path):
            yield ConfigurationError(problem)
    variables = {name for place in places for name in _variables(place.path)}
    for name, owner in socket.registry.path_variables.items():
        if places and name not in variables:
            shown = ", ".join(sorted({place.path for place in places}))
            yield ConfigurationError(
                f"{owner} asks for the path variable {name!r}, which no path has that the app is mounted at ({shown}). "
                f"Write mount(socket, app, path='/ws/{{{name}}}')."
            )


def _variables(path: str) -> list[str]:
    return re.findall(r"\{([^}:]+)[^}]*\}", path)


def _unfit(dependant: Any, path: str) -> Iterator[str]:
    """What dependencies that FastAPI runs at the handshake ask for, and no handshake has."""
    for each in getattr(dependant, "dependencies", ()):
        call = each.call
        owner = describe(call) if callable(call) else repr(call)
        parameters = _parameters(call)
        request = getattr(each, "request_param_name", None)
        if request is not None and parameters[request].default is inspect.Parameter.empty:
            yield (
                f"{owner} runs at the handshake of {path} and takes a Request, which a WebSocket has not: every client "
                f"would be refused. Write {request}: HTTPConnection, which both have (from starlette.requests)."
            )
        needed = [field.name for field in getattr(each, "body_params", ()) if _is_required(field)]
        if needed:
            yield (
                f"{owner} runs at the handshake of {path} and reads {needed[0]!r} from a body, which a handshake has "
                "not: every client would be refused. Put that dependency on the HTTP routes that need it."
            )
        for field in getattr(each, "path_params", ()):
            if field.alias not in _variables(path):
                yield (
                    f"{owner} runs at the handshake of {path} and asks for the path variable {field.alias!r}, which "
                    f"that path has not. Write mount(socket, app, path='/ws/{{{field.alias}}}')."
                )
        yield from _unfit(each, path)


def _parameters(call: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):
        return defaultdict(lambda: _UNKNOWN)


_UNKNOWN: Final = inspect.Parameter("unknown", inspect.Parameter.KEYWORD_ONLY, default=None)


def _is_required(field: Any) -> bool:
    is_required = getattr(field, "required", None)
    if is_required is None:
        is_required = field.field_info.is_required()
    return bool(is_required)


def _found(application: Any, place: _Place) -> Iterator[Mounted | tuple[str, SocketApp]]:
    application = _unwrapped(application)
    if isinstance(application, SocketApp):
        yield place.path or "/", application
    elif isinstance(application, Serves):
        own, path = application.dependencies, place.path
        yield Mounted(application.socket, f"{path}/", path, own, place.passed_by, place.depth == 0)
    elif place.depth < _DEEPEST:
        inside = _Place(place.path, (*place.passed_by, *_calls(_of_router(application))), place.depth + 1)
        for route in _routes(application):
            yield from _of_route(route, place, inside)


def _of_route(route: Any, place: _Place, inside: _Place) -> Iterator[Mounted | tuple[str, SocketApp]]:
    path = place.path + (getattr(route, "path", None) or "")
    endpoint = getattr(route, "endpoint", None)
    served = getattr(endpoint, "served", None)
    app = getattr(served, "app", None)
    if isinstance(app, Serves):
        dependant = getattr(route, "dependant", None)
        runs = tuple(each.call for each in getattr(dependant, "dependencies", ()))
        prefix = path.removesuffix(getattr(served, "path", ""))
        calls = (*runs, *app.dependencies)
        yield Mounted(app.socket, path, prefix, calls, place.passed_by, place.depth == 0, route)
    elif isinstance(endpoint, SocketApp):
        yield path, endpoint
    elif endpoint is None and getattr(route, "app", None) is not None:
        yield from _found(route.app, inside._replace(path=path))


def _unwrapped(application: Any) -> Any:
    """What middleware and the like are wrapped around."""
    for _ in range(_DEEPEST):
        inner = getattr(application, "app", None)
        if isinstance(application, SocketApp | Serves) or hasattr(application, "routes") or not callable(inner):
            break
        application = inner
    return application


def _routes(application: Any) -> Sequence[Any]:
    """Its routes, those of included routers with what they have there."""
    routes = getattr(application, "routes", None)
    if not isinstance(routes, Sequence):
        return ()
    # From 0.13x on, FastAPI looks through included routers when it needs to; before, it copied their routes.
    look_through: Callable[[Any], Iterator[Any]] | None = getattr(
        sys.modules.get("fastapi.routing"), "iter_route_contexts", None
    )
    return routes if look_through is None else tuple(look_through(routes))


def _of_router(application: Any) -> Sequence[Any]:
    router = getattr(application, "router", application)
    dependencies = getattr(router, "dependencies", ())
    return dependencies if isinstance(dependencies, Sequence) else ()


def _calls(dependencies: Sequence[Any]) -> Iterator[Callable[..., Any]]:
    for each in dependencies:
        call = getattr(each, "dependency", None)
        if callable(call):
            yield call
