"""The keys an identity provider publishes at a URL (RFC 7517 section 5), kept for a while."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPMessage, HTTPResponse
from typing import IO, Any, cast
from urllib.parse import urlsplit

from socketspec.errors import ConfigurationError
from socketspec.security._keys import load_jwk
from socketspec.security._refusal import logger

_TIMEOUT = 5.0
"""Seconds that a token waits for the endpoint."""
_MAX_DOCUMENT = 1 << 20
_UNKNOWN_KID_INTERVAL = 30.0
"""Seconds between requests while there are keys: tokens with invented key ids cannot make us flood the provider."""
_NO_KEYS_INTERVAL = 5.0
"""Seconds between requests while there is nothing to verify with."""

Keys = Mapping[tuple[str | None, str], Any]
"""Keys by key id and algorithm; under None, those that are the only one for their algorithm."""
Fetch = Callable[[], bytes]
"""Reads the document; blocks; may raise anything."""


class KeysUnavailable(Exception):
    """There are no keys, or they are older than the grace period, and the endpoint does not answer."""


class KeySet:
    """Finds keys by id. One request at a time is under way, however many tokens wait for it."""

    def __init__(
        self,
        url: str,
        *,
        algorithms: Sequence[str],
        ttl: float = 300.0,
        grace: float = 3600.0,
        allow_http: bool = False,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (ttl > 0 and grace >= 0):
            raise ConfigurationError("JWTAuth: jwks_ttl must be above 0 seconds and jwks_grace 0 or more.")
        self._fetch = fetch or _fetcher(url, allow_http=allow_http)
        self._url = url
        self._algorithms = tuple(algorithms)
        self._ttl = ttl
        self._grace = grace
        self._clock = clock
        self._keys: Keys = {}
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._request: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> Any | None:
        """The key with this id for this algorithm. Raises `KeysUnavailable`."""
        if self._age() >= self._ttl:
            await self._refresh()
        key = self._look_up(kid, algorithm)
        if key is None:
            await self._refresh()
            key = self._look_up(kid, algorithm)
        return key

    def _look_up(self, kid: str | None, algorithm: str) -> Any | None:
        if self._age() >= self._ttl + self._grace:
            raise KeysUnavailable(self._url)
        return self._keys.get((kid, algorithm))

    def _age(self) -> float:
        return self._clock() - self._fetched_at

    async def _refresh(self) -> None:
        request = self._request
        # A request of an event loop that is gone never ends; another loop starts its own.
        if request is None or request.done() or request.get_loop() is not asyncio.get_running_loop():
            interval = _UNKNOWN_KID_INTERVAL if self._age() < self._ttl + self._grace else _NO_KEYS_INTERVAL
            if self._clock() - self._asked_at < interval:
                return
            self._asked_at = self._clock()
            request = self._request = asyncio.create_task(self._load(), name="socketspec-jwks")
        # Not awaited directly: a client that goes away must not cancel the request under the others.
        await asyncio.wait({request}, timeout=max(0.0, self._asked_at + _TIMEOUT - self._clock()))

    async def _load(self) -> None:
        try:
            keys = await asyncio.to_thread(self._read)
        except Exception as error:  # whatever happened, the old keys stay until the grace period ends
            logger.warning("no keys from %s: %s: %s", self._url, type(error).__name__, error)
        else:
            self._keys = keys
            self._fetched_at = self._clock()

    def _read(self) -> Keys:
        return parse_key_set(self._fetch(), self._algorithms)


def parse_key_set(document: bytes, algorithms: Sequence[str]) -> Keys:
    """Sort the usable keys of a JWK set by id and algorithm. Raises `ValueError` for what is not a JWK set.

    Keys for encryption, private, symmetric, weak and unknown keys are left out. So are keys whose id and algorithm
    both occur twice: which one is meant would be a guess.
    """
    content: object = json.loads(document)
    listed = cast("dict[str, object]", content).get("keys") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ValueError('not a JWK set: a JSON object with a "keys" list')
    found: dict[tuple[str | None, str], list[Any]] = {}
    only: dict[tuple[str | None, str], list[Any]] = {}
    for jwk in cast("list[object]", listed):
        kid, fitting = _usable(jwk)
        for name in fitting:
            if name in algorithms:
                only.setdefault((None, name), []).append(fitting[name])
                if kid is not None:
                    found.setdefault((kid, name), []).append(fitting[name])
    if not only:
        logger.warning("no key of the key set can be used with %s; see algorithms=", ", ".join(algorithms))
    return {place: keys[0] for place, keys in (found | only).items() if len(keys) == 1}


def _usable(jwk: object) -> tuple[str | None, dict[str, Any]]:
    """A key's id, and the key under each algorithm it fits."""
    try:
        members = cast("dict[str, Any]", jwk)
        kid = members.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise TypeError("kid is not a string")
        key, fitting = load_jwk(members)
    except Exception as error:  # one bad key must not take the others with it
        logger.debug("a key of the key set is left out: %s", type(error).__name__)
        return None, {}
    return kid, dict.fromkeys(fitting, key)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for the error it is: the configured URL is the only place keys may come from."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _fetcher(url: str, *, allow_http: bool) -> Fetch:
    loopback = _check_url(url, allow_http=allow_http)
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if loopback:
        handlers.append(urllib.request.ProxyHandler({}))  # plain http to this machine must stay on it
    opener = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - _check_url saw it

    def fetch() -> bytes:
        try:
            with cast("HTTPResponse", opener.open(request, timeout=_TIMEOUT)) as response:
                return _read_body(response)
        except urllib.error.HTTPError as error:
            with error:  # it holds the connection
                raise OSError(f"HTTP {error.code}") from None

    return fetch


def _read_body(response: HTTPResponse) -> bytes:
    if response.status != 200:
        raise OSError(f"HTTP {response.status}")
    deadline = time.monotonic() + _TIMEOUT
    body = bytearray()
    while chunk := response.read1(65536):
        body += chunk
        if len(body) > _MAX_DOCUMENT:
            raise OSError(f"the document is larger than {_MAX_DOCUMENT} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("the document came too slowly")
    return bytes(body)


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
