"""Accepts connections on a listening socket, in the place of the event loop's own server.

Where the process has no file left for a connection, asyncio logs thousands of tracebacks and tries again at once, and
meanwhile nobody is served. This one closes a connection that asks for nothing, or stops accepting for a moment, and
says so once a minute. It uses only what every event loop has, uvloop among them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from socketspec.adapters.uvicorn.gate import Gate
from socketspec.telemetry.log_pace import OnceAMinute
from socketspec.text import get_logger

__all__ = ("Acceptor",)

logger: logging.Logger = get_logger("socketspec.server")

A_TURN: Final = 16
"""Connections that are accepted before the event loop gets its turn, and other processes theirs."""
PAUSE: Final = 0.5
"""Seconds until it is tried again, where a connection could not be accepted."""
SHORT_PAUSE: Final = 0.05
"""The same, where there will be room in a moment."""
FAIR_CHANCE: Final = 0.5
"""Seconds that a TLS handshake has before it may be broken off to make room."""
SHORT_OF: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors that a closed connection may help against."""


class Acceptor:
    """What uvicorn takes for an `asyncio.Server`. Belongs to the running event loop."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        gate: Gate,
        *,
        tls: ssl.SSLContext | None = None,
        handshake_timeout: float = 10.0,
        accepts_per_second: float | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make = make
        self._gate = gate
        self._tls = tls
        self._handshake_timeout = handshake_timeout
        self._rate = accepts_per_second
        self._tokens = accepts_per_second or 0.0
        self._counted_at = self._loop.time()
        self._opening: dict[asyncio.Task[None], tuple[socket.socket, float]] = {}
        """The socket of each, and when it began, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._line = OnceAMinute(self._loop.time)
        listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Accept no more. Connections that are there stay."""
        if not self._is_closed:
            self._is_closed = True
            self._stop()
            for accepted, _ in self._opening.values():
                _shut(accepted)

    async def wait_closed(self) -> None:
        """Wait until no handshake is under way any more."""
        if self._opening:
            await asyncio.wait(self._opening)

    def _resume(self) -> None:
        self._timer = None
        if not self._is_closed:
            self._loop.add_reader(self._listener, self._accept_some)

    def _stop(self) -> None:
        if self._timer is None:
            self._loop.remove_reader(self._listener)
        else:
            self._timer.cancel()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, self._resume)

    def _accept_some(self) -> None:
        for _ in range(A_TURN):
            if self._too_early():
                return
            has_dropped = not self._gate.has_room(len(self._opening))
            if has_dropped and not self._make_room():
                self._wait_for_room()
                return
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):  # another process may have been faster
                return
            except ConnectionError:  # the client has left already
                continue
            except OSError as error:
                self._failed(error)
                return
            self._tokens -= 1
            self._open(accepted)
            if has_dropped:  # its file is closed in the next turn
                return

    def _failed(self, error: OSError) -> None:
        """Try again when there may be a file: at once where one can be had, as whoever asks for nothing has one."""
        self._say("%s", error.strerror or error)
        if error.errno not in SHORT_OF or not self._make_room():
            self._pause(SHORT_PAUSE if self._opening else PAUSE)

    def _make_room(self) -> bool:
        """Close one connection that asks for nothing. Returns whether there was one."""
        return self._gate.drop_idle() or self._drop_handshake()

    def _drop_handshake(self) -> bool:
        """Break off the TLS handshake that has been under way for longest. Returns whether there was a slow one."""
        oldest = next(iter(self._opening), None)
        if oldest is None or self._loop.time() - self._opening[oldest][1] < FAIR_CHANCE:
            return False
        accepted, _ = self._opening.pop(oldest)
        _shut(accepted)
        self._gate.dropped += 1
        return True

    def _wait_for_room(self) -> None:
        if self._opening:  # in a moment these are open, and may be dropped if they ask for nothing
            self._pause(SHORT_PAUSE)
        else:
            self._say("there are %d connections, and all are busy", self._gate.ceiling)
            self._pause(PAUSE)

    def _too_early(self) -> bool:
        """Whether more would be accepted than there may be in a second; then, come back when one may."""
        if self._rate is None:
            return False
        now = self._loop.time()
        self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._counted_at) * self._rate)
        self._counted_at = now
        if self._tokens >= 1:
            return False
        self._pause((1 - self._tokens) / self._rate)
        return True

    def _say(self, why: str, detail: object) -> None:
        if self._line.is_due():
            logger.error(
                f"Cannot accept connections: {why}. Trying again every {PAUSE:g} s; who is connected is served. "
                "Allow more open files (ulimit -n, LimitNOFILE), or lower --max-connections.",
                detail,
            )

    def _open(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        opening = self._loop.create_task(self._connect(accepted), name="opening of a connection")
        self._opening[opening] = accepted, self._loop.time()
        opening.add_done_callback(partial(self._opened, accepted))

    async def _connect(self, accepted: socket.socket) -> None:
        timeout = None if self._tls is None else self._handshake_timeout
        await self._loop.connect_accepted_socket(self._make, accepted, ssl=self._tls, ssl_handshake_timeout=timeout)

    def _opened(self, accepted: socket.socket, opening: asyncio.Task[None]) -> None:
        self._opening.pop(opening, None)
        if opening.cancelled():
            accepted.close()
            return
        error = opening.exception()
        if error is None:
            return
        accepted.close()
        if isinstance(error, OSError):  # no TLS, a certificate that was refused, too slow
            logger.debug("A connection was not opened: %r", error)
        else:
            logger.error("A connection was not opened", exc_info=error)


def _shut(accepted: socket.socket) -> None:
    """End a connection under its handshake, which then fails."""
    try:
        accepted.shutdown(socket.SHUT_RDWR)
    except OSError:  # the client has left already
        return
