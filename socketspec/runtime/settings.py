"""An app's options, each checked here. A bad one raises `ConfigurationError`, which says what to change."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from socketspec.connection.outbox import Backpressure
from socketspec.declaration.options import check_flag
from socketspec.errors import ConfigurationError
from socketspec.protocol.names import check_namespace
from socketspec.security.auth import Auth, AuthBackend
from socketspec.security.origins import OriginPolicy
from socketspec.security.ratelimit import RateLimit
from socketspec.session.config import SessionConfig
from socketspec.text import get_logger

__all__ = ("Settings",)

logger: logging.Logger = get_logger("socketspec")

LimitPolicy = Literal["reject", "evict_oldest"]
"""What happens when a user has too many connections; see `SocketApp`."""
MAX_NODE_BUFFER: Final = 268_435_456
"""Bytes that may wait for all clients of a node, where nobody says otherwise."""
MAX_FIRST_MESSAGE: Final = 20_480
"""The longest token that is accepted has 16,384 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """An app's options, checked. What each means is documented at `SocketApp`."""

    namespace: str
    auth: tuple[AuthBackend, ...]
    origins: OriginPolicy
    max_payload_size: int
    max_payload_items: int
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
    public_schema: bool = False
    """Whether everybody may read which events and rooms there are."""

    def __post_init__(self) -> None:
        checked(check_namespace, self.namespace)
        for name in ("max_payload_size", "max_payload_items", "max_in_flight", "max_rooms_per_connection"):
            _check_whole(name, getattr(self, name))
        if self.max_connections_per_user is not None:
            _check_whole("max_connections_per_user", self.max_connections_per_user)
        _check_type("rate_limit", self.rate_limit, RateLimit | None, "RateLimit(rate=10, capacity=20)")
        _check_type("session", self.session, SessionConfig, "SessionConfig(idle_timeout=300)")
        _check_type("backpressure", self.backpressure, Backpressure, "Backpressure(max_buffer=1_048_576)")
        _node_buffer(self.backpressure)
        if self.connection_limit_policy not in get_args(LimitPolicy):
            policies = " or ".join(f'"{policy}"' for policy in get_args(LimitPolicy))
            raise ConfigurationError(
                f"SocketApp(connection_limit_policy={self.connection_limit_policy!r}) must be {policies}."
            )
        if self.connection_limit_policy != "reject" and self.max_connections_per_user is None:
            logger.warning(
                "SocketApp(connection_limit_policy=%r) limits nothing without max_connections_per_user=…: write how "
                "many connections one user may have.",
                self.connection_limit_policy,
            )
        check_flag("SocketApp(debug", self.debug)
        check_flag("SocketApp(strict", self.strict)
        _check_positive("auth_timeout", self.auth_timeout)

    @property
    def max_node_buffer(self) -> int:
        """Bytes that may wait for all clients of a node together."""
        return _node_buffer(self.backpressure)

    @property
    def max_first_message(self) -> int:
        """Bytes of a message from a client that has yet to authenticate: enough for a token, and for little more."""
        return min(MAX_FIRST_MESSAGE, self.max_payload_size)


class _Function:
    """An auth backend that is a function: ``async def authenticate(handshake)``."""

    def __init__(self, authenticate: Any) -> None:
        self.authenticate = authenticate

    def __repr__(self) -> str:
        return repr(self.authenticate)


def auth_backends(auth: Auth | Sequence[Auth] | None) -> tuple[AuthBackend, ...]:
    """`auth` as a tuple of auth backends; none for None. Raises `ConfigurationError` for anything else."""
    if auth is None:
        return ()
    given: Any = tuple(auth) if isinstance(auth, Sequence) else (auth,)
    backends: tuple[AuthBackend, ...] = tuple(
        _Function(backend) if inspect.isroutine(backend) else backend for backend in given
    )
    if not backends:
        raise ConfigurationError(
            "auth=[] names no auth backend, so everybody could connect; pass one, or auth=None if that is meant."
        )
    for backend in backends:
        if isinstance(backend, type) or not callable(getattr(backend, "authenticate", None)):
            raise ConfigurationError(
                f"auth={backend!r} is not an auth backend; pass JWTAuth(…), APIKeyAuth(…) or an object with "
                "async def authenticate(self, handshake), or such a function."
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


def _node_buffer(backpressure: Backpressure) -> int:
    """Bytes that may wait on a node. Where the app does not say, the environment variable does, else the default."""
    value, least = backpressure.max_node_buffer, backpressure.max_buffer
    what = f"Backpressure(max_node_buffer={value!r})"
    if value is None:
        text = os.environ.get("SOCKETSPEC_MAX_NODE_BUFFER") or str(max(MAX_NODE_BUFFER, least))
        what = f"The environment variable SOCKETSPEC_MAX_NODE_BUFFER={text!r}"
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
    if type(value) is not int or not least <= value < 2**63:
        raise ConfigurationError(
            f"{what} must be a whole number of bytes, at least what may wait for one connection: max_buffer is {least}."
        )
    return value


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
