"""``socketspec dev``: an application for whoever writes it, with reload, docs and debug, on this machine only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from socketspec.app.app import SocketApp
from socketspec.app.mounts import Mounted, mounted, refuse_bare
from socketspec.cli.arguments import port
from socketspec.cli.loading import CannotLoad, Loaded, load, place_of
from socketspec.cli.output import FAILED, MISUSED, fail
from socketspec.errors import ConfigurationError
from socketspec.extras import install
from socketspec.runtime import development
from socketspec.text import get_logger

__all__ = ("add_to",)

_EPILOG = """\
examples:
  socketspec dev main:app
  socketspec dev main:create_app --factory --port 9000
  socketspec dev main:socket

docs= and debug= of every SocketApp that does not say are on. Ctrl-C ends it at once. A SocketApp that no application of
its module has is served by itself, at /ws.

What cannot be loaded, or does not start, is waited for until a file changes.

exit status: 0 stopped, 1 cannot listen, 2 misused
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "dev",
        help="serve an application while you write it",
        description="Serve an application while you write it: reloads on changes, docs and debug on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("app", metavar="MODULE:ATTRIBUTE", help="an application or a SocketApp, such as main:app")
    parser.add_argument("--factory", action="store_true", help="the attribute is a function that returns it")
    parser.add_argument("--app-dir", default="", metavar="FOLDER", help="where the module is (default: here)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="0 picks a free one (default: %(default)s)")
    parser.add_argument(
        "--reload-dir",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder whose .py files are watched (default: here, and --app-dir); may be repeated",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("uvicorn", "websockets", "h11", "starlette") if find_spec(name) is None]
    if missing:
        return fail(f"dev needs {' and '.join(missing)}: {install('fastapi')}")
    folders = [Path(name) for name in arguments.reload_dir or [".", *filter(None, [arguments.app_dir])]]
    absent = [str(folder) for folder in folders if not folder.is_dir()]
    if absent:
        return fail(f"--reload-dir {absent[0]}: there is no such folder", MISUSED)
    if ":" not in arguments.app:
        return fail(
            f"{arguments.app!r} does not say which object of the module to serve; write {arguments.app}:app", MISUSED
        )

    from socketspec.adapters.uvicorn.develop import develop
    from socketspec.adapters.uvicorn.serve import Serving, set_up_logging

    serving = Serving(app=arguments.app, host=arguments.host, port=arguments.port)
    set_up_logging(serving)
    if arguments.host not in ("127.0.0.1", "::1", "localhost"):
        get_logger("socketspec").warning(
            "Everybody who reaches %s sees failures and every event: debug is on. Leave --host out to serve this "
            "machine alone.",
            arguments.host,
        )
    loads = partial(_load, arguments.app, arguments.app_dir, arguments.factory)
    try:
        develop(serving, loads, sorted({folder.resolve() for folder in folders}))
    except OSError as error:
        other = f"; if something else has the port, write --port {arguments.port + 1}" if arguments.port else ""
        return fail(f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror or error}{other}", FAILED)
    return 0


def _load(target: str, app_dir: str, factory: bool) -> tuple[Any, Callable[[str], None]] | None:
    """In the serving process: the application, made for its developer; None where there is nothing to serve."""
    development.begin()
    try:
        loaded = load(target, app_dir=app_dir, factory=factory)
        application = _served(loaded)
        refuse_bare(application)
    except (CannotLoad, ConfigurationError) as error:
        fail(f"{error}")
        print("Waiting for a change.", file=sys.stderr, flush=True)
        return None
    return application, partial(_greet, loaded, application)


def _served(loaded: Loaded) -> Any:
    if not isinstance(loaded.application, SocketApp):
        return loaded.application

    from starlette.applications import Starlette

    from socketspec.adapters.fastapi import mount

    application = Starlette()
    mount(loaded.application, application)
    return application


def _greet(loaded: Loaded, application: Any, url: str) -> None:
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    places = mounted(application)
    lines = [*_notes(loaded, places)]
    for place in places:
        name = place_of(place.socket) or place.socket.title
        lines += ["", f"  {name}", *(f"    {what:10} {address}" for what, address in _addresses(place, url))]
    openapi: str | None = getattr(application, "docs_url", None)
    if openapi:
        lines += ["", f"  {'HTTP docs':12} {url}{openapi}"]
    print("\n".join([*lines, "", "Ctrl-C stops it."]), flush=True)


def _notes(loaded: Loaded, places: tuple[Mounted, ...]) -> Iterator[str]:
    if not places:
        yield f"No SocketApp is mounted on {loaded.target}: write mount(socket, app), with"
        yield "`from socketspec.adapters.fastapi import mount`."
    elif loaded.application is loaded.named:
        if isinstance(loaded.named, SocketApp):
            yield f"{loaded.target} is served by itself: no application of its module has it mounted."
    else:
        yield f"{loaded.target} is mounted on {loaded.application_name}, which is served."


def _addresses(place: Mounted, url: str) -> Iterator[tuple[str, str]]:
    pages = place.socket.pages
    yield "WebSocket", f"ws{url.removeprefix('http')}{place.path}"
    for what, path in (("docs", pages.docs_url), ("debug", pages.debug_url), ("health", pages.health_url)):
        if path is not None:
            yield what, f"{url}{place.prefix}{path}"
