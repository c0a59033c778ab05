"""One blocking connection to a server, for code without an event loop. What it does is bounded by a deadline.

It is our own, a socket and hiredis' parser, because a publisher must know after a failure whether a command can have
reached the server: only then may it be sent again.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import hiredis

from socketspec.cluster.commands import Argument
from socketspec.cluster.options import Address, RedisOptions
from socketspec.errors import BackendError

__all__ = ("Credentials", "Link", "LinkBroken", "ServerRefusal")

IDLE: Final = 20.0
"""Seconds unused after which a connection is asked for a sign of life before it carries a command."""
SIGN_OF_LIFE: Final = 1.0
"""Seconds that may take."""

ServerRefusal = hiredis.ReplyError
"""A reply that is an error; its text begins with the error's name."""

Credentials = tuple[str | None, str | None]
"""User and password; None: the default user, no password."""


class LinkBroken(Exception):
    """The connection is of no use any more. `is_sent`: some of the commands may have reached the server."""

    def __init__(self, reason: str, *, is_sent: bool) -> None:
        super().__init__(reason)
        self.is_sent = is_sent


class Link:
    """A connection that is logged in. Raises `LinkBroken`, and `BackendError` where trying again cannot help."""

    def __init__(
        self,
        address: Address,
        credentials: Credentials,
        db: int,
        options: RedisOptions,
        context: ssl.SSLContext | None,
        deadline: float,
    ) -> None:
        self.address: Address = address
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._used_at = time.monotonic()
        deadline = min(deadline, self._used_at + options.connect_timeout)
        try:
            self._socket: socket.socket = self._connect(context, deadline)
        except OSError as error:
            raise LinkBroken(_reason(error), is_sent=False) from error
        try:
            self._log_in(credentials, db, options.client_name, deadline)
        except LinkBroken as error:
            self.close()
            raise LinkBroken(str(error), is_sent=False) from error
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        # Whoever dropped it without `close` meant it to end, as with any connection pool.
        connection: socket.socket | None = getattr(self, "_socket", None)
        if connection is not None:
            connection.close()

    def _connect(self, context: ssl.SSLContext | None, deadline: float) -> socket.socket:
        plain = socket.create_connection(self.address, timeout=_left(deadline))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if context is None:
                return plain
            plain.settimeout(_left(deadline))
            return context.wrap_socket(plain, server_hostname=self.address.host)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise BackendError(
                f"The certificate of {self.address} is not trusted ({error.verify_message}); pass ca_certs=, or for "
                "another host name in it check_hostname=False."
            ) from error
        except BaseException:
            plain.close()
            raise

    def _log_in(self, credentials: Credentials, db: int, client_name: str, deadline: float) -> None:
        username, password = credentials
        commands: list[Sequence[Argument]] = []
        if username or password:
            commands.append(["AUTH", *([username] if username else []), password or ""])
        if client_name:
            commands.append(["CLIENT", "SETNAME", client_name])
        if db:
            commands.append(["SELECT", db])
        replies = self.exchange(commands, deadline) if commands else []
        for command, reply in zip(commands, replies, strict=True):
            if not isinstance(reply, ServerRefusal):
                continue
            if str(reply).startswith(("LOADING", "MASTERDOWN")):
                raise LinkBroken(str(reply), is_sent=False)
            if command[0] == "CLIENT" and not str(reply).startswith("NOAUTH"):
                continue  # a name is a convenience: an ACL may not allow it
            raise BackendError(f"{self.address} refused to let us in: {_sentence(str(reply))}")

    def exchange(self, commands: Sequence[Sequence[Argument]], deadline: float) -> list[Any]:
        """Send `commands` at once; their replies, a refusal as a `ServerRefusal` in its place."""
        packed: Iterable[Any] = map(tuple, commands)
        data = b"".join(map(hiredis.pack_command, packed))
        is_sent = False
        try:
            self._socket.settimeout(_left(deadline))
            is_sent = True
            self._socket.sendall(data)
            replies = [self._reply(deadline) for _ in commands]
        except (OSError, hiredis.HiredisError) as error:
            self.close()
            raise LinkBroken(_reason(error), is_sent=is_sent) from error
        except BaseException:  # such as Ctrl-C: the next reply would be another command's
            self.close()
            raise
        self._used_at = time.monotonic()
        return replies

    def _reply(self, deadline: float) -> Any:
        while (reply := self._reader.gets()) is Ellipsis:
            self._socket.settimeout(_left(deadline))
            received = self._socket.recv(65_536)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(received)
        return reply

    def is_alive(self, deadline: float) -> bool:
        """Whether it can be used again, as far as can be known without sending a command that changes something."""
        try:
            # Nothing is expected, so what can be read is the end, or something that we do not understand.
            if _is_readable(self._socket):
                return False
            if time.monotonic() - self._used_at < IDLE:
                return True
            return self.exchange([["PING"]], min(deadline, time.monotonic() + SIGN_OF_LIFE)) == [b"PONG"]
        except (OSError, ValueError, LinkBroken):
            return False

    def close(self) -> None:
        """Close it; in a process that was forked, only its copy."""
        self._socket.close()


def _is_readable(connection: socket.socket) -> bool:
    if not hasattr(select, "poll"):
        return bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()  # unlike select, for file descriptors beyond 1024, too
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return f"the host name is not known: {error.strerror}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


def _sentence(text: str) -> str:
    name = text.partition(" ")[0]
    hints = {
        "NOAUTH": "the URL needs a password",
        "WRONGPASS": "user or password is wrong",
        "NOPERM": "the user may not do this",
    }
    return f"{hints[name]} ({text})" if name in hints else text
