"""What connections of redis-py are made with, for nodes and publishers alike."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

from socketspec.cluster.options import Address
from socketspec.cluster.servers.login import Login

__all__ = ("connection_settings", "side_by_side", "unix_problem")


def connection_settings(address: Address, login: Login, *, db: int) -> dict[str, Any]:
    """The keyword arguments of redis-py's connection to `address`.

    Without a `retry` it tries everything once: only we know which command may be sent again.
    """
    where: dict[str, Any] = {"path": address.host} if address.is_unix else {"host": address.host, "port": address.port}
    return {
        **where,
        "db": db,
        "username": login.username,
        "password": login.password,
        "driver_info": None,  # to say which library this is would take a permission and a round trip
        "protocol": 2,  # replies of scripts and of plain commands have the same shapes, and are bytes only
    }


def side_by_side(host: str) -> dict[str, Any]:
    """What has asyncio try the addresses of a name one after the other's start, not after its end (RFC 8305).

    Nothing where the host is an address itself: there is no other, and Python 3.11 leaves the socket of an attempt that
    is cancelled so for the garbage collector to close.
    """
    # Other event loops, such as uvloop's, do not know it.
    if _is_address(host) or not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        return {}
    return {"happy_eyeballs_delay": 0.25}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def unix_problem(address: Address, error: BaseException) -> str:
    """What is wrong with a Unix socket that cannot be connected to; empty for another address or error."""
    if not address.is_unix:
        return ""
    if isinstance(error, FileNotFoundError):
        return "there is no such file. Does the server listen there (unixsocket in its configuration)?"
    if isinstance(error, PermissionError):
        return "this process may not use the file: give its user the right to write there (unixsocketperm, a group)."
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens at that file. Is the server running?"
    if isinstance(error, OSError) and "AF_UNIX path too long" in str(error):
        return "the path is too long for a Unix socket: about 100 bytes is the limit."
    return ""
