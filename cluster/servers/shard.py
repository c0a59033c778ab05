"""One Redis or Valkey server: its connections for commands, and what it says of itself.

redis-py connects, logs in and parses. Commands are packed by hiredis and written to its `Connection` at once: its
pipeline object costs six times as much (measured with 500 SPUBLISH: 8.9 µs of CPU each, against 1.4 µs).
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import hiredis
from redis import exceptions as replied
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection

from socketspec.cluster.options import IS_REPLICA, TLS_HINT, Address
from socketspec.cluster.servers.connections import connection_settings, unix_problem
from socketspec.cluster.servers.login import AskedLogin, Login
from socketspec.errors import BackendError

__all__ = ("Hello", "LinkOptions", "NotSentError", "RefusedError", "ReplicaError", "Shard", "as_dict", "explain")

REPLIES: Final = (
    replied.ResponseError,
    replied.AuthenticationError,
    replied.AuthorizationError,
    replied.BusyLoadingError,
)
"""Errors that are answers of the server: the connection is in order, the command was not carried out."""


class NotSentError(replied.ConnectionError):
    """The server could not be reached, so it never got the command; `reason` says why."""

    def __init__(self, reason: BackendError) -> None:
        super().__init__(str(reason))
        self.reason: BackendError = reason


class RefusedError(BackendError):
    """The servers are there, but not as the URL and the options say: trying again does not help."""


class ReplicaError(BackendError):
    """The server at `address` is a replica: what is published there reaches nobody elsewhere."""

    def __init__(self, address: Address) -> None:
        super().__init__(f"{address} {IS_REPLICA}.")
        self.address: Address = address


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """What it takes to open a connection to any of the servers. The password is in no `repr`."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ssl: ssl.SSLContext | None = None
    connect_timeout: float = 3.0
    """Seconds for one attempt, TLS and login included."""
    client_name: str = ""
    asked: AskedLogin | None = None
    """Whom to ask for the login of each connection, in place of `username` and `password`."""

    async def login(self) -> Login:
        """What a new connection logs in with. Raises `BackendError` where a provider does not say, in time."""
        if self.asked is None:
            return Login(self.username, self.password)
        return await self.asked.ask_in_loop(self.connect_timeout)


class Hello(NamedTuple):
    """A server's answer to ``HELLO``."""

    server: str
    version: str
    mode: str
    """``standalone``, ``sentinel`` or ``cluster``."""
    role: str
    """``master`` or ``replica``."""


class Shard:
    """One server. Each call of `execute` has a connection to itself, which stays open for later calls.

    Args:
        timeout: seconds that a call of `execute` may take once it is connected.
        met: servers that have answered before, shared by all shards: errors there are not the URL's fault.
    """

    def __init__(
        self,
        address: Address,
        link: LinkOptions,
        *,
        db: int = 0,
        timeout: float,
        met: set[Address],
    ) -> None:
        self.address: Address = address
        self._met = met
        self._link = link
        self._db = db
        self._timeout = timeout
        self._idle: list[AbstractConnection] = []
        self._stale: list[AbstractConnection] = []
        self._generation = 0

    async def execute(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """One pipeline: a reply or an exception for each command, in order; `NotSentError` for all if not connected."""
        packed = b"".join([hiredis.pack_command(tuple(words)) for words in commands])
        try:
            connection = used = await self._take_idle()
            if connection is None:
                connection = await self._open()
        except (BackendError, replied.RedisError, TimeoutError) as error:
            return [NotSentError(self.explain(error))] * len(commands)
        generation = self._generation
        replies: list[Any] = []
        problem: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout):
                await _send(connection, packed)
                for _ in commands:
                    replies.append(await _read(connection))  # noqa: PERF401 # what came before a failure counts
        except TimeoutError:
            problem = replied.TimeoutError(f"{self.address} did not answer within {self._timeout:g} s.")
        except _ClosedError as error:
            problem = NotSentError(self.explain(error))
        except (replied.RedisError, OSError) as error:
            problem = error
        finally:
            if replies:
                self._met.add(self.address)
            if used is not None and replied.AuthenticationError in map(type, replies):
                problem = NotSentError(BackendError(f"{self.address} has ended the login of a connection."))
                replies = [problem if type(reply) is replied.AuthenticationError else reply for reply in replies]
                await connection.disconnect(nowait=True)
            elif len(replies) == len(commands) and generation == self._generation:
                self._idle.append(connection)
            else:
                await connection.disconnect(nowait=True)
        return replies + [problem] * (len(commands) - len(replies))

    async def hello(self) -> Hello:
        """What the server says of itself. Raises `BackendError`."""
        (reply,) = await self.execute([("HELLO",)])
        if isinstance(reply, NotSentError):
            raise reply.reason
        if isinstance(reply, replied.ResponseError) and "unknown command" in str(reply).lower():
            return Hello("redis", "before 6", "standalone", "master")
        if isinstance(reply, Exception):
            raise self.explain(reply) from reply
        fields = as_dict(reply)
        return Hello(*(fields.get(name, "") for name in Hello._fields))

    def explain(self, error: Exception) -> BackendError:
        """The error to raise for an error of a connection. A `RefusedError` where trying again does not help."""
        return explain(self.address, error, self._link, is_known=self.address in self._met)

    def renew(self) -> None:
        """Use new connections from now on: the address may have become another server."""
        self._generation += 1
        self._stale += self._idle
        self._idle = []

    async def close(self) -> None:
        """Close the idle connections; those in use close after it."""
        self.renew()
        await self._close_stale()

    async def _close_stale(self) -> None:
        while self._stale:
            await self._stale.pop().disconnect(nowait=True)

    async def _take_idle(self) -> AbstractConnection | None:
        if self._stale:
            await self._close_stale()
        while self._idle:
            connection = self._idle.pop()
            # On a connection that the server has closed, nobody would know what became of a command.
            if not await connection.can_read():
                return connection
            await connection.disconnect(nowait=True)
        return None

    async def _open(self) -> AbstractConnection:
        limit = asyncio.get_running_loop().time() + self._link.connect_timeout
        connection = self._make(await self._link.login())
        try:
            async with asyncio.timeout_at(limit):
                await connection.connect()  # type: ignore[no-untyped-call] # redis-py leaves out the "-> None"
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _make(self, login: Login) -> AbstractConnection:
        settings: dict[str, Any] = {
            **connection_settings(self.address, login, db=self._db),
            "client_name": self._link.client_name or None,
            "socket_timeout": None,  # every use has a timeout around it
            "socket_connect_timeout": self._link.connect_timeout,
        }
        if self.address.is_unix:
            return UnixDomainSocketConnection(**settings)
        if self._link.ssl is None:
            return Connection(**settings)
        return _TlsConnection(self._link.ssl, **settings)


