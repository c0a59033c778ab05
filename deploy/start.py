"""What the image runs: ``socketspec serve`` with what the environment says; with ``health``, a look at the node.

It does not start another process: signals reach the server, which drains at SIGTERM.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node_settings import Settings

__all__ = ("arguments", "is_alive", "main")


def arguments(settings: Settings, further: Sequence[str] = ()) -> list[str]:
    """The arguments of ``socketspec``; `further` ones of the user's come last, and so win."""
    chosen = {
        "--host": settings.host,
        "--port": settings.port,
        "--workers": settings.workers,
        "--drain-window": settings.drain_window,
        "--drain-grace": settings.drain_grace,
        "--log-level": settings.log_level,
        "--log-format": settings.log_format,
        "--max-connections": settings.max_connections or "",
        "--max-connections-per-address": settings.max_connections_per_address or "",
        "--accepts-per-second": settings.accepts_per_second or "",
        "--root-path": settings.root_path.rstrip("/"),
        "--forwarded-allow-ips": settings.forwarded_allow_ips,
    }
    options = [f"{option}={value}" for option, value in chosen.items() if value != ""]
    return ["serve", settings.app, *options, *further]


def is_alive(environment: Mapping[str, str]) -> bool:
    """Whether the node of this container answers. Not whether it is ready: Redis being away is no reason to end it."""
    host = environment.get("SOCKETSPEC_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    connection = http.client.HTTPConnection(host, int(environment.get("SOCKETSPEC_PORT") or "8000"), timeout=3.0)
    try:
        connection.request("GET", "/socket-health?check=live")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def main(argv: Sequence[str]) -> int:
    """Run; the exit status."""
    if list(argv) == ["health"]:
        return 0 if is_alive(os.environ) else 1
    # The first process of a container ignores what it has no handler for; the server brings its own.
    signal.signal(signal.SIGTERM, _end)
    # Not above: the health check needs none of it, and is run again and again.
    from node_settings import announce, read_or_exit
    from socketspec.cli.main import main as socketspec

    settings = read_or_exit()
    announce(settings)
    return socketspec(arguments(settings, argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
