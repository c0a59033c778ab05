"""Which servers there are and which of them holds a key: one server, a primary under Sentinel, or a cluster's shards.

A `Topology` keeps what was last discovered; `refresh` discovers anew. It sends commands to one server in one write and
says of each what became of it. It never retries: whether a command may be sent twice is for its caller to know.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from itertools import count
from typing import Any, Final, NamedTuple, Protocol

from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from socketspec.cluster.commands import Argument
from socketspec.cluster.options import Address, RedisOptions, Servers
from socketspec.errors import BackendError, ConfigurationError

__all__ = ("Address", "FateUnknownError", "LinkOptions", "NotSentError", "Topology", "make_topology")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

OLDEST_MAJOR: Final = 7
IDLE_CONNECTIONS: Final = 4
"""Connections to one server that are kept for the next command."""
_SLOTS: Final = 16_384


class NotSentError(BackendError):
    """No connection: the commands were not sent."""


class FateUnknownError(BackendError):
    """The connection broke after the command was sent and before its reply."""


class LinkOptions(NamedTuple):
    """What a connection of one's own to a server needs."""

    username: str | None
    password: str | None
    ssl: ssl.SSLContext | None
    connect_timeout: float
    client_name: str


class Topology(Protocol):
    """The servers, as far as known."""

    @property
    def link(self) -> LinkOptions:
        """How to connect to them."""
        ...

    async def start(self) -> None:
        """Discover them and check that they will do. Raises `BackendError`."""
        ...

    async def stop(self) -> None:
        """Close every connection."""
        ...

    async def refresh(self) -> None:
        """Discover them anew. Raises `BackendError`."""
        ...

    def addresses(self) -> Sequence[Address]:
        """The primaries."""
        ...

    def address_for(self, key: bytes | None) -> Address | None:
        """The primary that holds a key or sharded channel; any for None. None while it is not known."""
        ...

    def tag_for(self, address: Address) -> str:
        """A hash tag whose slot `address` holds."""
        ...

    async def execute(self, address: Address, requests: Sequence[Sequence[Argument]]) -> list[Any]:
        """Send commands in one write; a reply or an exception for each, in order. Raises `NotSentError`."""
        ...


