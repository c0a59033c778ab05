"""One blocking connection to a server, for code without an event loop. Everything it does has a deadline.

It is a socket and hiredis' parser rather than redis-py's connection: after a failure a publisher must know whether a
command can have reached the server, because only one that cannot may be sent again.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import hiredis

from socketspec.cluster.commands.command import Argument
from socketspec.cluster.options import TLS_HINT, Address, RedisOptions
from socketspec.cluster.servers.trouble import MAX_CLIENTS, is_full, tls_alert, tls_problem
from socketspec.errors import BackendError

__all__ = ("BlockingLink", "Credentials", "LinkBroken", "ServerRefusal", "in_turn")

CHECK_EVERY: float = 5.0
"""Seconds after which a server is asked for its role again before it gets the next command.

A replica would accept a publish that nobody elsewhere hears."""
SIGN_OF_LIFE: Final = 1.0
"""Seconds that the answer may take."""

T = TypeVar("T")

ServerRefusal = hiredis.ReplyError
"""A reply that is an error; its text begins with the error's name."""

Credentials = tuple[str | None, str | None]
"""User and password; None: the default user, no password."""


class LinkBroken(Exception):
    """The connection is of no use any more. `is_sent`: some of the commands may have reached the server."""

    def __init__(self, reason: str, *, is_sent: bool) -> None:
        super().__init__(reason)
        self.is_sent = is_sent


class BlockingLink:
    """A connection that is logged in. Raises `LinkBroken`, and `BackendError` where trying again cannot help.

    `is_known`: we have been connected to this server before, so that nothing is wrong with the URL.
    """

    def __init__(
        self,
        address: Address,
        credentials: Credentials,
        db: int,
        options: RedisOptions,
        context: ssl.SSLContext | None,
        deadline: float,
        *,
        is_known: bool = False,
    ) -> None:
        self.address: Address = address
        self.mode: bytes = b""
        """``standalone``, ``sentinel`` or ``cluster``, as the server says."""
        self.role: bytes = b""
        """``master`` or ``replica``, as the server said when it was last asked; empty for a very old one."""
        self._checked_at = 0.0
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        deadline = min(deadline, time.monotonic() + options.connect_timeout)
        hint = "" if is_known else f". {TLS_HINT[context is not None]}"
        try:
            self._socket: socket.socket = self._connect(context, deadline, has_certificate=options.certfile is not None)
        except OSError as error:
            raise LinkBroken(_reason(error, hint), is_sent=False) from error
        try:
            self._log_in(credentials, db, options.client_name, deadline)
        except LinkBroken as error:
            self.close()
            if context is not None and not is_known:
                alert = tls_alert(address, context, max(min(deadline - time.monotonic(), SIGN_OF_LIFE), 0.05))
                if alert is not None:
                    raise BackendError(
                        f"{address} {tls_problem(alert, has_certificate=options.certfile is not None)}"
                    ) from error
            if is_full(str(error)):
                raise LinkBroken(f"it {MAX_CLIENTS}", is_sent=False) from error
            raise LinkBroken(_reason(error.__cause__ or error, hint), is_sent=False) from error
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        # A publisher that is dropped without `close` leaves no socket open.
        connection: socket.socket | None = getattr(self, "_socket", None)
        if connection is not None:
            connection.close()

    def _connect(self, context: ssl.SSLContext | None, deadline: float, *, has_certificate: bool) -> socket.socket:
        plain = _open_socket(self.address, deadline)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if context is None:
                return plain
            plain.settimeout(_left(deadline))
            return context.wrap_socket(plain, server_hostname=self.address.host)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise BackendError(f"{self.address} {tls_problem(error, has_certificate=has_certificate)}") from error
        except BaseException as error:
            plain.close()
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):  # which may pass
                raise BackendError(f"{self.address} {tls_problem(error, has_certificate=has_certificate)}") from error
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
        commands.append(["HELLO"])
        replies = self.exchange(commands, deadline)
        self._take_role(replies[-1])
        for command, reply in zip(commands, replies, strict=True):
            if not isinstance(reply, ServerRefusal):
                continue
            if str(reply).startswith(("LOADING", "MASTERDOWN")):
                raise LinkBroken(str(reply), is_sent=False)
            if command[0] in ("CLIENT", "HELLO") and not str(reply).startswith("NOAUTH"):
                continue  # an ACL may not allow a client's name; a server without HELLO is too old and found out later
            raise BackendError(f"{self.address} refused to let us in: {_sentence(str(reply))}")

    def _take_role(self, hello: Any) -> None:
        self._checked_at = time.monotonic()
        if isinstance(hello, list) and b"role" in hello:
            self.role = hello[hello.index(b"role") + 1]
        if isinstance(hello, list) and b"mode" in hello:
            self.mode = hello[hello.index(b"mode") + 1]

    def exchange(self, commands: Sequence[Sequence[Argument]], deadline: float) -> list[Any]:
        """Send `commands` at once; their replies, a refusal as a `ServerRefusal` in its place."""
        packed: Iterable[Any] = map(tuple, commands)
        data = b"".join(map(hiredis.pack_command, packed))
        is_sent = False
        replies: list[Any] = []
        try:
            self._socket.settimeout(_left(deadline))
            is_sent = True
            self._socket.sendall(data)
            for _ in commands:
                replies.append(self._reply(deadline))  # what came before a failure says why
                if isinstance(replies[0], ServerRefusal) and is_full(str(replies[0])):
                    is_sent = False
                    raise ConnectionResetError(str(replies[0]))
        except (OSError, hiredis.HiredisError) as error:
            self.close()
            raise LinkBroken(_reason(error), is_sent=is_sent) from error
        except BaseException:  # such as Ctrl-C: the next reply would be another command's
            self.close()
            raise
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
        """Whether it can be used again, as far as can be known without sending a command that changes something.

        It cannot where the server's role has changed.
        """
        try:
            # Nothing is expected: if there is something to read, it is the end of the connection, or nonsense.
            if _is_readable(self._socket):
                return False
            if time.monotonic() - self._checked_at < CHECK_EVERY:
                return True
            before = self.role
            self._take_role(*self.exchange([["HELLO"]], min(deadline, time.monotonic() + SIGN_OF_LIFE)))
            return self.role == before
        except (OSError, ValueError, LinkBroken):
            return False

    def close(self) -> None:
        """Close it; in a process that was forked, only its copy."""
        self._socket.close()


