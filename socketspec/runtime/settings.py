"""Checks of what is given to `SocketApp`. Each raises `ConfigurationError` with a sentence that says what to change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from socketspec.connection.outbox import Backpressure
from socketspec.declaration.rooms import Room
from socketspec.errors import ConfigurationError
from socketspec.security.auth import AuthBackend
from socketspec.security.origins import OriginPolicy
from socketspec.security.ratelimit import RateLimit
from socketspec.session.config import SessionConfig

__all__ = ("Settings",)


def auth_backends(auth: AuthBackend | Sequence[AuthBackend] | None) -> tuple[AuthBackend, ...]:
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
    try:
        return check(value)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def positive(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**63:
        raise ConfigurationError(f"SocketApp({name}={value!r}) must be a number greater than 0.")
    return value


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


def whole(name: str, value: Any) -> Any:
    if type(value) is not int or not 0 < value < 2**63:
        raise ConfigurationError(f"SocketApp({name}={value!r}) must be a whole number greater than 0.")
    return value


def policy(value: Any) -> Any:
    if value not in ("reject", "evict_oldest"):
        raise ConfigurationError(f'SocketApp(connection_limit_policy={value!r}) must be "reject" or "evict_oldest".')
    return value


def rooms(declared: Sequence[Any]) -> list[Room]:
    if isinstance(declared, str) or not all(isinstance(room, str | Room) for room in declared):
        raise ConfigurationError(f'SocketApp(rooms={declared!r}) must be a list such as [Room("chat:{{name}}")].')
    return [Room(room) if isinstance(room, str) else room for room in declared]


def of_type(name: str, value: Any, wanted: type[Any], example: str) -> Any:
    if value is not None and not isinstance(value, wanted):
        raise ConfigurationError(f"SocketApp({name}={value!r}) must be {example} or None.")
    return value


def path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or value == "/":
        raise ConfigurationError(f"SocketApp({name}={value!r}) must be a path that begins with / and is not / alone.")
    path: str = value.rstrip("/")
    return path


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
    connection_limit_policy: Literal["reject", "evict_oldest"]
    auth_timeout: float
    drain_window: float
    drain_grace: float
    strict: bool
    debug: bool

    @property
    def first_message_auth(self) -> bool:
        """Whether a client without credentials may send them as its first message."""
        return any(getattr(backend, "first_message", False) for backend in self.auth)