class _Servers:
    """Connections to servers by address; what the three topologies share."""

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        self._servers = servers
        self._options = options
        self._idle: dict[Address, list[Connection]] = {}
        username = options.username if options.username is not None else servers.username
        password = options.password if options.password is not None else servers.password
        context = _tls(options) if servers.tls else None
        self.link = LinkOptions(username, password, context, options.connect_timeout, options.client_name)

    async def start(self) -> None:
        await self.refresh()
        for address in self.addresses():
            await self._check(address)

    async def stop(self) -> None:
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                await connection.disconnect(nowait=True)

    async def refresh(self) -> None:
        raise NotImplementedError

    def addresses(self) -> Sequence[Address]:
        raise NotImplementedError

    def address_for(self, key: bytes | None) -> Address | None:
        raise NotImplementedError

    def tag_for(self, address: Address) -> str:
        raise NotImplementedError

    async def execute(self, address: Address, requests: Sequence[Sequence[Argument]]) -> list[Any]:
        connection = await self._connected(address)
        replies: list[Any] = []
        try:
            packed = connection.pack_commands([tuple(words) for words in requests])
            await connection.send_packed_command(packed, check_health=False)
            while len(replies) < len(requests):
                try:
                    replies.append(await connection.read_response())
                except (ResponseError, BusyLoadingError) as error:
                    replies.append(error)
        except (RedisError, OSError, asyncio.IncompleteReadError) as error:
            await connection.disconnect(nowait=True)
            lost = FateUnknownError(f"The connection to {address} broke: {error}")
            return replies + [lost] * (len(requests) - len(replies))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return await self._answered(address, connection, requests, replies)

    async def _answered(
        self, address: Address, connection: Connection, requests: Sequence[Sequence[Argument]], replies: list[Any]
    ) -> list[Any]:
        idle = self._idle.setdefault(address, [])
        if len(idle) < IDLE_CONNECTIONS and connection.is_connected:
            idle.append(connection)
        else:
            await connection.disconnect(nowait=True)
        for index, reply in enumerate(replies):
            if type(reply) is AskError:  # this slot is on its way to another shard, which has this key already
                there = Address(reply.host, int(reply.port))
                replies[index] = (await self.execute(there, [["ASKING"], requests[index]]))[1]
        return replies

    async def _connected(self, address: Address, *, sentinel: bool = False) -> Connection:
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if connection.is_connected and not await _is_stale(connection):
                return connection
            await connection.disconnect(nowait=True)
        connection = self._make(address, sentinel=sentinel)
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                await connection.connect()  # type: ignore[no-untyped-call] # redis-py left it untyped
        except TimeoutError:
            await connection.disconnect(nowait=True)
            raise NotSentError(
                f"{address} did not answer within {self._options.connect_timeout:g} s; is it a firewall, or too busy?"
            ) from None
        except BusyLoadingError:
            await connection.disconnect(nowait=True)
            raise NotSentError(f"{address} is still loading its data.") from None
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise NotSentError(_connect_problem(address, error, tls=self._servers.tls)) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def _make(self, address: Address, *, sentinel: bool = False) -> Connection:
        options, servers = self._options, self._servers
        arguments: dict[str, Any] = {
            "host": address.host,
            "port": address.port,
            "db": 0 if sentinel else servers.db,
            "username": options.sentinel_username if sentinel else self.link.username,
            "password": options.sentinel_password if sentinel else self.link.password,
            "socket_timeout": None,  # the callers time whole batches
            "socket_connect_timeout": options.connect_timeout,
            "client_name": options.client_name or None,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        if not servers.tls:
            return Connection(**arguments)
        return SSLConnection(
            ssl_ca_certs=options.ca_certs,
            ssl_certfile=options.certfile,
            ssl_keyfile=options.keyfile,
            ssl_check_hostname=options.check_hostname,
            **arguments,
        )

    async def _check(self, address: Address) -> None:
        """Raises `BackendError` for a server that cannot be used."""
        reply = (await self._timed(address, [["INFO", "server", "cluster"]]))[0]
        if isinstance(reply, NoPermissionError):
            return  # it lets us do less; what is missing is said when it is used
        if isinstance(reply, Exception):
            raise BackendError(f"{address} cannot be used: {reply}")
        fields = dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
        version = fields.get("redis_version", "0")
        if int(version.split(".")[0]) < OLDEST_MAJOR:
            raise ConfigurationError(
                f"{address} is Redis {version}; SocketSpec needs Redis {OLDEST_MAJOR} or Valkey 8 at least."
            )
        if "sentinel" in (fields.get("redis_mode"), fields.get("server_mode")):
            raise ConfigurationError(f"{address} is a Sentinel: use redis+sentinel://{address}/name for it.")
        is_cluster = fields.get("cluster_enabled") == "1"
        if is_cluster and self._servers.mode != "cluster":
            raise ConfigurationError(f"{address} runs in cluster mode: use redis+cluster://{address} for it.")
        if not is_cluster and self._servers.mode == "cluster":
            raise ConfigurationError(f"{address} does not run in cluster mode: use redis://{address} for it.")

    async def _timed(self, address: Address, requests: Sequence[Sequence[Argument]]) -> list[Any]:
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                return await self.execute(address, requests)
        except TimeoutError:
            raise NotSentError(f"{address} did not answer within {self._options.connect_timeout:g} s.") from None


class _Standalone(_Servers):
    """One server."""

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        super().__init__(servers, options)
        self._address: Address | None = servers.hosts[0]

    async def refresh(self) -> None:
        """There is nothing to discover."""

    def addresses(self) -> Sequence[Address]:
        return () if self._address is None else (self._address,)

    def address_for(self, key: bytes | None) -> Address | None:
        return self._address

    def tag_for(self, address: Address) -> str:
        return "0"


class _Sentinel(_Standalone):
    """The primary that the sentinels name at present."""

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        super().__init__(servers, options)
        self._address = None

    async def refresh(self) -> None:
        problems = []
        for sentinel in self._servers.hosts:
            try:
                found = await self._ask(sentinel)
            except BackendError as error:
                problems.append(str(error))
                continue
            if found is None:
                problems.append(f"{sentinel} knows no primary called {self._servers.name!r}.")
                continue
            if found != self._address:
                logger.info("The primary of %r is %s", self._servers.name, found)
            self._address = found
            return
        raise NotSentError("No sentinel named a primary: " + " ".join(problems))

    async def _ask(self, sentinel: Address) -> Address | None:
        connection = None
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                connection = await self._connected(sentinel, sentinel=True)
                await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._servers.name)
                reply = await connection.read_response()
        except (RedisError, OSError, TimeoutError) as error:
            raise NotSentError(f"{sentinel}: {str(error) or 'no answer in time'}.") from error
        finally:
            if connection is not None:
                await connection.disconnect(nowait=True)
        return None if reply is None else Address(reply[0].decode(), int(reply[1]))


