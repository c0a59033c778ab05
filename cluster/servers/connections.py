"""What connections of redis-py are made with, for nodes and publishers alike."""

from __future__ import annotations

from typing import Any

from socketspec.cluster.options import Address
from socketspec.cluster.servers.login import Login

__all__ = ("connection_settings", "unix_problem")


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
