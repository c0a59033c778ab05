"""One blocking connection to a server, for code without an event loop. Everything it does has a deadline.

redis-py's client would connect, send and try again in one call. Here its connection does each alone: after a failure a
publisher must know whether a command can have reached the server, because only one that cannot may be sent again.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import hiredis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    MasterDownError,
    RedisError,
)
from redis.exceptions import TimeoutError as LateError

from socketspec.cluster.commands.command import Argument
from socketspec.cluster.options import TLS_HINT, Address
from socketspec.cluster.publishers.blocking_connection import TimedConnection
from socketspec.cluster.publishers.wording import said
from socketspec.cluster.servers.connections import unix_problem
from socketspec.cluster.servers.greeting import read_hello, read_info
from socketspec.cluster.servers.shard import REPLIES
from socketspec.cluster.servers.trouble import MAX_CLIENTS, is_full, missing_command, tls_alert, tls_problem
from socketspec.errors import BackendError

__all__ = ("CHECK_EVERY", "SIGN_OF_LIFE", "BlockingLink", "LinkBroken", "Tls")

CHECK_EVERY: float = 5.0
"""Seconds after which a server is asked for its role again before it gets the next command.

A replica would accept a publish that nobody elsewhere hears."""
SIGN_OF_LIFE: Final = 1.0
"""Seconds that the answer may take."""


class LinkBroken(Exception):
    """The connection is of no use any more. `is_sent`: some of the commands may have reached the server."""

    def __init__(self, reason: str, *, is_sent: bool) -> None:
        super().__init__(reason)
        self.is_sent = is_sent


class Tls(NamedTuple):
    """How connections are encrypted."""

    context: ssl.SSLContext
    has_certificate: bool
    """Whether we show a certificate of our own."""

    def problem(self, error: ssl.SSLError) -> str:
        """What is wrong, to be said after the server's name."""
        return tls_problem(error, has_certificate=self.has_certificate)


