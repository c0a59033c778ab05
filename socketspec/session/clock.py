"""What must happen to one connection, and when. Reads no clock and does no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum

from socketspec.session.config import SessionConfig

__all__ = ("Action", "SessionClock")


class Action(IntEnum):
    """What a `SessionClock` asks for. Of actions with the same deadline, the first in this list comes first."""

    TOKEN_EXPIRED = 1
    """Close: the token ran out and was not refreshed."""
    SESSION_EXPIRED = 2
    """Close: the session reached its end."""
    IDLE_TIMEOUT = 3
    """Close: no event for `idle_timeout`."""
    HEARTBEAT_TIMEOUT = 4
    """Close: a ping was not answered in `heartbeat_timeout`."""
    TOKEN_WARNING = 5
    """Send ``__auth_expiring__``."""
    EXPIRY_WARNING = 6
    """Send ``__session_expiring__``."""
    IDLE_WARNING = 7
    """Send ``__idle_warning__``."""
    PING = 8
    """Send a heartbeat."""

    @property
    def is_terminal(self) -> bool:
        """Whether the connection has to be closed."""
        return self <= Action.HEARTBEAT_TIMEOUT


class SessionClock:
    """What must happen to one connection, and when. All times are on one monotonic clock, which the caller reads.

    Assign `last_heard` and `last_active` freely and tell nobody: both only ever move deadlines to later, so a timer
    set from `next_deadline` may fire in vain (`due` then returns nothing) but never too late. After `token_refreshed`
    and `session_resumed` the next deadline may be earlier: set the timer again.
    """

    __slots__ = (
        "_ended",
        "_expires_at",
        "_expiry_warning_at",
        "_idle_warned_for",
        "_last_ping",
        "_pinged_at",
        "_token_expires_at",
        "_token_warning_at",
        "config",
        "heartbeat_interval",
        "last_active",
        "last_heard",
    )

    def __init__(self, config: SessionConfig, *, now: float, heartbeat_interval: float | None = None) -> None:
        """`heartbeat_interval` is the resolved one: None means no heartbeat."""
        self.config: SessionConfig = config
        self.heartbeat_interval: float | None = heartbeat_interval
        self.last_heard: float = now
        """When any frame last arrived, pongs included. The engine assigns it."""
        self.last_active: float = now
        """When an event other than a heartbeat last arrived. The engine assigns it."""
        self._last_ping = now
        self._pinged_at = -math.inf  # the first ping since the client was last heard
        self._idle_warned_for = -math.inf  # the `last_active` that the last warning was about
        self._ended = False
        self._expires_at: float | None = None
        self._expiry_warning_at: float | None = None
        self._token_expires_at: float | None = None
        self._token_warning_at: float | None = None

    @property
    def expires_at(self) -> float | None:
        """When the session ends; None: never."""
        return self._expires_at

    @property
    def token_expires_at(self) -> float | None:
        """When the current token expires; None: never."""
        return self._token_expires_at

    def token_refreshed(self, token_expires_at: float | None) -> None:
        """Go by a new token, of which the client is warned anew. Does not undo an expiry that `due` has reported.

        Raises `ValueError` for NaN or inf, as `session_resumed` does.
        """
        self._token_expires_at = _finite("token_expires_at", token_expires_at)
        self._token_warning_at = (
            None if token_expires_at is None else token_expires_at - self.config.token_refresh_window
        )

    def session_resumed(self, expires_at: float | None, now: float) -> None:
        """Go by the end of a session, of which the client is warned anew."""
        self._expires_at = _finite("expires_at", expires_at)
        self._expiry_warning_at = self._expiry_warning(now)

    def due(self, now: float) -> list[Action]:
        """What must happen at `now`, earliest deadline first; each action once per episode.

        An action that closes the connection comes alone and is the last one ever returned.
        """
        ripe = sorted(entry for entry in self._agenda() if entry[0] <= now)
        for _, action in ripe:
            if action.is_terminal:
                self._ended = True
                return [action]
        for _, action in ripe:
            self._note(action, now)
        return [action for _, action in ripe]

    def next_deadline(self) -> float | None:
        """When to call `due` next; None: never."""
        return min((deadline for deadline, _ in self._agenda()), default=None)

    def _agenda(self) -> Iterator[tuple[float, Action]]:
        if self._ended:
            return
        if self.heartbeat_interval is not None:
            yield max(self._last_ping, self.last_heard) + self.heartbeat_interval, Action.PING
            # Not <=: on a clock that counts milliseconds, a pong can arrive "at" the time of its ping.
            if self.last_heard < self._pinged_at:
                yield self._pinged_at + self.config.heartbeat_timeout, Action.HEARTBEAT_TIMEOUT
        if self.config.idle_timeout is not None:
            yield from self._idle_agenda(self.config.idle_timeout)
        if self._expires_at is not None:
            yield self._expires_at, Action.SESSION_EXPIRED
        if self._expiry_warning_at is not None:
            yield self._expiry_warning_at, Action.EXPIRY_WARNING
        if self._token_expires_at is not None:
            yield self._token_expires_at, Action.TOKEN_EXPIRED
        if self._token_warning_at is not None:
            yield self._token_warning_at, Action.TOKEN_WARNING

    def _idle_agenda(self, idle_timeout: float) -> Iterator[tuple[float, Action]]:
        yield self.last_active + idle_timeout, Action.IDLE_TIMEOUT
        # At most half: activity after a warning then re-arms it for a time after the timeout that a timer waits for.
        warning = min(self.config.idle_warning, idle_timeout / 2)
        if warning and self.last_active != self._idle_warned_for:
            yield self.last_active + idle_timeout - warning, Action.IDLE_WARNING

    def _expiry_warning(self, now: float) -> float | None:
        if self._expires_at is None or not self.config.expiry_warning:
            return None
        duration = self.config.max_duration
        if duration is None:
            duration = max(self._expires_at - now, 0.0)
        return self._expires_at - min(self.config.expiry_warning, duration / 2)

    def _note(self, action: Action, now: float) -> None:
        if action is Action.PING:
            if self.last_heard >= self._pinged_at:
                self._pinged_at = now
            self._last_ping = now
        elif action is Action.IDLE_WARNING:
            self._idle_warned_for = self.last_active
        elif action is Action.EXPIRY_WARNING:
            self._expiry_warning_at = None
        else:
            self._token_warning_at = None


def _finite(name: str, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; pass a finite time, or None for never")
    return value
