"""``socketspec serve``: an application on the fast and hardened server, with a paced drain at its end."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path

from socketspec.app.mounts import refuse_bare
from socketspec.cli.arguments import drain_seconds, port, whole
from socketspec.cli.output import FAILED, MISUSED, fail
from socketspec.errors import ConfigurationError
from socketspec.extras import install

__all__ = ("add_to",)

_EPILOG = """\
examples:
  socketspec serve main:app
  socketspec serve shop.web:app --host 0.0.0.0 --port 80 --workers 4 --forwarded-allow-ips 10.0.0.0/8

SIGTERM or Ctrl-C drains: the node reports itself not ready, clients are told, and connections leave one after the other
over the drain window. A second signal ends it at once.

exit status: 0 stopped in order, 1 could not start, 2 misused
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "serve",
        help="serve an application, fast and hardened",
        description="Serve an ASGI application on uvicorn with SocketSpec's WebSocket protocol, guard and drain.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("app", metavar="MODULE:ATTRIBUTE", help="the application, such as main:app")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="0 picks a free one (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=whole("processes", 1, 1024),
        default=1,
        help="processes that share the port (default: 1)",
    )
    parser.add_argument("--deflate", action="store_true", help="compress messages for clients that offer it")
    parser.add_argument(
        "--drain-window",
        type=drain_seconds,
        metavar="SECONDS",
        help="over which connections leave at the end (default: as each SocketApp says: 10)",
    )
    parser.add_argument(
        "--drain-grace",
        type=drain_seconds,
        metavar="SECONDS",
        help="that handlers have after that (default: as each SocketApp says: 10)",
    )
    parser.add_argument("--root-path", default="", help="the path under which a proxy serves the application")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("critical", "error", "warning", "info", "debug"),
        help="(default: %(default)s)",
    )
    parser.add_argument("--log-format", default="text", choices=("text", "json"), help="(default: %(default)s)")
    parser.add_argument("--no-access-log", dest="access_log", action="store_false", help="do not log each request")
    parser.add_argument(
        "--no-proxy-headers", dest="proxy_headers", action="store_false", help="ignore X-Forwarded-* headers"
    )
    parser.add_argument("--forwarded-allow-ips", metavar="IPS", help="proxies whose X-Forwarded-* headers are believed")
    parser.add_argument(
        "--max-connections",
        type=whole("connections", 1, 10_000_000),
        metavar="NUMBER",
        help="WebSockets of one process; more get 503 (default: as many as its open files allow, less a reserve)",
    )
    parser.add_argument(
        "--max-connections-per-address",
        type=whole("connections", 1, 10_000_000),
        metavar="NUMBER",
        help="WebSockets that one address may have with one process; more get 429 (default: no limit)",
    )
    parser.add_argument(
        "--accepts-per-second",
        type=whole("connections", 1, 1_000_000),
        metavar="NUMBER",
        help="connections that one process accepts in a second (default: as they come)",
    )
    parser.add_argument("--ssl-certfile", metavar="FILE", help="certificate for https and wss")
    parser.add_argument("--ssl-keyfile", metavar="FILE", help="its key")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("uvicorn", "websockets", "h11") if find_spec(name) is None]
    if missing:
        return fail(f"serve needs {' and '.join(missing)}: {install('fastapi')}")
    for name in ("drain_window", "drain_grace"):  # workers and apps read it there
        seconds = getattr(arguments, name)
        if seconds is not None:
            os.environ[f"SOCKETSPEC_{name.upper()}"] = str(seconds)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))

    from socketspec.adapters.uvicorn.serve import Serving, serve, set_up_logging

    options = {
        name: value for name, value in vars(arguments).items() if name in Serving.__slots__ and value is not None
    }
    serving = Serving(**options)
    set_up_logging(serving)
    problem = _problem(arguments.app)
    if problem is not None:
        return problem
    try:
        return 0 if serve(serving) else FAILED
    except OSError as error:
        return fail(f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror or error}")


def _problem(app: str) -> int | None:
    """Say why the application cannot be loaded; None where it can."""
    from uvicorn.importer import ImportFromStringError, import_from_string

    if ":" not in app:
        return fail(f"{app!r} does not say which object of the module to serve; write {app}:app", MISUSED)
    try:
        found = import_from_string(app)
    except ImportFromStringError as error:
        return fail(f"cannot load {app!r}: {error} (looked in {Path.cwd()})")
    except Exception:
        traceback.print_exc()
        return fail(f"importing {app.partition(':')[0]!r} failed; the reason is above")
    if not callable(found):
        return fail(f"{app!r} is {type(found).__name__}, not an ASGI application")
    try:
        refuse_bare(found)
    except ConfigurationError as error:
        return fail(f"{app!r}: {error}")
    return None
