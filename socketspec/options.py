"""Checks of what is given to `SocketApp`. Each raises `ConfigurationError` with a sentence that says what to change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

from socketspec.backend import Backend
from socketspec.errors import ConfigurationError
from socketspec.rooms import Room
from socketspec.security.auth import AuthBackend

__all__ = ("resolve_backend",)


def resolve_backend(backend: str | Backend | None) -> Backend:
    """The backend for a URL, by the entry-point group ``socketspec.backends``; a `Backend` as it is.

    None: the URL in the environment variable ``SOCKETSPEC_BACKEND``, else ``"memory"``.
    """
    source = ""
    if backend is None:
        backend = os.environ.get("SOCKETSPEC_BACKEND", "memory")
        source = " The environment variable SOCKETSPEC_BACKEND says so."
        if not backend.strip():  # as from a secret that is empty: a node of a cluster must not start alone
            raise ConfigurationError(
                'The environment variable SOCKETSPEC_BACKEND is set but empty: give it a URL or "memory", or unset it.'
            )
    if not isinstance(backend, str):
        if not callable(getattr(backend, "start", None)):
            raise ConfigurationError(f'SocketApp(backend={backend!r}) must be "memory", a URL or a Backend object.')
        return backend
    backend = backend.strip()
    scheme = backend.partition(":")[0].lower()
    found = {entry.name: entry for entry in entry_points(group="socketspec.backends")}
    if scheme not in found:
        hint = (
            "pip install 'socketspec[redis]'" if scheme.startswith(("redis", "rediss", "valkey")) else "check the URL"
        )
        raise ConfigurationError(
            f"No backend is installed for {scheme!r} (found: {', '.join(sorted(found)) or 'none'}); {hint}.{source}"
        )
    factory: Callable[[str], Backend] = found[scheme].load()
    return factory(backend)


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
