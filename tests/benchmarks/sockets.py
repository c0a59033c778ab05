"""Many raw client sockets in one loop, at so little cost that the server is the bottleneck: bytes are only counted.

A benchmark knows how large a message is, so counting bytes counts messages. For Linux (`select.epoll`).
"""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

KEY: Final = "c29ja2V0c3BlYy1iZW5jaA=="
ADDRESSES: Final = 16
"""Source addresses taken in turn, 127.0.0.2 and up: each has ports of its own."""
BIND_ADDRESS_NO_PORT: Final = 24
"""IP_BIND_ADDRESS_NO_PORT of ip(7): the port is chosen when connecting, for the whole four-tuple."""
AT_ONCE: Final = 64
"""Handshakes under way at any moment."""
BUFFER: Final = 1 << 18
MASK: Final = bytes((0x37, 0xFA, 0x21, 0x3D))


def client_frame(text: bytes) -> bytes:
    """A masked text frame of at most 65,535 bytes (RFC 6455 section 5.2)."""
    length = bytes((0x80 | len(text),)) if len(text) < 126 else bytes((0x80 | 126,)) + len(text).to_bytes(2)
    return b"\x81" + length + MASK + bytes(byte ^ MASK[index % 4] for index, byte in enumerate(text))


CLOSE: Final = bytes((0x88, 0x82)) + MASK + bytes((0x03 ^ MASK[0], 0xE8 ^ MASK[1]))
"""A client's close frame, code 1000."""


