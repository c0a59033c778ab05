"""A real uvicorn process, and a raw client that can send what no client library would."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import uvicorn_options

__all__ = ("Closed", "Frame", "RawClient", "ServerProcess", "frame", "serve")

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PATIENCE = 30.0
"""Seconds to wait for what comes at once, unless the machine is busy."""


class ServerProcess:
    """A server, its log and its memory."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def log(self) -> str:
        """Everything it printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@contextmanager
def serve(source: str, folder: Path, *options: str) -> Iterator[ServerProcess]:
    """Run ``app`` of the module `source` on a free port of 127.0.0.1; stopped at the end."""
    (folder / "served.py").write_text(source)
    log = folder / "server.log"
    command = [sys.executable, "-m", "uvicorn", "served:app", "--host", "127.0.0.1", "--port", "0"]
    command += [*uvicorn_options, *options]
    with log.open("wb") as out:
        process = subprocess.Popen(  # it may hang: stopped below
            command, cwd=folder, stdout=out, stderr=out, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        yield ServerProcess(process, _port(process, log), log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
        if found is not None:
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


class Closed(Exception):
    """The server closed the connection; with code 1006 where it sent no close frame."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Frame(NamedTuple):
    """A data frame from the server."""

    opcode: int
    data: bytes


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    """A client's frame, masked with zeros: the payload stands in it as it is."""
    first = opcode | (0x80 if fin else 0)
    if len(data) < 126:
        head = struct.pack("!BB", first, 0x80 | len(data))
    elif len(data) < 65_536:
        head = struct.pack("!BBH", first, 0x80 | 126, len(data))
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, len(data))
    return head + b"\0\0\0\0" + data


class RawClient:
    """A WebSocket client on a plain blocking socket. It answers pings only where `pongs`."""

    def __init__(
        self,
        port: int,
        path: str = "/ws",
        *,
        subprotocols: Sequence[str] = (),
        receive_buffer: int | None = None,
        pongs: bool = False,
    ) -> None:
        self.pongs = pongs
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(("127.0.0.1", port))
        self._buffer = bytearray()
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        ]
        if subprotocols:
            lines.append(f"Sec-WebSocket-Protocol: {', '.join(subprotocols)}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        self._buffer = bytearray(rest)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, event: str, payload: object = None, *, id: str | int | None = None) -> None:
        """Send one JSON envelope."""
        self.text(json.dumps({"event": event, "payload": payload or {}, "id": id}))

    def text(self, data: str | bytes) -> None:
        """Send one text frame."""
        self.sock.sendall(frame(TEXT, data.encode() if isinstance(data, str) else data))

    def binary(self, data: bytes) -> None:
        """Send one binary frame."""
        self.sock.sendall(frame(BINARY, data))

    def receive(self, timeout: float = PATIENCE) -> Frame:
        """The next data frame. Raises `Closed`, and `TimeoutError`."""
        self.sock.settimeout(timeout)
        while True:
            opcode, data = self._frame()
            if opcode == CLOSE:
                code = int.from_bytes(data[:2], "big") if data else 1005
                raise Closed(code, data[2:].decode())
            if opcode in (TEXT, BINARY):
                return Frame(opcode, data)
            if opcode == PING and self.pongs:
                self.sock.sendall(frame(PONG, data))

    def json(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """The next message of a JSON connection."""
        decoded: dict[str, Any] = json.loads(self.receive(timeout).data)
        return decoded

    def ask(self, event: str, payload: object = None) -> dict[str, Any]:
        """Send an event and return the payload of its answer; what came before it is passed over."""
        id = base64.b64encode(os.urandom(6)).decode()
        self.send(event, payload, id=id)
        while True:
            message = self.json()
            if message.get("id") == id:
                answer: dict[str, Any] = message["payload"]
                return answer

    def closed(self, timeout: float = PATIENCE) -> Closed:
        """Read until the server closes; how it did."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                self.receive(max(deadline - time.monotonic(), 0.01))
            except Closed as closed:
                return closed
        raise TimeoutError("the server did not close")

    def _frame(self) -> tuple[int, bytes]:
        first, second = self._take(2)
        assert second < 128, "a server must not mask"
        length = second
        if length == 126:
            length = int.from_bytes(self._take(2), "big")
        elif length == 127:
            length = int.from_bytes(self._take(8), "big")
        return first & 15, self._take(length)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._fill()
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _fill(self) -> None:
        try:
            data = self.sock.recv(65_536)
        except (ConnectionError, BrokenPipeError):
            data = b""
        if not data:
            raise Closed(1006)
        self._buffer += data
