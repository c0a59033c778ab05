"""The keys an identity provider publishes at a URL (RFC 7517 section 5), kept for a while."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from socketspec.errors import ConfigurationError
from socketspec.security._jwks_fetch import TIMEOUT, Fetch, fetcher
from socketspec.security._keys import load_jwk
from socketspec.security._refusal import logger

_UNKNOWN_KID_INTERVAL = 30.0
"""Seconds between requests while there are keys: tokens with invented key ids cannot make us flood the provider."""
_NO_KEYS_INTERVAL = 5.0
"""Seconds between requests while there is nothing to verify with."""

Keys = Mapping[tuple[str | None, str], Any]
"""Keys by key id and algorithm; under None, those that are the only one for their algorithm."""


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
        self._fetch = fetch or fetcher(url, allow_http=allow_http)
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
        await asyncio.wait({request}, timeout=max(0.0, self._asked_at + TIMEOUT - self._clock()))

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
