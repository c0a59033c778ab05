"""Where an application has mounted its `SocketApp`s: found in what FastAPI, Starlette and we ourselves leave to see."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from socketspec.app.app import SocketApp

__all__ = ("Mounted", "mounted_in", "path_of")

MAX_DEPTH: Final = 20
"""Applications within applications that are looked into."""
_VARIABLE: Final = re.compile(r"\{(\w+)(?::\w+)?\}")


class Mounted(NamedTuple):
    """One place where clients connect."""

    path: str
    socket: SocketApp


def mounted_in(app: Any, prefix: str = "", depth: int = MAX_DEPTH) -> Iterator[Mounted]:
    """Every place in `app`, middleware around it and sub-applications included."""
    if depth == 0:
        return
    if isinstance(socket := getattr(app, "socket", None), SocketApp):
        yield Mounted(prefix or "/", socket)
        return
    routes = getattr(app, "routes", None)
    if routes is None:
        if (inner := getattr(app, "app", None)) is not None:  # middleware
            yield from mounted_in(inner, prefix, depth - 1)
        return
    for route in routes:
        yield from _mounted_at(route, prefix, depth - 1)


def _mounted_at(route: Any, prefix: str, depth: int) -> Iterator[Mounted]:
    path = prefix + str(getattr(route, "path", None) or "")
    if isinstance(socket := getattr(getattr(route, "endpoint", None), "socket", None), SocketApp):
        yield Mounted(path, socket)
    elif (
        included := getattr(route, "original_router", None)
    ) is not None:  # newer versions of FastAPI keep included routers whole
        within = str(getattr(getattr(route, "include_context", None), "prefix", ""))
        yield from mounted_in(included, prefix + within, depth)
    elif not hasattr(route, "endpoint") and (inner := getattr(route, "app", None)) is not None:  # Mount, Host
        for found in mounted_in(inner, path, depth):
            yield found._replace(path=path + "/") if found.path == path else found


def path_of(places: list[Mounted], path: str | None, values: Mapping[str, Any]) -> str:
    """The path to connect to. Raises `ValueError` where that has to be said, with what there is to choose from."""
    if path is None:
        paths = sorted({place.path for place in places})
        if len(paths) != 1:
            listed = ", ".join(map(repr, paths)) or "none that can be found"
            raise ValueError(f"There are {len(paths)} sockets to connect to: pass connect(path=…). Mounted: {listed}.")
        path = paths[0]
    missing = [name for name in _VARIABLE.findall(path) if name not in values]
    if missing:
        raise ValueError(
            f"The socket is mounted at {path!r}: pass connect(path=…) with values in it, or "
            f"connect(path_params={{{', '.join(f'{name!r}: …' for name in missing)}}})."
        )
    return _VARIABLE.sub(lambda found: str(values[found[1]]), path)
