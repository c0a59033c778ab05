"""Which web pages may open connections.

A browser sends a page's origin (RFC 6454) with every WebSocket handshake and, unlike for other requests, asks nobody
whether the page may connect: without a check, any page can connect with its visitor's cookies (CWE-1385).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import cast

from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import Headers

__all__ = ("OriginPolicy",)

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_MAX_ORIGIN = 512
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_APP_ORIGIN = re.compile(r"(?!(?:https?|wss?):)[a-z][a-z0-9+.-]*://[a-z0-9_.~-]*")
"""What apps that show pages of their own send: ``file://``, ``capacitor://localhost``, ``app://.``."""


class OriginPolicy:
    """Decides by the ``Origin`` header, comparing whole origins: scheme, host and port.

    ``["*"]`` allows every origin. Otherwise an origin must be listed; case of scheme and host and default ports do
    not matter, everything else does. ``"null"`` (sandboxed frames, local files: anybody can be that) matches only
    where it is listed. More than one ``Origin`` header is refused.

    A handshake without ``Origin`` is allowed. Browsers always send one (RFC 6455 section 4.1), so without it there is
    no page that abuses its visitor; it is a service, a script or a mobile app, which could send any origin it liked.
    Refusing it would keep out these and no attacker.

    Apps that show pages of their own have origins such as ``capacitor://localhost``, ``app://.``, ``content://`` or
    ``file://``; list them as they are sent. Every such app, and every file, may send the same.

    Raises `ConfigurationError` for lists that cannot match what browsers send.
    """

    def __init__(self, allowed_origins: Sequence[str]) -> None:
        if isinstance(cast("object", allowed_origins), str):
            raise ConfigurationError(f"allowed_origins is a string. Write allowed_origins=[{allowed_origins!r}].")
        if not allowed_origins:
            raise ConfigurationError('allowed_origins is empty. List your pages\' origins, or ["*"] for all.')
        self.allows_all: bool = list(allowed_origins) == ["*"]
        self.origins: frozenset[str] = (
            frozenset[str]() if self.allows_all else frozenset(map(_configured, allowed_origins))
        )

    def __repr__(self) -> str:
        return f"OriginPolicy({['*'] if self.allows_all else sorted(self.origins)!r})"

    def allows(self, headers: Headers) -> bool:
        """Whether a handshake with these headers may go on."""
        sent = headers.getlist("origin")
        if not sent:
            return True
        if self.allows_all:
            return True
        if len(sent) > 1:
            return False
        origin = sent[0]
        return origin in self.origins or _normalised(origin) in self.origins


def _normalised(origin: str) -> str | None:
    """The origin as browsers write it (RFC 6454 section 6.2); None for what is no origin."""
    if len(origin) > _MAX_ORIGIN or not origin.isascii():
        return None
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        return origin.lower() if _APP_ORIGIN.fullmatch(origin.lower()) else None
    scheme, host = match["scheme"], match["host"]
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    port = int(match["port"] or 0)
    if port > 65535:
        return None
    return f"{scheme}://{host}:{port}" if port and port != _DEFAULT_PORTS.get(scheme) else f"{scheme}://{host}"


def _configured(entry: object) -> str:
    if entry == "null":
        return "null"
    if not isinstance(entry, str):
        raise ConfigurationError(f"allowed_origins: {entry!r} is not a string.")
    origin = _normalised(entry)
    if origin is not None and not origin.startswith(("ws://", "wss://")):
        return origin
    raise ConfigurationError(f"allowed_origins: {entry!r} is not an origin. {_advice(entry)}")


def _advice(entry: str) -> str:
    """What to write instead, as far as it can be told."""
    if "*" in entry:
        return 'List every origin in full; wildcards are not supported, except ["*"] alone for all origins.'
    if not entry.isascii():
        return "Write the host name in its ASCII form, as browsers send it: xn--…"
    guess = re.sub(r"^ws(s?)://", r"http\1://", entry.strip().lower())
    guess = guess if "://" in guess else f"https://{guess.lstrip('/')}"
    scheme, _, rest = guess.partition("://")
    guess = f"{scheme}://{re.split(r'[/?#]', rest)[0].rpartition('@')[2].rstrip('.')}"
    if (origin := _normalised(guess)) is not None:
        return f"Write {origin!r}: scheme, host and, if it is not the default, port."
    return "Write scheme, host and, if it is not the default, port: 'https://example.com' or 'http://localhost:8000'."
