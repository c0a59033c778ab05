"""For `test_hostile`: clients that send what they like, and a watch over the server that they attack."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support import Server
from tests.support_process import frame

__all__ = ("HANDSHAKE_TIMEOUT", "LIMIT", "LIMITS", "Peer", "Target", "closing", "fragments", "upgrade")

LIMIT = 1_048_576
"""Bytes that a message may have."""
LIMITS = {"assembly_timeout": 0.7, "close_timeout": 0.4, "max_stall": 0.7, "max_control_frames": 500}
"""What the server's protocol class is told: low enough for a test to wait for."""
HANDSHAKE_TIMEOUT = 1.0

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
PATIENCE = 15.0
"""Seconds that anything may take, unless a case says otherwise."""
MIB = 1_048_576


def upgrade(path: str, *headers: str) -> bytes:
    """A request to open a WebSocket."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def fragments(opcode: int, *payloads: bytes, is_open: bool = False) -> bytes:
    """One message in frames; `is_open`: with more to come."""
    frames = [
        frame(CONTINUATION if at else opcode, payload, fin=at == len(payloads) - 1 and not is_open)
        for at, payload in enumerate(payloads)
    ]
    return b"".join(frames)


def closing(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


class Peer:
    """A TCP client. It answers pings only while it waits for a message."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(("127.0.0.1", port))
        self._buffer = bytearray()
        self._has_ended = False

    def open(self, path: str, *headers: str) -> Peer:
        """Open a WebSocket."""
        self.send(upgrade(path, *headers))
        status = self.status()
        assert status == 101, f"{path} answered {status}"
        return self

    def send(self, *pieces: bytes, pause: float = 0) -> None:
        """Send, and do not mind when the server has hung up."""
        with suppress(ConnectionError):
            for piece in pieces:
                self.sock.settimeout(PATIENCE)
                self.sock.sendall(piece)
                if pause:
                    time.sleep(pause)

    def flood(self, data: bytes, size: int, *, patience: float = PATIENCE) -> int:
        """Send `data` over and over, without reading; how many bytes went before it ended, or nothing went any more."""
        sent, at = 0, 0
        self.sock.settimeout(patience)
        with suppress(ConnectionError, TimeoutError):
            while sent < size:
                went = self.sock.send(data[at:])
                at = (at + went) % len(data)
                sent += went
        return sent

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # What the server says

    def status(self, within: float = PATIENCE) -> int:
        """Read the head of an HTTP response; 0: the connection ended without one."""
        end = time.monotonic() + within
        while b"\r\n\r\n" not in self._buffer and not self._has_ended:
            self._fill(end)
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        found = re.search(rb"HTTP/1\.1 (\d{3}) ", head)
        return int(found[1]) if found else 0

    def ended(self, within: float = PATIENCE) -> float:
        """Read until the server closes TCP; how many seconds that took. Raises `TimeoutError`."""
        began = time.monotonic()
        while not self._has_ended:
            self._fill(began + within)
        return time.monotonic() - began

    def close_code(self, within: float = PATIENCE) -> int:
        """Read to the server's close frame; its code, 1005 where it has none, 1006 where there is no such frame."""
        end = time.monotonic() + within
        while True:
            received = self._frame(end)
            if received is None:
                return 1006
            if received[0] == CLOSE:
                return int.from_bytes(received[1][:2], "big") if received[1] else 1005

    def message(self, within: float = PATIENCE) -> bytes:
        """The next message; pings before it are answered."""
        end = time.monotonic() + within
        while (received := self._frame(end)) is not None:
            opcode, data = received
            if opcode in (TEXT, BINARY):
                return data
            if opcode == PING:
                self.send(frame(PONG, data))
            assert opcode in (PING, PONG), f"closed: {data!r}"
        raise AssertionError("the server hung up")

    def pongs(self, within: float = PATIENCE) -> list[bytes]:
        """The payloads of all pongs up to the close frame."""
        end = time.monotonic() + within
        found: list[bytes] = []
        while (received := self._frame(end)) is not None and received[0] != CLOSE:
            found += [received[1]] if received[0] == PONG else []
        return found

    def waits_for_close(self, within: float) -> bool:
        """Whether the server has closed; pongs are passed over."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            if self._has_ended or self._buffer[:1] == b"\x88":
                return True
            with suppress(TimeoutError):
                if self._parse() is None:
                    self._fill(end)
        return False

    def take(self, expected: bytes | None = None) -> None:
        """Read `expected`; without it, forget what has come."""
        if expected is None:
            with suppress(TimeoutError):
                self._fill(time.monotonic() + 0.01)
            self._buffer.clear()
            return
        end = time.monotonic() + PATIENCE
        while len(self._buffer) < len(expected):
            self._fill(end)
        assert self._buffer == expected
        self._buffer.clear()

    def read_a_byte(self) -> None:
        """Read no more than that, if there is one."""
        self.sock.settimeout(0)
        with suppress(BlockingIOError, ConnectionError):
            self.sock.recv(1)

    def end_writing(self) -> None:
        """Close the client's direction."""
        self.sock.shutdown(socket.SHUT_WR)

    def messages(self, count: int, within: float = PATIENCE) -> None:
        """Read so many messages."""
        end = time.monotonic() + within
        for _ in range(count):
            self.message(end - time.monotonic())

    def _frame(self, end: float) -> tuple[int, bytes] | None:
        while (found := self._parse()) is None:
            if self._has_ended:
                return None
            self._fill(end)
        return found

    def _parse(self) -> tuple[int, bytes] | None:
        data = self._buffer
        if len(data) < 2:
            return None
        length, start = data[1], 2
        if length > 125:
            size = 2 if length == 126 else 8
            length, start = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
        if len(data) < start + length or len(data) < start:
            return None
        found = data[0] & 15, bytes(data[start : start + length])
        del data[: start + length]
        return found

    def _fill(self, end: float) -> None:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server neither answered nor closed")
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(65_536)
        except ConnectionError:
            data = b""
        self._has_ended = not data
        self._buffer += data