def handshake(port: int, path: str) -> bytes:
    """An opening handshake (RFC 6455 section 4.1)."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def dial(port: int, index: int = 0, receive_buffer: int = 0) -> socket.socket:
    """A socket that is connecting, from one of many loopback addresses."""
    client = socket.socket()
    client.setblocking(False)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.bind((f"127.0.0.{2 + index % ADDRESSES}", 0))
    client.connect_ex(("127.0.0.1", port))
    return client


class Opened(NamedTuple):
    """Connections that are open, in the order they were asked for."""

    clients: list[socket.socket]
    seconds: float


class _Opening:
    """Handshakes, `AT_ONCE` of them under way."""

    def __init__(self, port: int, count: int, path: Callable[[int], str], receive_buffer: int) -> None:
        self._port = port
        self._count = count
        self._path = path
        self._receive_buffer = receive_buffer
        self._epoll = select.epoll()
        self._under_way: dict[int, tuple[int, socket.socket]] = {}
        self._heads: dict[int, bytes] = {}
        self._done: list[socket.socket | None] = [None] * count
        self._next = 0

    def run(self) -> Opened:
        began = time.perf_counter()
        while self._next < min(self._count, AT_ONCE):
            self._dial()
        while self._under_way:
            ready = self._epoll.poll(30)
            if not ready:
                raise TimeoutError(f"{len(self._under_way)} handshakes were not answered within 30 seconds")
            for fd, events in ready:
                self._step(fd, events)
        seconds = time.perf_counter() - began
        self._epoll.close()
        return Opened([client for client in self._done if client is not None], seconds)

    def _dial(self) -> None:
        client = dial(self._port, self._next, self._receive_buffer)
        self._under_way[client.fileno()] = self._next, client
        self._epoll.register(client, select.EPOLLOUT)
        self._next += 1

    def _step(self, fd: int, events: int) -> None:
        index, client = self._under_way[fd]
        if events & select.EPOLLOUT:
            client.send(handshake(self._port, self._path(index)))
            self._epoll.modify(fd, select.EPOLLIN)
            return
        head = self._heads.pop(fd, b"") + client.recv(4096)
        if b"\r\n\r\n" not in head:
            if not head or events & select.EPOLLHUP:
                raise ConnectionError(f"the server closed during a handshake: {head.decode()!r}")
            self._heads[fd] = head
            return
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(head.decode())
        del self._under_way[fd]
        self._epoll.unregister(fd)
        self._done[index] = client
        if self._next < self._count:
            self._dial()


def open_many(
    port: int, count: int, path: Callable[[int], str] = lambda index: "/ws", *, receive_buffer: int = 0
) -> Opened:
    """Open WebSocket connections as fast as the server answers. Raises `ConnectionError`, `TimeoutError`."""
    return _Opening(port, count, path, receive_buffer).run()


class Tally(NamedTuple):
    """What arrived."""

    bytes: int
    last: float
    """time.perf_counter() of the last byte."""
    arrivals: list[tuple[int, int]]
    """(number of the message on its connection, time.monotonic_ns() of its last byte), where asked for."""
    closed: int
    """Connections that the server has closed meanwhile."""


class Readers:
    """Sockets that are read until an amount of bytes has come."""

    def __init__(self, clients: Sequence[socket.socket]) -> None:
        self.clients: list[socket.socket] = list(clients)
        self._buffer = memoryview(bytearray(BUFFER))
        self._epoll = select.epoll()
        self._reads: dict[int, Callable[[Any], int]] = {}
        for client in clients:
            client.setblocking(False)
            self._epoll.register(client, select.EPOLLIN)
            self._reads[client.fileno()] = client.recv_into

    def close(self) -> None:
        """Close every socket."""
        self._epoll.close()
        for client in self.clients:
            client.close()

    def drain(self, quiet: float = 0.3) -> int:
        """Read until nothing comes for `quiet` seconds; how many bytes that were."""
        return self.read(1 << 62, patience=quiet).bytes

    def read(self, target: int, *, patience: float = 5.0) -> Tally:
        """Read until `target` bytes have come, or nothing for `patience` seconds."""
        poll, reads, buffer = self._epoll.poll, self._reads, self._buffer
        total = closed = 0
        last = time.perf_counter()
        while total < target:
            ready = poll(patience, 4096)
            if not ready:
                break
            for fd, _ in ready:
                try:
                    got = reads[fd](buffer)
                except OSError:
                    got = 0
                total += got
                if not got:
                    closed += 1
                    self._epoll.unregister(fd)
            last = time.perf_counter()
        return Tally(total, last, [], closed)

    def read_timed(self, target: int, size: int, *, patience: float = 5.0) -> Tally:
        """The same, with the time of arrival of every message; each has `size` bytes."""
        had = dict.fromkeys(self._reads, 0)
        arrivals: list[tuple[int, int]] = []
        total = closed = 0
        last = time.perf_counter()
        while total < target:
            ready = self._epoll.poll(patience, 4096)
            if not ready:
                break
            for fd, _ in ready:
                try:
                    got = self._reads[fd](self._buffer)
                except OSError:
                    got = 0
                now = time.monotonic_ns()
                if not got:
                    closed += 1
                    self._epoll.unregister(fd)
                before = had[fd]
                had[fd] = before + got
                total += got
                arrivals.extend((number, now) for number in range(before // size, (before + got) // size))
            last = time.perf_counter()
        return Tally(total, last, arrivals, closed)


class RoundTrips(NamedTuple):
    """Requests that were answered."""

    done: int
    seconds: float
    delays: list[int]
    """Nanoseconds from request to answer, sorted."""

    @property
    def rate(self) -> float:
        return self.done / self.seconds

    def percentile(self, part: float) -> float:
        """Milliseconds within which `part` of the requests were answered."""
        return self.delays[min(int(len(self.delays) * part), len(self.delays) - 1)] / 1e6


def round_trips(clients: Sequence[socket.socket], request: bytes, reply: int, seconds: float) -> RoundTrips:
    """One request outstanding on each connection, for `seconds`; every answer has `reply` bytes.

    Raises `TimeoutError` for a late answer, `ConnectionError` where the server closes.
    """
    epoll = select.epoll()
    for client in clients:
        epoll.register(client, select.EPOLLIN)
    began = time.perf_counter_ns()
    delays = _round_trips(epoll, clients, request, reply, began + int(seconds * 1e9))
    total = (time.perf_counter_ns() - began) / 1e9
    epoll.close()
    return RoundTrips(len(delays), total, sorted(delays))


def _round_trips(
    epoll: select.epoll, clients: Sequence[socket.socket], request: bytes, reply: int, until: int
) -> list[int]:
    buffer = memoryview(bytearray(BUFFER))
    now = time.perf_counter_ns
    by_fd = {client.fileno(): (client.recv_into, client.send) for client in clients}
    missing: dict[int, int] = dict.fromkeys(by_fd, reply)
    sent: dict[int, int] = {}
    delays: list[int] = []
    for fd, (_, send) in by_fd.items():
        sent[fd] = now()
        send(request)
    outstanding = len(by_fd)
    while outstanding:
        ready = epoll.poll(10, 4096)
        if not ready:
            raise TimeoutError("requests were not answered within 10 seconds")
        for fd, _ in ready:
            recv_into, send = by_fd[fd]
            got = recv_into(buffer)
            if not got:
                raise ConnectionError("the server closed a connection")
            missing[fd] -= got
            if missing[fd] > 0:
                continue
            moment = now()
            delays.append(moment - sent[fd])
            if moment >= until:
                outstanding -= 1
                continue
            missing[fd] = reply
            sent[fd] = moment
            send(request)
    return delays


def raise_file_limit() -> int:
    """Allow this process as many open files as the system lets it have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
