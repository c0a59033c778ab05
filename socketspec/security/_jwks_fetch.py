"""Reads a document of keys over HTTP: from one URL, within one deadline for all of it, and of bounded size."""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPMessage, HTTPResponse
from importlib.metadata import PackageNotFoundError, version
from typing import IO, Final, cast
from urllib.parse import urlsplit

from socketspec.errors import ConfigurationError

__all__ = ("TIMEOUT", "Fetch", "fetcher")

TIMEOUT: Final = 5.0
"""Seconds from the request to the last byte of the document, and that a token waits for it."""
MAX_DOCUMENT: Final = 1 << 20

Fetch = Callable[[], bytes]
"""Reads the document; blocks; may raise anything."""


class _Deadline:
    """Ends a connection when its time is over. A socket's own timeout begins anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self.is_over: bool = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            watched, self._socket = self._socket, None
            if watched is not None:
                watched.close()

    def watch(self, connected: socket.socket) -> None:
        """Ends this connection. TLS takes the socket's descriptor over, hence one of its own."""
        with self._lock:
            self._socket = socket.socket(fileno=os.dup(connected.fileno()))
            if self.is_over:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _end(self) -> None:
        with self._lock:
            self.is_over = True
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:  # it is closed already
                    return


class _Watched(http.client.HTTPConnection):
    deadline: _Deadline

    def connect(self) -> None:
        super().connect()
        self.deadline.watch(self.sock)


class _WatchedTLS(http.client.HTTPSConnection, _Watched):
    """Its handshake is watched, too: what it calls to connect is `_Watched.connect`."""


class _Opens(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that end at the deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_watched, _Watched, self._deadline), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_watched, _WatchedTLS, self._deadline), req)


def _watched(
    kind: type[_Watched],
    deadline: _Deadline,
    host: str,
    /,
    *,
    port: int | None = None,
    timeout: float | None = TIMEOUT,
    source_address: tuple[str, int] | None = None,
    blocksize: int = 8192,
) -> _Watched:
    connection = kind(host, port, timeout=timeout, source_address=source_address, blocksize=blocksize)
    connection.deadline = deadline
    return connection


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for the error it is: the configured URL is the only place keys may come from."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def fetcher(url: str, *, allow_http: bool, headers: Mapping[str, str] | None = None) -> Fetch:
    """What reads the document at `url`. Raises `ConfigurationError` for a URL that keys must not come from, and for
    headers that cannot be sent.
    """
    loopback = _check_url(url, allow_http=allow_http)
    # Plain http to this machine must stay on it.
    direct: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})] if loopback else []
    request = urllib.request.Request(url, headers=_headers(headers or {}))  # noqa: S310 - _check_url saw it

    def fetch() -> bytes:
        document = b""
        with _Deadline(TIMEOUT) as deadline:
            try:
                document = _read(urllib.request.build_opener(_NoRedirects(), _Opens(deadline), *direct), request)
            except (OSError, http.client.HTTPException):
                if not deadline.is_over:
                    raise
            if deadline.is_over:  # and what was read may be half of it
                raise TimeoutError("the document came too slowly")
            return document

    return fetch


def _headers(theirs: Mapping[str, str]) -> dict[str, str]:
    """What a request has; web firewalls refuse urllib's own User-Agent."""
    for name, value in theirs.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):  # RFC 9110 sections 5.1 and 5.5
            raise ConfigurationError(
                f"JWTAuth: headers has {name!r}, whose name or value cannot be sent: pass ASCII text without line ends."
            )
    ours = {"Accept": "application/json", "User-Agent": f"socketspec/{_version()}"}
    named = {name.title() for name in theirs}
    return {**{name: value for name, value in ours.items() if name not in named}, **theirs}


def _version() -> str:
    try:
        return version("socketspec")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "0"


_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE: Final = re.compile(r"[ -~]*")


def _read(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> bytes:
    try:
        with cast("HTTPResponse", opener.open(request, timeout=TIMEOUT)) as response:
            if response.status != 200:
                raise OSError(f"HTTP {response.status}")
            document = response.read(MAX_DOCUMENT + 1)
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            raise OSError(f"HTTP {error.code}") from None
    if len(document) > MAX_DOCUMENT:
        raise OSError(f"the document is larger than {MAX_DOCUMENT} bytes")
    return document


def _check_url(url: str, *, allow_http: bool) -> bool:
    """Raise `ConfigurationError` for a URL keys must not come from; return whether it is on this machine."""
    scheme, host = _split(url)
    if not host or scheme not in ("http", "https"):
        raise ConfigurationError("JWTAuth: jwks_url must be a plain https URL, https://issuer.example/jwks.json")
    loopback = _is_loopback(host)
    if scheme == "http" and not (loopback or allow_http):
        raise ConfigurationError(
            "JWTAuth: jwks_url is http, so whoever sits in between chooses your keys. Use https, or accept the risk "
            "with allow_http_jwks=True."
        )
    return loopback


def _split(url: str) -> tuple[str, str | None]:
    """The scheme and host; no host where the URL has parts that no key URL needs."""
    if not (url.isascii() and url.isprintable()) or " " in url:
        return "", None
    try:
        parts = urlsplit(url)
        odd = parts.username is not None or parts.fragment or parts.port == 0
    except ValueError:  # an impossible port or IPv6 address
        return "", None
    return parts.scheme, None if odd else parts.hostname


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