class BlockingLink:
    """A connection that is logged in. Raises `LinkBroken`, and `BackendError` where trying again cannot help.

    `is_known`: we have been connected to this server before, so that nothing is wrong with the URL. `can_change`: the
    next connection may log in with another password, so that a wrong one is no reason to give up.
    """

    def __init__(
        self,
        address: Address,
        connection: TimedConnection,
        client_name: str,
        deadline: float,
        *,
        is_known: bool,
        can_change: bool,
        tls: Tls | None,
    ) -> None:
        self.address: Address = address
        self.mode: str = ""
        """``standalone``, ``sentinel`` or ``cluster``, as the server says."""
        self.role: str = ""
        """``master`` or ``replica``, as the server said when it was last asked; empty for a very old one."""
        self.is_used: bool = False
        """Whether it has been lent before, so that it was logged in."""
        self.used_at: float = 0.0
        """When it was used last, of `time.monotonic`."""
        self._checked_at = 0.0
        self._connection = connection
        self._tls = tls
        self._lacks_hello = False
        hint = "" if is_known or address.is_unix else f". {TLS_HINT[tls is not None]}"
        try:
            self._log_in(client_name, deadline, can_change=can_change)
        except LinkBroken as error:
            self.close()
            if not is_known:
                self._check_alert(deadline, error)
            if is_full(str(error)):
                raise LinkBroken(f"it {MAX_CLIENTS}", is_sent=False) from error
            raise LinkBroken(_reason(address, error.__cause__ or error, hint), is_sent=False) from error
        except BaseException:
            self.close()
            raise

    def _log_in(self, client_name: str, deadline: float, *, can_change: bool) -> None:
        try:
            self._connection.open()
        except REPLIES as error:
            self._refused(error, can_change=can_change)
        except RedisError as error:
            self._check_tls(_cause(error))
            raise LinkBroken("", is_sent=False) from error
        commands: list[Sequence[Argument]] = [["HELLO"]]
        if client_name:
            commands.insert(0, ["CLIENT", "SETNAME", client_name])
        replies = self.exchange(commands, deadline)
        self._take_role(replies[-1])
        if not self.role and isinstance(replies[-1], REPLIES) and missing_command(str(replies[-1])):
            self._lacks_hello = True
            self._ask_role(deadline)
        for reply in replies:
            # An ACL may not allow a client's name.
            if isinstance(reply, AuthenticationError | BusyLoadingError | MasterDownError):
                self._refused(reply, can_change=can_change)

    def _ask_role(self, deadline: float) -> None:
        self._take_role(*self.exchange([["INFO"] if self._lacks_hello else ["HELLO"]], deadline))

    def _take_role(self, reply: Any) -> None:
        """Learn mode and role from the reply to ``HELLO``, or to ``INFO`` where that is switched off."""
        self._checked_at = time.monotonic()
        if isinstance(reply, list | bytes):
            hello = read_hello(reply) if isinstance(reply, list) else read_info(reply)
            self.mode, self.role = hello.mode, hello.role

    def _refused(self, error: Exception, *, can_change: bool) -> None:
        if isinstance(error, BusyLoadingError | MasterDownError):
            raise LinkBroken(said(error), is_sent=False)
        text = f"{self.address} refused to let us in: {_sentence(said(error))}"
        if can_change and isinstance(error, AuthenticationError):
            raise LinkBroken(text, is_sent=False)
        raise BackendError(text)

    def _check_tls(self, cause: BaseException) -> None:
        """Raise `BackendError` where TLS cannot work with this server."""
        if self._tls is not None and isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            raise BackendError(f"{self.address} {self._tls.problem(cause)}") from cause  # an end may pass

    def _check_alert(self, deadline: float, error: LinkBroken) -> None:
        """Raise `BackendError` where the server has closed the connection for the certificate that we show or lack."""
        if self._tls is None:
            return
        alert = tls_alert(self.address, self._tls.context, max(min(deadline - time.monotonic(), SIGN_OF_LIFE), 0.05))
        if alert is not None:
            raise BackendError(f"{self.address} {self._tls.problem(alert)}") from error

    @property
    def is_open(self) -> bool:
        """Whether it may be used again."""
        return self._connection.is_connected

    def exchange(self, commands: Sequence[Sequence[Argument]], deadline: float) -> list[Any]:
        """Send `commands` at once; their replies, a refusal as the error it is (see `REPLIES`) in its place.

        One that the server did not carry out because it has ended the login has a `LinkBroken` in its place.
        """
        words: Iterable[Any] = map(tuple, commands)
        packed = b"".join(map(hiredis.pack_command, words))
        is_sent = False
        replies: list[Any] = []
        try:
            self._connection.prepare(deadline)
            is_sent = True
            self._connection.send(packed)
            for _ in commands:
                replies.append(self._reply())  # what came before a failure says why
                if isinstance(replies[0], REPLIES) and is_full(str(replies[0])):
                    is_sent = False
                    raise ConnectionResetError(str(replies[0]))
        except (RedisError, OSError) as error:
            self.close()
            raise LinkBroken(_reason(self.address, error), is_sent=is_sent) from error
        except BaseException:  # such as Ctrl-C: the next reply would be another command's
            self.close()
            raise
        if self.is_used and AuthenticationError in map(type, replies):
            self.close()
            ended = LinkBroken("the server has ended the login of a connection", is_sent=False)
            return [ended if type(reply) is AuthenticationError else reply for reply in replies]
        return replies

    def _reply(self) -> Any:
        try:
            return self._connection.read_response(disconnect_on_error=False)
        except REPLIES as error:
            return error

    def is_alive(self, deadline: float) -> bool:
        """Whether it can be used again, as far as can be known without sending a command that changes something.

        It cannot where the server's role has changed.
        """
        try:
            # Nothing is expected: if there is something to read, it is the end of the connection, or nonsense.
            if self._connection.can_read():
                return False
            if time.monotonic() - self._checked_at < CHECK_EVERY:
                return True
            before = self.role
            self._ask_role(min(deadline, time.monotonic() + SIGN_OF_LIFE))
            return self.role == before
        except (RedisError, OSError, ValueError, LinkBroken):
            return False

    def close(self) -> None:
        """Close it; in a process that was forked, only its copy."""
        self._connection.close()


def _cause(error: BaseException) -> BaseException:
    """What redis-py made its error of."""
    return error.__cause__ or error.__context__ or error


def _reason(address: Address, error: BaseException, hint: str = "") -> str:
    """What went wrong, in words. `hint` is added where the cause may be another than it seems."""
    cause = _cause(error)
    if problem := unix_problem(address, cause):
        return problem
    if is_full(str(error)):
        return str(error)
    if isinstance(error, TimeoutError | LateError):
        return f"no answer in time{hint}"
    if isinstance(cause, socket.gaierror):
        return f"the host name is not known: {cause.strerror}"
    if isinstance(cause, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError) or "closed by server" in str(error):
        return f"the server closed the connection{hint}"
    if isinstance(error, InvalidResponse):
        return f"what came is no answer of Redis{hint}"
    if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ssl.SSLError):
        return os.strerror(cause.errno)
    return str(error) or type(error).__name__


def _sentence(text: str) -> str:
    name = text.partition(" ")[0]
    hints = {
        "NOAUTH": "the URL needs a password",
        "WRONGPASS": "user or password is wrong",
        "NOPERM": "the user may not do this",
    }
    return f"{hints[name]} ({text})" if name in hints else text
