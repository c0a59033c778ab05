"""The backend for a URL."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import entry_points

from socketspec.backend.protocols import Backend
from socketspec.errors import ConfigurationError
from socketspec.extras import install

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
        hint = install("redis") if scheme.startswith(("redis", "rediss", "valkey")) else "check the URL"
        raise ConfigurationError(
            f"No backend is installed for {scheme!r} (found: {', '.join(sorted(found)) or 'none'}); {hint}.{source}"
        )
    try:
        factory: Callable[[str], Backend] = found[scheme].load()
    except ImportError as error:
        raise ConfigurationError(f"SocketApp(backend=…): {error}.{source}") from error
    return factory(backend)
