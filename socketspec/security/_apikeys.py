"""API keys."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import cast

from socketspec.errors import AuthError, ConfigurationError
from socketspec.identity import Identity
from socketspec.protocol.handshake import Handshake
from socketspec.security._providing import provided
from socketspec.security._refusal import refused, unavailable
from socketspec.security.secret_names import hide_in_logs

__all__ = ("APIKeyAuth",)

KeyLookup = Callable[..., Awaitable[Identity | None]]

_INVALID = "The API key is not valid."
_MAX_KEY = 1024


class APIKeyAuth:
    """Authenticates clients by a key they were given.

    `valid_keys` is a collection of keys, a mapping of keys to identities, or an async callable that gets the key and
    returns its identity or None; it may ask for dependencies. Keys from a collection get the identity ``key:`` and 16
    hex digits of the key's
    SHA-256: it tells keys apart without giving them away.

    The key is taken from the header, then the query parameter (None turns either off; keys in URLs end up in access
    logs), then the subprotocol ``socketspec.bearer.<key>``, where characters that no subprotocol may have, such as
    ``/`` and ``=``, are percent-encoded. A key that came by message is the only one looked at. `first_message` lets a
    client that brought no credentials send ``__refresh_auth__ {"token": key}`` first.

    The keys themselves are not kept. Raises `ConfigurationError` for keys that cannot work.
    """

    def __init__(
        self,
        valid_keys: Collection[str] | Mapping[str, Identity] | KeyLookup,
        *,
        header: str | None = "x-api-key",
        query_param: str | None = "api_key",
        first_message: bool = False,
    ) -> None:
        self.first_message = first_message
        self._header = header
        self._query_param = query_param
        hide_in_logs(*filter(None, (header, query_param)))
        self._lookup: KeyLookup | None = None
        self._pepper = secrets.token_bytes(32)
        self._identities: dict[bytes, Identity] = {}
        if callable(valid_keys):
            self._lookup = valid_keys
        else:
            self._identities = {self._digest(key): who for key, who in _identities(valid_keys).items()}

    def __repr__(self) -> str:
        return f"APIKeyAuth(header={self._header!r}, query_param={self._query_param!r})"

    @property
    def accepts(self) -> str:
        """What to send, for people."""
        named = [f"the header {self._header}"] if self._header else []
        named += [f"?{self._query_param}="] if self._query_param else []
        return " or ".join((*named, "the subprotocol socketspec.bearer.<key>")) + " with an API key"

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        """The key's identity; None where the handshake has no key. Raises `AuthError` for an unknown key."""
        key = self.presented(handshake)
        if key is None:
            return None
        if not key or len(key) > _MAX_KEY:
            raise refused(_INVALID, "an API key of %d characters", len(key))
        found = self._find(key) if self._lookup is None else await self._ask(self._lookup, key)
        if found is None:
            raise refused(_INVALID, "an unknown API key")
        return found

    @property
    def factory(self) -> KeyLookup | None:
        """The callable that `valid_keys` is, if it is one."""
        return self._lookup

    def presented(self, handshake: Handshake) -> str | None:
        """The key that is looked at; None where the handshake has none."""
        if handshake.token is not None:
            return handshake.token
        if self._header and (key := handshake.headers.get(self._header)):
            return key
        if self._query_param and (key := handshake.query_params.get(self._query_param)):
            return key
        return handshake.subprotocol_token

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._pepper, key.encode("utf-8", "surrogatepass"), "sha256")

    def _find(self, key: str) -> Identity | None:
        """Look `key` up, with the same work whether it is known or not and however much of it is right.

        What is compared are HMACs under a random number only this process has. Whoever times the look-up learns
        about those, and can neither steer nor compute them, so no key can be guessed piece by piece.
        """
        presented = self._digest(key)
        found = self._identities.get(presented)
        stored = presented if found is not None else self._pepper
        return found if hmac.compare_digest(stored, presented) else None

    async def _ask(self, lookup: KeyLookup, key: str) -> Identity | None:
        try:
            answer = cast("object", provided(lookup, lookup)(key))
            if inspect.isawaitable(answer):
                answer = cast("object", await answer)
            if not isinstance(answer, Identity | None):
                raise TypeError("valid_keys must return an Identity or None")
        except AuthError:
            raise
        except Exception as error:  # fail closed, and keep the text of a user's exception from the client
            raise unavailable("APIKeyAuth's callable", error) from None
        return answer


def _identities(valid_keys: Collection[str] | Mapping[str, Identity]) -> dict[str, Identity]:
    keys = cast("object", valid_keys)
    if isinstance(keys, str | bytes | bytearray) or not isinstance(keys, Collection):
        raise ConfigurationError('APIKeyAuth: valid_keys must be a collection of keys. Write {"the-key"}.')
    if not keys:
        raise ConfigurationError("APIKeyAuth: valid_keys is empty, so nobody could connect. Pass at least one key.")
    for key in cast("Collection[object]", keys):
        _check_key(key)
    if not isinstance(keys, Mapping):
        return {key: Identity(user_id="key:" + hashlib.sha256(key.encode()).hexdigest()[:16]) for key in valid_keys}
    mapping = cast("Mapping[str, Identity]", keys)
    if not all(isinstance(cast("object", who), Identity) for who in mapping.values()):
        raise ConfigurationError('APIKeyAuth: a mapping\'s values must be identities: {"key": Identity(user_id="…")}.')
    return dict(mapping)


def _check_key(key: object) -> None:
    # The key itself is never part of the message: it would end up in a log.
    if not isinstance(key, str) or not key:
        raise ConfigurationError("APIKeyAuth: a key is empty or no string. Is an environment variable missing?")
    if not (key.isascii() and key.isprintable()) or " " in key or len(key) > _MAX_KEY:
        raise ConfigurationError(
            f"APIKeyAuth: a key has spaces, control or non-ASCII characters, or is longer than {_MAX_KEY}. "
            "It could not be sent in a header; use secrets.token_urlsafe(32)."
        )
