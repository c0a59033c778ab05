"""``socketspec check``: everything that an app registers, and what looks wrong, without serving it."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from socketspec.app.app import SocketApp
from socketspec.app.mounts import Mounted, bare, mounted
from socketspec.cli.checks.findings import Finding, findings, refused
from socketspec.cli.checks.inventory import inventory
from socketspec.cli.checks.listing import listed
from socketspec.cli.loading import CannotLoad, Loaded, load, place_of, unmounted_beside
from socketspec.cli.output import FAILED, MISUSED, fail
from socketspec.errors import ConfigurationError

__all__ = ("add_to",)

_EPILOG = """\
examples:
  socketspec check main:app
  socketspec check main:create_app --factory --strict
  socketspec check main:socket --json >declared.json

It imports the module, and neither opens a port nor connects to Redis.

exit status: 0 nothing is wrong, 1 something is (with --strict: or is warned of), 2 it cannot be loaded, or misused
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "check",
        help="print everything an app registers, and what looks wrong",
        description="Print everything that an app registers, and what looks wrong, without serving it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "app",
        metavar="MODULE:ATTRIBUTE",
        help="an application with SocketApps mounted, or a SocketApp, such as main:app",
    )
    parser.add_argument("--factory", action="store_true", help="the attribute is a function that returns it")
    parser.add_argument("--app-dir", default="", metavar="FOLDER", help="where the module is (default: here)")
    parser.add_argument("--strict", action="store_true", help="warnings fail as well")
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    apps: list[dict[str, Any]] = []
    found: list[Finding] = []
    try:
        loaded = load(arguments.app, app_dir=arguments.app_dir, factory=arguments.factory)
        folder = Path(arguments.app_dir or ".").resolve()
        found += [
            refused(f"app.mount({path!r}, socket) serves nothing: a SocketApp is no ASGI application. {_write(path)}",
                    place_of(socket), "mounted_as_it_is")
            for path, socket in _bare(loaded)
        ]  # fmt: skip
        for name, socket, places in _sockets(loaded, folder):
            apps.append(inventory(name, socket, places))
            found += findings(name, socket, places)
    except CannotLoad as error:
        return fail(str(error), MISUSED)
    except ConfigurationError as error:
        found.append(refused(f"{error}{_where(error)}"))
    if not apps and not found:
        return fail(
            f"no SocketApp is mounted on {arguments.app!r}; write mount(socket, app), with "
            "`from socketspec.adapters.fastapi import mount`",
            MISUSED,
        )
    found.sort(key=lambda finding: finding.level)  # errors first, otherwise as they were found
    failed = any(finding.level == "error" or arguments.strict for finding in found)
    if arguments.json:
        said = {"target": arguments.app, "ok": not failed, "apps": apps, "findings": [each._asdict() for each in found]}
        print(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        print(listed(apps, found), end="")
    return FAILED if failed else 0


def _bare(loaded: Loaded) -> Sequence[tuple[str, SocketApp]]:
    return () if isinstance(loaded.application, SocketApp) else bare(loaded.application)


def _sockets(loaded: Loaded, folder: Path) -> list[tuple[str, SocketApp, list[Mounted]]]:
    """Each app once: those that are mounted, in the order of their paths, then those that are not."""
    places: list[Mounted] = []
    known: dict[int, SocketApp] = {}
    if not isinstance(loaded.application, SocketApp):
        places = list(mounted(loaded.application))
        known = {id(place.socket): place.socket for place in places}
        known |= {id(socket): socket for _, socket in bare(loaded.application)}
    if isinstance(loaded.named, SocketApp):
        known = {id(loaded.named): loaded.named}  # it alone was asked for
    else:
        known |= {id(socket): socket for socket in unmounted_beside(folder)}
    return [
        (place_of(socket) or socket.title, socket, [place for place in places if place.socket is socket])
        for socket in known.values()
    ]


def _write(path: str) -> str:
    return f"Write mount(socket, app, path={path!r}), with `from socketspec.adapters.fastapi import mount`"


def _where(error: BaseException) -> str:
    """The line of the app's code at which it was raised."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.name and not frame.filename.startswith((str(_PACKAGE), "<frozen"))
    ]
    own = [frame for frame in frames if "importlib" not in frame.filename]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


_PACKAGE = Path(__file__).resolve().parents[1]
