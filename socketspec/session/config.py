"""How long a connection may last and how it is kept alive: the options, what handlers see, and the arithmetic.

`SessionClock` does no I/O and reads no clock: it is told the time and says what must happen.
"""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import dataclass, field

from socketspec.errors import ConfigurationError

__all__ = ("AUTOMATIC_HEARTBEAT", "Session", "SessionConfig")


AUTOMATIC_HEARTBEAT = 25.0
"""Seconds between heartbeats where `SessionConfig.heartbeat_interval` is None and the client can answer them."""

_CENTURY = 100 * 365.25 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """Limits of a session; every value is in seconds, int or float. Raises `ConfigurationError` for a bad value."""

    max_duration: float | None = None
    """How long a session may last, counted from its first connect; None: no limit."""
    idle_timeout: float | None = None
    """Close after this long without an event from the client (heartbeats do not count); None: never."""
    heartbeat_interval: float | None = None
    """Ping a client that has been silent for this long.

    None: automatic. Every 25 seconds where a ping costs the client nothing (WebSocket control frames) or the client
    speaks a ``socketspec.v1`` subprotocol; a plain client is never sent a heartbeat unasked.
    """
    heartbeat_timeout: float = 10
    """Close when nothing at all was received for this long after a ping."""
    token_refresh_window: float = 60
    """How long before its token expires a client gets ``__auth_expiring__``."""
    idle_warning: float = 30
    """How long before `idle_timeout` a client gets ``__idle_warning__``: at most half of it; 0: no warning."""
    expiry_warning: float = 60
    """How long before `max_duration` a client gets ``__session_expiring__``: at most half of it; 0: no warning."""

    def __post_init__(self) -> None:
        _check_seconds("max_duration", self.max_duration, none="no limit")
        _check_seconds("idle_timeout", self.idle_timeout, none="no limit")
        _check_seconds("heartbeat_interval", self.heartbeat_interval, none="automatic")
        _check_seconds("heartbeat_timeout", self.heartbeat_timeout)
        _check_seconds("token_refresh_window", self.token_refresh_window)
        _check_seconds("idle_warning", self.idle_warning, zero="no warning")
        _check_seconds("expiry_warning", self.expiry_warning, zero="no warning")


def _check_seconds(name: str, value: object, *, none: str | None = None, zero: str | None = None) -> None:
    if value is None and none is not None:
        return
    lowest = 0.0 if zero is not None else math.ulp(0.0)
    # A century bounds what the clocks have to add up; NaN fails every comparison.
    if isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= _CENTURY:
        return
    allowed = "a number of seconds (int or float) greater than 0 and at most a century"
    if zero is not None:
        allowed += f", or 0 for {zero}"
    if none is not None:
        allowed += f", or None for {none}"
    raise ConfigurationError(f"SessionConfig({name}={value!r}): {name} must be {allowed}.")


def _new_id() -> str:
    return secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What `conn.session` shows. A session outlives its connection.

    Its id is made of what the client's JWT names it (``sid``, else ``jti``) and of the user, else it is the session
    token that the client brings back.
    """

    id: str = field(default_factory=_new_id, repr=False)
    """This user's alone, also where others' JWTs have the same ``jti``. A secret; not in the `repr`."""
    started_at: float = field(default_factory=time.time)
    """When the session was first seen, on whichever node, in seconds since the epoch."""
    expires_at: float | None = None
    """When `max_duration` ends it, in seconds since the epoch; None: never."""
    config: SessionConfig = field(default_factory=SessionConfig)
    """The limits that apply."""
