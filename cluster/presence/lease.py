"""A node's own lease, and what its renewals tell of the server's clock. No I/O here."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

__all__ = ("Lease", "uptime")


def uptime() -> float:
    """A monotonic clock in seconds, which goes on also while this process or the whole machine is suspended, where the
    system has one: https://man7.org/linux/man-pages/man2/clock_gettime.2.html (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Lease:
    """One lease of `length` seconds, renewed again and again. Commands are waited for `patience` seconds.

    `clock` is monotonic, in seconds, and goes on while this process is stopped.
    """

    def __init__(self, length: float, patience: float, clock: Callable[[], float]) -> None:
        self.length: float = length
        self.clock: Callable[[], float] = clock
        self.ends: float = 0.0
        """When it ends if it is not renewed, on the local clock; never later than Redis thinks."""
        self.judges_from: float = math.inf
        """From when on others whose lease has ended count as dead. Before that they may just not have come round to
        renewing it: the server was away, or is another one, or went back to older data."""
        self.server: bytes = b""
        """The server that renewed it last."""
        self._patience = patience
        self._heard = -math.inf
        self._ahead = 0.0
        """The server's clock less ours: no more than it is."""
        self._skew = 0.0
        """How far the clock of another server of the cluster is ahead of that."""

    @property
    def stands(self) -> bool:
        """Whether it has not ended, by our own clock."""
        return self.clock() < self.ends

    def renewed(self, asked: float, server: bytes, server_ms: int, *, is_unbroken: bool) -> None:
        """It was renewed by `server`, at `server_ms` on its clock; we asked at `asked`.

        `is_unbroken`: nothing has gone wrong since the last time, as far as the caller knows.
        """
        heard = self.clock()
        ahead = server_ms / 1000 - heard
        jumped = abs(ahead - self._ahead) > self.length / 2
        is_late = heard - self._heard > self.length / 2
        if jumped or is_late or not is_unbroken or (self.server and server != self.server):
            self.judges_from = heard + self.length
        if jumped:
            self._skew = 0.0
        self._heard, self._ahead, self.server = heard, ahead, server
        self.ends = asked + self.length

    def until(self) -> int:
        """Until when a command that is sent now may be carried out, in milliseconds of server time.

        That is as long as somebody waits for it and the lease stands.
        """
        now = self.clock()
        return math.floor((min(now + self._patience, self.ends) + self._ahead + self._skew) * 1000)

    def came_late(self, reply: int) -> bool:
        """Whether this reply says that its command came too late. Then the next one is given more time if need be:
        servers of a cluster have a clock each."""
        if reply >= 0:
            return False
        skew = -reply / 1000 - (self.clock() + self._ahead)
        self._skew = max(self._skew, skew)
        return True

    def server_time(self) -> float:
        """What the clock of the server shows that renews it, in seconds since the epoch; behind by a round trip at
        most."""
        return self.clock() + self._ahead
