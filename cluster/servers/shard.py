"""One Redis or Valkey server: its connections for commands, and what it says of itself.

redis-py connects, logs in and parses. Commands are packed by hiredis and written to its `Connection` at once: its
pipeline object costs six times as much (measured with 500 SPUBLISH: 8.9 µs of CPU each, against 1.4 µs).
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis
from redis import exceptions as replied
from redis.asyncio.connection import AbstractConnection

from socketspec.cluster.options import IS_REPLICA, TLS_HINT, Address
from socketspec.cluster.servers.async_connections import make_connection
from socketspec.cluster.servers.connections import connection_settings, unix_problem
from socketspec.cluster.servers.greeting import Hello, parse_info, read_hello, read_info, warn_if_evicting
from socketspec.cluster.servers.login import AskedLogin, Login
from socketspec.cluster.servers.trouble import MAX_CLIENTS, is_full, missing_command, tls_alert, tls_problem
from socketspec.errors import BackendError

__all__ = ("LinkOptions", "NotSentError", "RefusedError", "ReplicaError", "Shard", "explain", "unnoticed")

UNUSED: Final = 3.0
"""Seconds without use after which a connection has to give a sign of life before it gets a command: a balancer may have
dropped it without a word."""
SIGN_OF_LIFE: Final = 1.0
"""Seconds that it may take."""
SPARE: Final = 60.0
"""Seconds without use after which a connection is closed where a newer one is idle as well."""

REPLIES: Final = (
    replied.ResponseError,
    replied.AuthenticationError,
    replied.AuthorizationError,
    replied.BusyLoadingError,
)
"""Errors that are answers of the server: the connection is in order, the command was not carried out."""


def unnoticed() -> None:
    """Nobody has to know."""


_HELLO: Final = b"*1\r\n$5\r\nHELLO\r\n"
"""Asks for a sign of life; a refusal is one, too. The documented user of a Sentinel may ask it, unlike ``PING``."""


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
    has_certificate: bool = False
    """Whether we show a certificate of our own."""
    asked: AskedLogin | None = None
    """Whom to ask for the login of each connection, in place of `username` and `password`."""

    async def login(self) -> Login:
        """What a new connection logs in with. Raises `BackendError` where a provider does not say, in time."""
        if self.asked is None:
            return Login(self.username, self.password)
        return await self.asked.ask_in_loop(self.connect_timeout)


class Shard:
    """One server. Each call of `execute` has a connection to itself, which stays open for later calls.

    Args:
        timeout: seconds that a call of `execute` may take once it is connected.
        met: servers that have answered before, shared by all shards: errors there are not the URL's fault.
        confirm: is told since when, by the event loop's time, the server may have been replaced, before a connection is
            opened after one was lost or could not be opened. Raises `BackendError` where the server is not to be used.
    """

    def __init__(
        self,
        address: Address,
        link: LinkOptions,
        *,
        db: int = 0,
        timeout: float,
        met: set[Address],
        confirm: Callable[[Address, float], Awaitable[None]] | None = None,
    ) -> None:
        self.address: Address = address
        self._met = met
        self._link = link
        self._db = db
        self._timeout = timeout
        self._idle: list[tuple[AbstractConnection, float]] = []
        """Connections that nobody uses, and since when: the one that was used last is used next."""
        self._stale: list[AbstractConnection] = []
        self._generation = 0
        self._confirm = confirm
        self._lost_at: float | None = None
        """When a connection was lost last; None where one was opened since."""
        self._lacks_hello = False

    async def execute(
        self, commands: Sequence[Sequence[Any]], begun: Callable[[], object] = unnoticed, *, has_deadline: bool = False
    ) -> list[Any]:
        """One pipeline: a reply or an exception for each command, in order; `NotSentError` for all if not connected.

        `begun` is called when there is a connection, and the server may get the commands. `has_deadline`: the caller
        cancels this in time itself; a timeout within a timeout costs 6 % of a publication.
        """
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
        begun()
        try:
            if has_deadline:
                await _exchange(connection, packed, len(commands), replies)
            else:
                async with asyncio.timeout(self._timeout):
                    await _exchange(connection, packed, len(commands), replies)
        except TimeoutError:
            problem = replied.TimeoutError(f"{self.address} did not answer within {self._timeout:g} s.")
        except _ClosedError as error:
            problem = NotSentError(self.explain(error))
        except (replied.RedisError, OSError) as error:
            problem = NotSentError(self.explain(error)) if is_full(str(error)) else error
        finally:
            if replies:
                self._met.add(self.address)
            if used is not None and replied.AuthenticationError in map(type, replies):
                problem = NotSentError(BackendError(f"{self.address} has ended the login of a connection."))
                replies = [problem if type(reply) is replied.AuthenticationError else reply for reply in replies]
                await connection.disconnect(nowait=True)
            elif len(replies) == len(commands) and generation == self._generation:
                self._put_back(connection)
            else:
                await self._give_up(connection)
        return replies + [problem] * (len(commands) - len(replies))

    async def hello(self) -> Hello:
        """What the server says of itself, by ``HELLO``, or by ``INFO`` where it has none. Raises `BackendError`."""
        (reply,) = await self.execute([("INFO",) if self._lacks_hello else ("HELLO",)])
        if isinstance(reply, replied.ResponseError) and missing_command(str(reply)) and not self._lacks_hello:
            self._lacks_hello = True
            (reply,) = await self.execute([("INFO",)])
            if isinstance(reply, Exception):
                raise RefusedError(
                    f"{self.address} does not know HELLO, and INFO gave no answer ({reply}). Either it "
                    "runs Redis before 6: SocketSpec needs Redis 7 or Valkey 8 at least. Or both are switched off "
                    "there: take rename-command for one of them out of its configuration, or allow the user INFO."
                )
        if isinstance(reply, NotSentError):
            raise reply.reason
        if isinstance(reply, Exception):
            raise self.explain(reply) from reply
        return read_info(reply) if self._lacks_hello else read_hello(reply)

    async def run_id(self) -> str:
        """Which run of the server it is; empty where it does not say."""
        (info,) = await self.execute([("INFO", "server")])
        return parse_info(info).get("run_id", "")

    async def warn_if_evicting(self) -> None:
        """Log a warning where the server drops keys when its memory is full; nothing where it does not say."""
        (info,) = await self.execute([("INFO", "memory")])
        config = None
        if isinstance(info, replied.ResponseError):
            (config,) = await self.execute([("CONFIG", "GET", "maxmemory*")])
        warn_if_evicting(self.address, info, config)

    def explain(self, error: Exception) -> BackendError:
        """The error to raise for an error of a connection. A `RefusedError` where trying again does not help."""
        return explain(self.address, error, self._link, is_known=self.address in self._met)

    def renew(self) -> None:
        """Use new connections from now on: the address may have become another server."""
        self._generation += 1
        self._stale += [connection for connection, _ in self._idle]
        self._idle = []

    async def close(self) -> None:
        """Close the idle connections; those in use close after it."""
        self.renew()
        await self._close_stale()

    async def _close_stale(self) -> None:
        while self._stale:
            await self._stale.pop().disconnect(nowait=True)

    def _put_back(self, connection: AbstractConnection) -> None:
        now = asyncio.get_running_loop().time()
        if self._idle and now - self._idle[0][1] > SPARE:
            self._stale.append(self._idle.pop(0)[0])
        self._idle.append((connection, now))

    async def _take_idle(self) -> AbstractConnection | None:
        if self._stale:
            await self._close_stale()
        while self._idle:
            connection, since = self._idle.pop()
            # On a connection that the server has closed, nobody would know what became of a command.
            if not await connection.can_read():
                if asyncio.get_running_loop().time() - since < UNUSED or await _lives(connection):
                    return connection
                await self.close()  # what was used even earlier went the same way
            await self._give_up(connection)
        return None

    async def _give_up(self, connection: AbstractConnection) -> None:
        self._lost_at = asyncio.get_running_loop().time()
        await connection.disconnect(nowait=True)

    async def _open(self) -> AbstractConnection:
        lost_at = self._lost_at
        if lost_at is not None and self._confirm is not None:
            await self._confirm(self.address, lost_at)
        limit = asyncio.get_running_loop().time() + self._link.connect_timeout
        connection = self._make(await self._link.login())
        try:
            async with asyncio.timeout_at(limit):
                await connection.connect()  # type: ignore[no-untyped-call] # redis-py leaves out the "-> None"
                await self._greet(connection)
        except BaseException as error:
            await self._give_up(connection)
            if isinstance(error, replied.ConnectionError) and (alert := await self._alert()):
                raise replied.ConnectionError(str(alert)) from alert
            raise
        if self._lost_at == lost_at:
            self._lost_at = None
        return connection

    async def _alert(self) -> ssl.SSLError | None:
        """Why the server has closed a new connection, where it may be for the certificate that we show or lack."""
        context = self._link.ssl
        if context is None or self.address in self._met:
            return None
        return await asyncio.to_thread(tls_alert, self.address, context, SIGN_OF_LIFE)

    async def _greet(self, connection: AbstractConnection) -> None:
        """Exchange something that changes nothing: who does not take us says so now, before it gets a command.

        The name is nice to have: a server may lack ``CLIENT``, and a user the right to it.
        """
        name = self._link.client_name
        naming: tuple[Any, ...] = ("CLIENT", "SETNAME", name)
        await _send(connection, hiredis.pack_command(naming) if name else _HELLO)
        answer = await _read(connection)
        if isinstance(answer, replied.AuthenticationError):
            raise answer

    def _make(self, login: Login) -> AbstractConnection:
        settings: dict[str, Any] = {
            **connection_settings(self.address, login, db=self._db),
            "socket_timeout": None,  # every use has a timeout around it
            "socket_connect_timeout": self._link.connect_timeout,
        }
        return make_connection(self.address, settings, self._link.ssl)


class _ClosedError(replied.ConnectionError):
    """The connection was closed before anything was sent."""


async def _send(connection: AbstractConnection, packed: bytes) -> None:
    try:
        await connection.send_packed_command(packed, check_health=False)
    except AttributeError as error:  # of asyncio in Python 3.12 and 3.13, where its transport was closed a moment ago
        raise _ClosedError("Connection closed by server.") from error


async def _exchange(connection: AbstractConnection, packed: bytes, count: int, replies: list[Any]) -> None:
    """Send commands, and add the `count` replies one by one: what came before a failure counts."""
    await _send(connection, packed)
    for _ in range(count):
        replies.append(await _read(connection))  # noqa: PERF401 # see above


async def _lives(connection: AbstractConnection) -> bool:
    """Whether the server still answers on it. An error is an answer."""
    try:
        async with asyncio.timeout(SIGN_OF_LIFE):
            await _send(connection, _HELLO)
            await _read(connection)
    except (replied.RedisError, OSError):
        return False
    return True


async def _read(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response(timeout=math.inf, disconnect_on_error=False)
    except REPLIES as error:
        return error


_CLOSED: Final = (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""The other side has closed the connection: it may be starting anew."""


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
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, _CLOSED):
        return RefusedError(f"{address} {tls_problem(cause, has_certificate=link.has_certificate)}")
    if is_full(text):
        return BackendError(f"{address} {MAX_CLIENTS}.")
    if "DB index" in text:
        return RefusedError(f"{address} has no such database: correct the number at the end of the URL ({text}).")
    hint = "" if is_known or address.is_unix else f" {TLS_HINT[link.ssl is not None]}"
    if problem := unix_problem(address, cause):
        return BackendError(f"Cannot connect to {address}: {problem}")
    return BackendError(f"Cannot connect to {address}: {_connection_problem(error, cause, link, hint)}")


def _login_problem(text: str, link: LinkOptions) -> str:
    # No colon and no equals sign after the word: what follows one is taken for a password, and kept out of the log.
    if "without any password" in text:
        return "has no password, but was given one: take it out of the URL, or set one there (requirepass)."
    if not link.password:
        return "asks for a password. Put it in the URL (redis://user:password@host), or pass it as an option."
    return "refuses the username or the password. Check both, and that the user is on."


def _connection_problem(error: Exception, cause: BaseException, link: LinkOptions, hint: str) -> str:
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused. Is the server running, and does it listen there?"
    if isinstance(cause, socket.gaierror):
        return f"the host name cannot be resolved ({cause.strerror})."
    if isinstance(error, replied.TimeoutError | TimeoutError):
        return f"no answer within {link.connect_timeout:g} s.{hint}"
    if isinstance(cause, _CLOSED) or "closed by server" in str(error):
        return f"the server closed the connection.{hint}"
    return f"{str(error).rstrip('.')}."