class _TlsConnection(SSLConnection):
    """Uses our TLS settings, which redis-py would read from files for each connection (measured: 38 ms of CPU).

    And ends at once when it is told not to wait: the polite end of TLS would wait for the server's for up to 30 s, long
    after the event loop is closed.
    """

    def __init__(self, context: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(**settings)
        self.ssl_context.context = context

    async def disconnect(self, nowait: bool = False, *args: Any, **kwargs: Any) -> None:
        if nowait and self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(nowait, *args, **kwargs)


class _ClosedError(replied.ConnectionError):
    """The connection was closed before anything was sent."""


async def _send(connection: AbstractConnection, packed: bytes) -> None:
    try:
        await connection.send_packed_command(packed, check_health=False)
    except AttributeError as error:  # of asyncio in Python 3.12 and 3.13, where its transport was closed a moment ago
        raise _ClosedError("Connection closed by server.") from error


async def _read(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(timeout=math.inf, disconnect_on_error=False)
    except REPLIES as error:
        return error


def as_dict(flat: Sequence[Any]) -> dict[str, str]:
    """A reply of alternating names and values as a dict of text; values that are no text are left out."""
    texts = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in flat]
    return {name: value for name, value in zip(texts[::2], texts[1::2], strict=True) if isinstance(value, str)}


def explain(address: Address, error: Exception, link: LinkOptions, *, is_known: bool = False) -> BackendError:
    """The error to raise for an error of connecting to `address`. A `RefusedError` where trying again does not help.

    `is_known`: the server has answered before.
    """
    if isinstance(error, BackendError):
        return error
    if isinstance(error, replied.BusyLoadingError):
        return BackendError(f"{address} is still loading its data.")
    if isinstance(error, replied.NoPermissionError):
        return RefusedError(f"{address} does not let the user do what a node must: {error}")
    text = str(error)
    if isinstance(error, replied.AuthenticationError | replied.AuthorizationError):
        if link.asked is not None:  # while a password changes, an old one is refused and the next may be right
            return BackendError(f"{address} refuses what the {link.asked.name} gave: {text}")
        return RefusedError(f"{address} {_login_problem(text, link)}")
    cause = error.__cause__ or error.__context__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return RefusedError(
            f"{address} shows a certificate that is not trusted ({cause.verify_message}): pass ca_certs= with the "
            "authority that signed it, or connect by a name that the certificate holds."
        )
    if isinstance(cause, ssl.SSLError):
        return RefusedError(f"TLS with {address} failed ({cause.reason}). {TLS_HINT[True]}")
    if "DB index" in text:
        return RefusedError(f"{address} has no such database: correct the number at the end of the URL ({text}).")
    hint = "" if is_known or address.is_unix else f" {TLS_HINT[link.ssl is not None]}"
    if problem := unix_problem(address, cause):
        return BackendError(f"Cannot connect to {address}: {problem}")
    return BackendError(f"Cannot connect to {address}: {_connection_problem(error, cause, link, hint)}")


def _login_problem(text: str, link: LinkOptions) -> str:
    if "without any password" in text:
        return "has no password, but was given one: take it out of the URL, or set one there (requirepass)."
    if not link.password:
        return "asks for a password: put it in the URL (redis://user:password@host) or pass password=."
    return "refuses the username or the password: check both, and that the user is on."


def _connection_problem(error: Exception, cause: BaseException, link: LinkOptions, hint: str) -> str:
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused. Is the server running, and does it listen there?"
    if isinstance(cause, socket.gaierror):
        return f"the host name cannot be resolved ({cause.strerror})."
    if isinstance(error, replied.TimeoutError | TimeoutError):
        return f"no answer within {link.connect_timeout:g} s.{hint}"
    if isinstance(cause, ConnectionResetError) or "closed by server" in str(error):
        return f"the server closed the connection.{hint}"
    return f"{str(error).rstrip('.')}."
