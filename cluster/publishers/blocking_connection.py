"""redis-py's connections, with one deadline for all that they do.

redis-py connects, logs in, packs, sends and parses. What is ours is time: its timeouts are for each operation, so that

- a server that sends a byte now and then keeps a reader for ever: `_Parser` (tested: a server that dribbles),
- all addresses of a name have the timeout one after the other, the first dead one uses up a caller's, and the lookup
  itself has none: `_open_socket` (tested: addresses that do not answer, a name service that hangs),
- and TLS settings are read from files for each connection (measured: 38 ms of CPU): `_TlsConnection`.

Its pools are not used: they connect with a timeout that was chosen when they were made, not the caller's; who waits
longest for a connection is not served first (`socketspec.cluster.publishers.turns`); and a child that is forked while a
thread holds a pool's lock waits for it for ever (tried with redis-py 8.1).
"""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as StillRunning
from typing import Any, TypeVar

from redis._parsers import _HiredisParser  # the one that redis-py itself uses; it can be named nowhere else
from redis.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as BrokenError
from redis.utils import SENTINEL

from socketspec.cluster.options import Address
from socketspec.cluster.servers.connections import connection_settings
from socketspec.cluster.servers.login import Login
from socketspec.concurrency.shared_call import begin_in_thread

__all__ = ("TimedConnection", "in_turn", "time_left", "timed_connection")

T = TypeVar("T")


class _Until:
    """When what a connection does must have ended; `time.monotonic`."""

    at: float = math.inf


class _Parser(_HiredisParser):
    """Reads until the connection's deadline, however many pieces it takes."""

    _until: _Until = _Until()

    def on_connect(self, connection: Any, **kwargs: Any) -> None:
        self._until = connection.until
        super().on_connect(connection, **kwargs)  # type: ignore[no-untyped-call] # redis-py leaves out the types

    def read_from_socket(self, timeout: Any = SENTINEL, raise_on_timeout: bool = True) -> Any:
        left = time_left(self._until.at)
        return super().read_from_socket(left, raise_on_timeout)  # type: ignore[no-untyped-call] # the same


class TimedConnection(AbstractConnection):
    """A connection of redis-py whose every wait ends at `until.at`."""

    def __init__(self, until: _Until, **settings: Any) -> None:
        self.until: _Until = until
        super().__init__(**settings, parser_class=_Parser)

    @property
    def socket_timeout(self) -> float | None:
        """What is left of the time."""
        return None if self.until.at == math.inf else time_left(self.until.at)

    @socket_timeout.setter
    def socket_timeout(self, value: float | None) -> None:
        pass  # redis-py's connection to a Unix socket sets what it was given

    @property
    def socket_connect_timeout(self) -> float | None:
        """The same."""
        return self.socket_timeout

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, value: float | None) -> None:
        pass

    def open(self) -> None:
        """Connect and log in, once."""
        self.connect()  # type: ignore[no-untyped-call] # redis-py leaves out the "-> None"

    def close(self) -> None:
        """Disconnect."""
        self.disconnect()  # type: ignore[no-untyped-call] # the same

    def send(self, packed: bytes) -> None:
        """Send at once, after `prepare`."""
        self.send_packed_command([packed], check_health=False)  # type: ignore[no-untyped-call] # the same

    def prepare(self, deadline: float) -> None:
        """Have what is sent next, and its answers, end by `deadline`. Raises where nothing can be sent any more."""
        self.until.at = deadline
        connected: socket.socket | None = self._sock
        if connected is None:  # redis-py would connect anew
            raise BrokenError("Connection closed.")
        connected.settimeout(time_left(deadline))


class _TcpConnection(TimedConnection, Connection):
    """To a host and a port."""

    def _connect(self) -> Any:  # a socket; what redis-py leaves open is read in two ways
        return _open_socket(self, self.until.at)


class _TlsConnection(TimedConnection, SSLConnection):
    """The same, encrypted."""

    def __init__(self, context: ssl.SSLContext, until: _Until, **settings: Any) -> None:
        super().__init__(until, **settings)
        self._context = context

    def _connect(self) -> Any:  # a socket; what redis-py leaves open is read in two ways
        plain = _open_socket(self, self.until.at)
        try:
            plain.settimeout(self.socket_timeout)
            return self._context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


class _UnixConnection(TimedConnection, UnixDomainSocketConnection):
    """To a file. Has a host and a port, which redis-py asks even this kind for when it is late."""

    port: int = 0

    @property
    def host(self) -> str:
        return str(self.path)

    @host.setter
    def host(self, value: str) -> None:
        pass


def timed_connection(
    address: Address, login: Login, db: int, context: ssl.SSLContext | None, deadline: float
) -> TimedConnection:
    """A connection that is not connected yet, and must be by `deadline`. `context` is for TLS."""
    until = _Until()
    settings = connection_settings(address, login, db=db)
    connection: TimedConnection
    if address.is_unix:
        connection = _UnixConnection(until, **settings)
    elif context is None:
        connection = _TcpConnection(until, **settings)
    else:
        connection = _TlsConnection(context, until, **settings)
    until.at = deadline
    return connection


def time_left(deadline: float) -> float:
    """Seconds until then. Raises `TimeoutError` where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def in_turn(choices: Sequence[T], deadline: float) -> Iterator[tuple[T, float]]:
    """Each choice with a deadline of its own: one that does not answer must not use up the others' time."""
    for number, choice in enumerate(choices):
        now = time.monotonic()
        if now >= deadline:
            return
        yield choice, now + (deadline - now) / min(len(choices) - number, 3)


def _open_socket(wanted: Connection, deadline: float) -> socket.socket:
    """Connect to the first that answers of those that the name stands for."""
    problem: OSError = TimeoutError("no answer in time")
    keepalive: Any = wanted.socket_keepalive_options
    for (family, kind, protocol, _, place), until in in_turn(_resolve(wanted.host, wanted.port, deadline), deadline):
        try:
            opened = socket.socket(family, kind, protocol)
        except OSError as error:
            problem = error
            continue
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in keepalive.items():
                opened.setsockopt(socket.IPPROTO_TCP, option, value)
            opened.settimeout(time_left(until))
            opened.connect(place)
            opened.settimeout(time_left(deadline))
            return opened
        except BaseException as error:
            opened.close()
            if not isinstance(error, OSError):
                raise
            problem = error
    raise problem


def _resolve(host: str, port: int, deadline: float) -> Sequence[tuple[Any, ...]]:
    """The addresses of a host's name. The system's lookup has no deadline: one that takes too long is left behind."""

    def look_up() -> Sequence[tuple[Any, ...]]:
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error

    left = time_left(deadline)  # where there is none, nothing can be said of the name
    found = begin_in_thread(look_up, f"look up {host}")
    try:
        return found.result(left)
    except StillRunning:
        raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from None