class _Cluster(_Servers):
    """The primaries of a cluster's shards."""

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        super().__init__(servers, options)
        self._slots: list[Address | None] = [None] * _SLOTS
        self._primaries: tuple[Address, ...] = ()
        self._tags: dict[Address, str] = {}

    async def refresh(self) -> None:
        problems = []
        for address in dict.fromkeys((*self._primaries, *self._servers.hosts)):
            try:
                reply = (await self._timed(address, [["CLUSTER", "SLOTS"]]))[0]
            except BackendError as error:
                problems.append(str(error))
                continue
            if isinstance(reply, ResponseError) and "cluster support disabled" in str(reply):
                raise ConfigurationError(f"{address} does not run in cluster mode: use redis://{address} for it.")
            if isinstance(reply, Exception) or not reply:
                problems.append(f"{address}: {reply or 'it knows no slots'}.")
                continue
            self._learn(address, reply)
            return
        raise NotSentError("No node of the cluster told its slots: " + " ".join(problems))

    def _learn(self, told_by: Address, ranges: Sequence[Sequence[Any]]) -> None:
        slots: list[Address | None] = [None] * _SLOTS
        for first, last, primary, *_ in ranges:
            host = (primary[0] or b"").decode()
            address = Address(host if host not in ("", "?") else told_by.host, int(primary[1]))
            slots[first : last + 1] = [address] * (last - first + 1)
        primaries = tuple(dict.fromkeys(address for address in slots if address is not None))
        if self._primaries and set(primaries) != set(self._primaries):
            logger.info("The cluster's primaries are %s", ", ".join(map(str, primaries)))
        self._slots, self._primaries = slots, primaries

    def addresses(self) -> Sequence[Address]:
        return self._primaries

    def address_for(self, key: bytes | None) -> Address | None:
        if key is None:
            return self._primaries[0] if self._primaries else None
        return self._slots[key_slot(key)]

    def tag_for(self, address: Address) -> str:
        tag = self._tags.get(address, "0")
        if address in self._primaries and self._slots[key_slot(tag.encode())] != address:
            # One number in as many as there are shards, roughly; asked for when a link is made.
            tag = next(text for number in count() if self._slots[key_slot((text := str(number)).encode())] == address)
        self._tags[address] = tag
        return tag


def make_topology(servers: Servers, options: RedisOptions) -> Topology:
    """The topology that a backend URL describes. Raises `ConfigurationError` for TLS files that cannot be used."""
    kinds: dict[str, type[_Servers]] = {"standalone": _Standalone, "sentinel": _Sentinel, "cluster": _Cluster}
    return kinds[servers.mode](servers, options)


async def _is_stale(connection: Connection) -> bool:
    """Whether the server has closed it, or sent what nobody asked for, while it was not in use."""
    try:
        return bool(await connection.can_read())
    except (RedisError, OSError, ValueError):
        return True


def _tls(options: RedisOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca_certs)
        if options.certfile is not None:
            context.load_cert_chain(options.certfile, options.keyfile)
    except OSError as error:  # of which SSLError is one
        raise ConfigurationError(f"The TLS files cannot be used: {error}") from error
    context.check_hostname = options.check_hostname
    return context


def _connect_problem(address: Address, error: Exception, *, tls: bool) -> str:
    text = str(error)
    if isinstance(error, AuthenticationError | NoPermissionError) or "NOAUTH" in text or "WRONGPASS" in text:
        return f"{address} refused the login: {text}; check user and password."
    if "SSL" in text or "certificate" in text.lower():
        return f"{address}: TLS failed: {text}; does it speak TLS, and is its certificate trusted (ca_certs)?"
    if isinstance(error, RedisConnectionError) and "closed by server" in text and not tls:
        return f"{address} closed the connection at once; if it speaks TLS, use rediss://."
    return f"{address} cannot be reached: {text}"
