"""What the benchmarks share: raw WebSocket clients that cost little, CPU readings, server processes on chosen cores."""

from __future__ import annotations

import base64
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

MARK = b'"t":'
"""Stands once in every message that is counted; a time in nanoseconds of 19 digits follows."""


def pin(core: int) -> None:
    """Keep this process on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; NaN where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def connect(port: int, path: str = "/ws") -> socket.socket:
    """Open a WebSocket without the cost of a client library."""
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            raise RuntimeError(f"the server closed during the handshake: {head.decode()}")
        head += byte
    if b" 101 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(head.decode())
    return client


def masked_text(text: bytes) -> bytes:
    """A client frame of at most 125 bytes with a zero mask (RFC 6455 section 5.3 allows any)."""
    return bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text


@contextmanager
def process(command: Sequence[str], core: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A child process on a core of its own, and the first line it printed."""

    def on_core() -> None:
        pin(core)

    # The child does nothing else before exec: safe, since this process has one thread.
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=on_core)
    try:
        line = cast("IO[str]", child.stdout).readline().strip()
        if not line:
            raise RuntimeError(f"{command} ended without saying where it listens")
        yield child, line
    finally:
        child.kill()
        child.wait()


def wait_for_port(port: int) -> None:
    """Until somebody listens there. Raises `TimeoutError` after 20 seconds."""
    for _ in range(1000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


class Tally(NamedTuple):
    """What arrived."""

    delivered: int
    seconds: float
    """From the first look to the last message."""
    delays: list[float]
    """Seconds from publish to arrival of each message, where asked for."""


class Receivers:
    """Many sockets, read in one loop that counts `MARK`s."""

    def __init__(self, clients: Sequence[socket.socket]) -> None:
        self._clients = clients
        self._selector = selectors.DefaultSelector()
        self._tails: dict[int, bytes] = {}
        for client in clients:
            client.setblocking(False)
            self._selector.register(client, selectors.EVENT_READ)
            self._tails[client.fileno()] = b""

    def close(self) -> None:
        """Close every socket."""
        self._selector.close()
        for client in self._clients:
            client.close()

    def drain(self, quiet: float = 0.5) -> None:
        """Read and forget until nothing came for `quiet` seconds."""
        while ready := self._selector.select(timeout=quiet):
            for key, _ in ready:
                self._read(key)

    def count(self, expected: int, *, timed: bool = False, patience: float = 5.0) -> Tally:
        """Read until `expected` messages have arrived, or nothing for `patience` seconds."""
        delivered, delays = 0, []
        began = last = time.perf_counter()
        while delivered < expected:
            ready = self._selector.select(timeout=patience)
            if not ready:
                break
            for key, _ in ready:
                data = self._read(key)
                found = data.count(MARK)
                if found and timed:
                    delays += _delays(data)
                delivered += found
            last = time.perf_counter()
        return Tally(delivered, last - began, delays)

    def _read(self, key: selectors.SelectorKey) -> bytes:
        chunk: bytes = cast("Any", key.fileobj).recv(262_144)
        if not chunk:
            raise RuntimeError("the server closed a connection")
        data = self._tails[key.fd] + chunk
        # A message may end in the next read: what follows its mark has to be in one piece.
        cut = max(data.rfind(MARK), 0)
        whole = cut + len(MARK) + 19 <= len(data) if data.count(MARK) else False
        keep = data[-(len(MARK) - 1) :] if whole or MARK not in data else data[cut:]
        self._tails[key.fd] = keep
        return data if whole or MARK not in data else data[:cut]


def _delays(data: bytes) -> list[float]:
    now = time.time_ns()
    return [(now - int(part[:19])) / 1e9 for part in data.split(MARK)[1:]]


def say_port(listener: socket.socket) -> None:
    """For a child process: tell the parent where it listens."""
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
