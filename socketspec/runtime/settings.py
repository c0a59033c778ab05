"""An app's options, each checked here. A bad one raises `ConfigurationError`, which says what to change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from socketspec.connection.outbox import Backpressure
from socketspec.errors import ConfigurationError
from socketspec.protocol.names import check_namespace
from socketspec.security.auth import AuthBackend
from socketspec.security.origins import OriginPolicy
from socketspec.security.ratelimit import RateLimit
from socketspec.session.config import SessionConfig

__all__ = ("Settings",)

LimitPolicy = Literal["reject", "evict_oldest"]
"""What happens when a user has too many connections; see `SocketApp`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """An app's options, checked. What each means is documented at `SocketApp`."""

    namespace: str
    auth: tuple[AuthBackend, ...]
    origins: OriginPolicy
    max_payload_size: int
    rate_limit: RateLimit | None
    session: SessionConfig
    backpressure: Backpressure
    max_in_flight: int
    max_rooms_per_connection: int
    max_connections_per_user: int | None
    connection_limit_policy: LimitPolicy
    auth_timeout: float
    drain_window: float
    drain_grace: float
    strict: bool
    debug: bool

    def __post_init__(self) -> None:
        checked(check_namespace, self.namespace)
        for name in ("max_payload_size", "max_in_flight", "max_rooms_per_connection"):
            _check_whole(name, getattr(self, name))
        if self.max_connections_per_user is not None:
            _check_whole("max_connections_per_user", self.max_connections_per_user)
        _check_type("rate_limit", self.rate_limit, RateLimit | None, "RateLimit(rate=10, capacity=20)")
        _check_type("session", self.session, SessionConfig, "SessionConfig(idle_timeout=300)")
        _check_type("backpressure", self.backpressure, Backpressure, "Backpressure(max_buffer=1_048_576)")
        if self.connection_limit_policy not in get_args(LimitPolicy):
            policies = " or ".join(f'"{policy}"' for policy in get_args(LimitPolicy))
            raise ConfigurationError(
                f"SocketApp(connection_limit_policy={self.connection_limit_policy!r}) must be {policies}."
            )
        _check_positive("auth_timeout", self.auth_timeout)


def auth_backends(auth: AuthBackend | Sequence[AuthBackend] | None) -> tuple[AuthBackend, ...]:
    """`auth` as a tuple of auth backends; none for None. Raises `ConfigurationError` for anything else."""
    if auth is None:
        return ()
    backends = tuple(auth) if isinstance(auth, Sequence) else (auth,)
    if not backends:
        raise ConfigurationError(
            "auth=[] names no auth backend, so everybody could connect; pass one, or auth=None if that is meant."
        )
    for backend in backends:
        if isinstance(backend, type) or not callable(getattr(backend, "authenticate", None)):
            raise ConfigurationError(
                f"auth={backend!r} is not an auth backend; pass JWTAuth(…), APIKeyAuth(…) or an object with "
                "async def authenticate(self, handshake)."
            )
    return backends


def checked(check: Callable[[str], str], value: str) -> str:
    """`value`, if `check` does not raise; its `ValueError` becomes a `ConfigurationError`."""
    try:
        return check(value)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def drain_seconds(name: str, value: Any) -> float:
    """A number of seconds, 0 or more. None: the environment variable's, else 10."""
    what = f"SocketApp({name}={value!r})"
    if value is None:
        variable = f"SOCKETSPEC_{name.upper()}"
        text = os.environ.get(variable) or "10"
        what = f"The environment variable {variable}={text!r}"
        try:
            value = float(text)
        except ValueError:
            value = -1
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 86_400:
        raise ConfigurationError(f"{what} must be a number of seconds, 0 or more and less than a day.")
    return float(value)


def path(name: str, value: Any) -> str:
    """The path of a page, without a slash at its end."""
    if not isinstance(value, str) or not value.startswith("/") or value == "/":
        raise ConfigurationError(f"SocketApp({name}={value!r}) must be a path that begins with / and is not / alone.")
    path: str = value.rstrip("/")
    return path


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**63:
        raise ConfigurationError(f"SocketApp({name}={value!r}) must be a number greater than 0.")


def _check_whole(name: str, value: object) -> None:
    if type(value) is not int or not 0 < value < 2**63:
        raise ConfigurationError(f"SocketApp({name}={value!r}) must be a whole number greater than 0.")


def _check_type(name: str, value: object, wanted: Any, example: str) -> None:
    if not isinstance(value, wanted):
        raise ConfigurationError(f"SocketApp({name}={value!r}) must be {example} or None.")
