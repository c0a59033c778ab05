"""``socketspec demo``: the chat to try, on one node or on several."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from socketspec.cli.arguments import port, whole
from socketspec.cli.demo_nodes import DemoNodes, address_of
from socketspec.cli.output import FAILED, fail
from socketspec.errors import BackendError, ConfigurationError
from socketspec.extras import install

__all__ = ("add_to",)

GRACE: Final = 5
"""Seconds that open connections get to end after Ctrl-C."""
MAX_NODES: Final = 32


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "demo",
        help="run a chat to try in two browser tabs",
        description="Run the demo chat. Several nodes share an embedded Valkey, or the backend in $SOCKETSPEC_BACKEND.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=port, default=8000, help="of the first node; 0 picks free ones (default: %(default)s)"
    )
    parser.add_argument(
        "--nodes",
        type=whole("nodes", 1, MAX_NODES),
        default=1,
        help="how many nodes to run (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    host, port, nodes = arguments.host, arguments.port, arguments.nodes
    missing = [name for name in ("fastapi", "uvicorn", "websockets") if find_spec(name) is None]
    if missing:
        return fail(f"The demo needs {' and '.join(missing)}: {install('fastapi')}")
    if nodes > 1 and (find_spec("redis") is None or find_spec("hiredis") is None):
        return fail(f"Several nodes need redis and hiredis: {install('redis')}")
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        for number in range(nodes):
            wanted = port + number if port else 0
            try:
                listeners.append(stack.enter_context(_listen(host, wanted)))
            except (OSError, OverflowError) as error:
                return fail(_cannot_listen(host, wanted, error))
        if nodes == 1:
            _serve(listeners[0], host)
            return 0
        return _serve_nodes(host, listeners)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)


def _cannot_listen(host: str, port: int, error: Exception) -> str:
    advice = "choose another with --port, or 0 for a free one" if port else "choose another with --host"
    reason = error.strerror if isinstance(error, OSError) else None
    return f"Cannot listen on {address_of(host, port)} ({reason or error}): {advice}."


def _serve(listener: socket.socket, host: str) -> None:
    # Imported here, not above: the rest of the command works without the extra.
    import uvicorn

    from socketspec.cli.demo.app import app

    address = f"http://{address_of(host, listener.getsockname()[1])}"
    print(f"SocketSpec demo chat: open {address} in two browser tabs and talk to yourself.")
    print(f"Its events and models: {address}/socket-docs    Stop it with Ctrl-C.", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises it again after a complete shutdown
        print()


def _serve_nodes(host: str, listeners: Sequence[socket.socket]) -> int:
    try:
        with contextlib.ExitStack() as stack:
            url = os.environ.get("SOCKETSPEC_BACKEND")
            through = "the backend in SOCKETSPEC_BACKEND"
            if not url:
                from socketspec.cluster.embedded import EmbeddedServer

                server = stack.enter_context(EmbeddedServer())
                url, through = server.url, f"an embedded Valkey on {server.host}:{server.port}"
            nodes = stack.enter_context(DemoNodes(host, listeners, url, grace=GRACE))
            for listener in listeners:  # a port is its node's alone: where that dies, connecting has to fail at once
                listener.close()
            if not nodes.wait_until_ready():
                return FAILED
            addresses = nodes.addresses
            print(f"SocketSpec demo chat on {len(addresses)} nodes: open {addresses[0]} in a browser tab,")
            print(f"and in others {', '.join(addresses[1:])}.")
            print(f"The nodes share {through}. Stop them with Ctrl-C.", flush=True)
            return nodes.watch()
    except KeyboardInterrupt:
        print()
        return 0
    except (BackendError, ConfigurationError) as error:
        return fail(str(error))
