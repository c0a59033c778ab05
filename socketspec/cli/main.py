"""The ``socketspec`` command."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from socketspec import __version__

__all__ = ("main",)

GRACE: Final = 5
"""Seconds that open connections get to end after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own). Returns the exit status: 0 fine, 1 failed, 2 misused."""
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse has printed the help, the version or what was wrong
        return end.code if isinstance(end.code, int) else 2
    if arguments.command is None:
        parser.print_help()
        return 0
    return _demo(arguments.host, arguments.port, arguments.nodes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="socketspec", description="FastAPI-style WebSocket pub/sub that scales horizontally."
    )
    parser.add_argument("--version", action="version", version=f"socketspec {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    demo = commands.add_parser("demo", help="run a chat to try in two browser tabs", description="Run the demo chat.")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    demo.add_argument("--port", type=_port, default=8000, help="0 picks a free one (default: %(default)s)")
    demo.add_argument("--nodes", type=_nodes, default=1, help="how many nodes to run (default: %(default)s)")
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use 0 to 65535")
    return int(text)


def _nodes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nodes; use 1")
    return int(text)


def _demo(host: str, port: int, nodes: int) -> int:
    if nodes > 1:
        return _fail(f"--nodes {nodes}: several nodes come with the cluster layer; run the demo with --nodes 1.", 2)
    missing = [name for name in ("fastapi", "uvicorn", "websockets") if find_spec(name) is None]
    if missing:
        return _fail(f"The demo needs {' and '.join(missing)}: pip install 'socketspec[fastapi]'", 1)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        advice = "choose another with --port, or 0 for a free one" if port else "choose another with --host"
        return _fail(f"Cannot listen on {_address(host, port)} ({error.strerror or error}): {advice}.", 1)
    with listener:
        _serve(listener, host)
    return 0


def _serve(listener: socket.socket, host: str) -> None:
    # Imported here, not above: the rest of the command works without the extra.
    import uvicorn

    from socketspec.cli.demo.app import app

    address = f"http://{_address(host, listener.getsockname()[1])}"
    print(f"SocketSpec demo chat: open {address} in two browser tabs and talk to yourself.")
    print(f"Its events and models: {address}/socket-docs    Stop it with Ctrl-C.", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises it again after a complete shutdown
        print()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _fail(message: str, status: int) -> int:
    print(f"socketspec: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
