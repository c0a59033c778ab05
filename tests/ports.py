"""Ports of 127.0.0.1 that nobody else takes, however many test processes run on this machine at once.

A port that "was free a moment ago" may be given to somebody else before a server listens on it, or while a killed
server is away. So these are below the range from which the system takes ports by itself, and each process that asks
has a block of its own: holding the first port of a block keeps the others out of it.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ("free_port",)

HOST: Final = "127.0.0.1"
FIRST: Final = 10_000
BLOCK: Final = 200
SYSTEMS_OWN: Final = 32_768
"""Where Linux begins with the ports that it gives away; other systems begin higher."""


def free_port() -> int:
    """A port that is free, and not given out again before this process has asked for the rest of its block."""
    for port in itertools.islice(_ports(), 2 * BLOCK):
        try:
            _bound(port).close()
        except OSError:
            continue
        return port
    raise AssertionError(f"every port of this process is in use: {BLOCK} servers that nobody stopped")


@functools.cache
def _ports() -> Iterator[int]:
    """The ports of this process's block, over and over."""
    for first in range(FIRST, _end(), BLOCK):
        try:
            guard = _bound(first)
        except OSError:
            continue
        atexit.register(guard.close)
        return itertools.cycle(range(first + 1, first + BLOCK))
    raise AssertionError(f"every block of ports from {FIRST} on is taken: are old test processes still running?")


def _end() -> int:
    """The first port that is not ours to give out."""
    configured = Path("/proc/sys/net/ipv4/ip_local_port_range")
    begin = int(configured.read_text(encoding="utf-8").split()[0]) if configured.exists() else SYSTEMS_OWN
    return min(begin, SYSTEMS_OWN) - BLOCK


def _bound(port: int) -> socket.socket:
    """A socket that holds `port` without listening. Raises `OSError` where somebody else has it."""
    made = socket.socket()
    try:
        made.bind((HOST, port))
    except OSError:
        made.close()
        raise
    return made