class Bystander:
    """A well-behaved client in a thread of its own: an echo every 10 ms, of a plain route and of a `SocketApp`."""

    def __init__(self, server: Server) -> None:
        self._stat = Path(f"/proc/{server.process.pid}/stat")
        protocol = "Sec-WebSocket-Protocol: socketspec.v1.json"
        self._peers = [Peer(server.port).open("/echo"), Peer(server.port).open("/ws", protocol)]
        self._peers[1].message()  # __connect__
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.slowest = 0.0
        """Seconds that the slowest echo took, but for those in which a busy machine kept the server from working."""
        self.echoes = 0
        self.failure: BaseException | None = None
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for peer in self._peers:
            peer.sock.close()

    def _run(self) -> None:
        event = frame(TEXT, json.dumps({"event": "echo", "payload": {"still": "here"}, "id": 1}).encode())
        try:
            while not self._stop.wait(0.01):
                began, worked = time.monotonic(), self._worked()
                for peer, said in zip(self._peers, (frame(TEXT, b'"here"'), event), strict=True):
                    peer.send(said)
                    answer = peer.message(within=20)
                    assert b'here"' in answer, answer
                took, worked = time.monotonic() - began, self._worked() - worked
                self.slowest = max(self.slowest, min(took, worked))
                self.echoes += 1
        except BaseException as failure:
            self.failure = failure

    def _worked(self) -> float:
        """Seconds of processor time that the server has had."""
        user, system = self._stat.read_text().rpartition(")")[2].split()[11:13]
        seconds: float = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return seconds


class Target:
    """A server under attack."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = server.port
        for _ in range(3):  # what is loaded at first use
            for path in ("/echo", "/ws", "/limited"):
                with self._warm(path) as peer:
                    peer.send(frame(CLOSE, b""))
                    peer.ended()
        self.bystander = Bystander(server)
        self.idle = self.sockets
        """Sockets that the server has while nobody but the bystander is there."""
        self._peers = ExitStack()

    @contextmanager
    def _warm(self, path: str) -> Iterator[Peer]:
        peer = Peer(self.port).open(path, "Sec-WebSocket-Extensions: permessage-deflate")
        yield peer
        peer.sock.close()

    # For attacks

    def peer(self, *, receive_buffer: int | None = None) -> Peer:
        """A TCP client, closed when the case is over."""
        peer = Peer(self.port, receive_buffer=receive_buffer)
        self._peers.callback(peer.sock.close)
        return peer

    def open(self, path: str, *headers: str, receive_buffer: int | None = None) -> Peer:
        """A WebSocket client, closed when the case is over."""
        return self.peer(receive_buffer=receive_buffer).open(path, *headers)

    @property
    def sockets(self) -> int:
        """How many sockets the server has open."""
        count = 0
        for entry in Path(f"/proc/{self.server.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                count += str(entry.readlink()).startswith("socket:")
        return count

    @property
    def memory(self) -> int:
        """The server's resident bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.server.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def dropped(self, within: float) -> None:
        """Wait until the server has nobody but the bystander, while attackers still hold on."""
        end = time.monotonic() + within
        while self.sockets > self.idle:
            assert time.monotonic() < end, f"{self.sockets - self.idle} connections are still open"
            time.sleep(0.005)

    # Before and after

    @contextmanager
    def unharmed(self, *, memory: int, lines: int, expected: Sequence[str] = ()) -> Iterator[None]:
        """What must hold while a case runs and after it: see `test_hostile`."""
        self.dropped(PATIENCE)
        before, logged = self.memory, len(self.server.log)
        self.bystander.slowest, echoes = 0.0, self.bystander.echoes
        with self._peak() as peak, ExitStack() as self._peers:
            yield
        self.dropped(PATIENCE)
        assert self.server.process.poll() is None
        end = time.monotonic() + PATIENCE
        while self.bystander.echoes < echoes + 2 and self.bystander.failure is None and time.monotonic() < end:
            time.sleep(0.01)
        assert self.bystander.failure is None
        assert self.bystander.echoes >= echoes + 2, "the bystander is not answered any more"
        assert self.bystander.slowest < 2, f"the bystander had to wait for {self.bystander.slowest:.2f} s of work"
        assert peak[0] - before <= memory, f"the server grew by {(peak[0] - before) / MIB:.1f} MiB"
        log = self.server.log[logged:]
        tracebacks = log.count("Traceback") - sum(log.count(text) for text in expected)
        assert tracebacks <= 0, log
        assert "ERROR" not in log, log
        assert log.count("\n") <= lines or expected, log

    @contextmanager
    def _peak(self) -> Iterator[list[int]]:
        """The most memory that the server has while the block runs, and shortly after."""
        peak = [self.memory]
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.01):
                peak[0] = max(peak[0], self.memory)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield peak
        finally:
            stop.set()
            thread.join()