def in_turn(choices: Sequence[T], deadline: float) -> Iterator[tuple[T, float]]:
    """Each choice with a deadline of its own: one that does not answer must not use up the others' time."""
    for number, choice in enumerate(choices):
        now = time.monotonic()
        if now >= deadline:
            return
        yield choice, now + (deadline - now) / min(len(choices) - number, 3)


def _open_socket(address: Address, deadline: float) -> socket.socket:
    """Connect to the first that answers of those that the name stands for."""
    problem: OSError = TimeoutError("no answer in time")
    for (family, kind, protocol, _, place), until in in_turn(_resolve(address, deadline), deadline):
        try:
            connection = socket.socket(family, kind, protocol)
        except OSError as error:
            problem = error
            continue
        try:
            connection.settimeout(_left(until))
            connection.connect(place)
            return connection
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError):
                raise
            problem = error
    raise problem


def _resolve(address: Address, deadline: float) -> Sequence[tuple[Any, ...]]:
    """The addresses of a host's name. The system's lookup has no deadline: one that takes too long is left behind."""
    found: list[Sequence[tuple[Any, ...]]] = []
    problems: list[OSError] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(*address, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            problems.append(error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, str(error)))

    thread = threading.Thread(target=look_up, name=f"look up {address.host}", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # a publish while the interpreter ends: there are no new threads then
        look_up()
    else:
        thread.join(_left(deadline))
    if problems:
        raise problems[0]
    if not found:
        raise socket.gaierror(socket.EAI_AGAIN, "no answer in time")
    return found[0]


def _is_readable(connection: socket.socket) -> bool:
    if not hasattr(select, "poll"):
        return bool(select.select([connection], [], [], 0)[0])
    poll = select.poll()  # unlike `select`, it takes file descriptors beyond 1024
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _reason(error: BaseException, hint: str = "") -> str:
    """What went wrong, in words. `hint` is added where the cause may be another than it seems."""
    if isinstance(error, TimeoutError):
        return f"no answer in time{hint}"
    if isinstance(error, socket.gaierror):
        return f"the host name is not known: {error.strerror}"
    if is_full(str(error)):
        return str(error)
    if isinstance(error, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError):
        return f"the server closed the connection{hint}"
    if isinstance(error, hiredis.ProtocolError):
        return f"what came is no answer of Redis{hint}"
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
