"""Checks a JSON Web Token: form, header, signature, claims (RFC 7515, 7519 and the advice of RFC 8725).

PyJWT verifies the signature; everything around it is decided here, so that it does not depend on PyJWT's version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

import jwt

from socketspec.errors import ConfigurationError
from socketspec.security._jwks import KeysUnavailable
from socketspec.security._keys import VerificationKey
from socketspec.security._refusal import refused, unavailable

INVALID = "The token is not valid."

_MAX_TOKEN = 16384
"""Characters; more does not fit into the headers of most servers anyway."""
_MAX_LEEWAY = 60.0
IAT_LEEWAY = 10.0
"""Seconds that an issuer's clock may always be ahead: ``iat`` only says when (RFC 7519 section 4.1.6), and a token that
was made this moment must not be refused for it."""
_END_OF_TIME = 253402300800.0
"""The year 10000 in seconds. Later is no time a token means: milliseconds, an overflow, an attack."""
_ACCESS_TOKENS = ("at+jwt", "application/at+jwt")
"""The one kind of explicitly typed tokens (RFC 8725 section 3.11) that lets somebody in (RFC 9068 section 2.1)."""
_LETTER = "[A-Za-z0-9_-]"
_SEGMENT = f"(?=[^.])(?:{_LETTER}{{4}})*(?:{_LETTER}[AQgw]|{_LETTER}{{2}}[AEIMQUYcgkosw048])?"
"""Base64url whose unused last bits are zero (RFC 4648 section 3.5): one token has one spelling."""
_COMPACT = re.compile(rf"{_SEGMENT}\.{_SEGMENT}\.{_SEGMENT}")


class KeySource(Protocol):
    """Finds the key that must have signed a token."""

    async def find(self, kid: str | None, algorithm: str) -> Any | None:
        """The key with this id for this algorithm, if there is one. Raises `KeysUnavailable`."""


class OneKey:
    """The only key there is; key ids do not matter."""

    def __init__(self, key: VerificationKey) -> None:
        self._key = key

    async def find(self, kid: str | None, algorithm: str) -> Any | None:
        """The key, where it fits the algorithm."""
        return self._key.key if algorithm in self._key.algorithms else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """What the claims of a token with a good signature must say. Raises `ConfigurationError` when made wrongly."""

    audience: str | Sequence[str] | None = None
    issuer: str | None = None
    leeway: float = 0.0
    """Seconds that clocks may differ; at most 60."""
    require_exp: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.leeway <= _MAX_LEEWAY:
            raise ConfigurationError(f"JWTAuth: leeway is {self.leeway!r}; it must be 0 to {_MAX_LEEWAY:.0f} seconds.")
        if self.audience is not None and not (self.audiences and all(self.audiences)):
            raise ConfigurationError("JWTAuth: audience is empty. Pass the name your issuer puts into aud, or None.")
        if self.issuer is not None and not (self.issuer and isinstance(cast("object", self.issuer), str)):
            raise ConfigurationError("JWTAuth: issuer must be the one string your issuer puts into iss, or None.")

    @property
    def audiences(self) -> tuple[str, ...]:
        """The audiences of which a token must name at least one."""
        if self.audience is None or isinstance(self.audience, str):
            return () if self.audience is None else (self.audience,)
        return tuple(self.audience)

    def check(self, claims: dict[str, Any], now: float) -> None:
        """Raise `AuthError` unless the claims are good at `now`, in seconds since the epoch."""
        expires, begins, issued = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
        if expires is None and self.require_exp:
            raise refused("The token has no expiry time (exp).", "no exp claim; require_exp=False would accept it")
        if expires is not None and now >= expires + self.leeway:
            raise refused("The token has expired.", "expired")
        early = begins is not None and now < begins - self.leeway
        if early or (issued is not None and now < issued - max(self.leeway, IAT_LEEWAY)):
            raise refused("The token is not valid yet.", "nbf or iat is in the future; leeway= allows for clock skew")
        if self.issuer is not None and claims.get("iss") != self.issuer:
            raise refused(INVALID, "another issuer (iss)")
        self._check_audience(claims)

    def _check_audience(self, claims: dict[str, Any]) -> None:
        if self.audience is None:
            if "aud" in claims:  # RFC 7519 section 4.1.3: who is not named in aud must refuse the token
                raise refused(INVALID, "the token has an aud claim; name yours with audience=")
            return
        named: object = claims.get("aud")
        listed = cast("list[object]", named) if isinstance(named, list) else [named]
        if not all(isinstance(name, str) for name in listed) or not any(name in self.audiences for name in listed):
            raise refused(INVALID, "another audience (aud)")


def _seconds(claims: dict[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value: object = claims[name]
    # By type, not isinstance: True is an int. NaN fails the comparison.
    if type(value) in (int, float) and 0 <= cast("float", value) <= _END_OF_TIME:
        return float(cast("float", value))
    raise refused(INVALID, "%s is not a number of seconds since the epoch", name)


class TokenVerifier:
    """Verifies tokens with one source of keys, a fixed list of algorithms and one set of rules."""

    def __init__(
        self, keys: KeySource, *, algorithms: Sequence[str], rules: ClaimRules, clock: Callable[[], float]
    ) -> None:
        self._keys = keys
        self._algorithms = tuple(algorithms)
        self._rules = rules
        self._clock = clock
        self._jws = jwt.PyJWS(algorithms=self._algorithms)

    async def verify(self, token: str) -> dict[str, Any]:
        """The claims of a good token. Raises `AuthError`, and nothing else, for every other string."""
        if len(token) > _MAX_TOKEN or _COMPACT.fullmatch(token) is None:
            raise refused(INVALID, "not a signed token in compact form of at most %d characters", _MAX_TOKEN)
        kid, algorithm = self._read_header(token)
        try:
            key = await self._keys.find(kid, algorithm)
        except KeysUnavailable as error:
            raise unavailable("reading the key set", error) from None
        if key is None:
            raise refused(INVALID, "no key with the token's kid for %s", algorithm)
        claims = self._read_claims(token, key, algorithm)
        self._rules.check(claims, self._clock())
        return claims

    def _read_header(self, token: str) -> tuple[str | None, str]:
        """The key id and algorithm. jku, jwk, x5u and x5c are never looked at: they are the attacker's to choose."""
        try:
            header = self._jws.get_unverified_header(token)
        except Exception as error:  # PyJWT raises what its parsers raise
            raise refused(INVALID, "unreadable header: %s", type(error).__name__) from None
        algorithm: object = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise refused(INVALID, "alg is not one of %s", ", ".join(self._algorithms))
        if "crit" in header or "b64" in header:
            raise refused(INVALID, "it asks for an extension (crit or b64), and none is supported")
        kind: object = header.get("typ", "JWT")
        other = isinstance(kind, str) and kind.lower().endswith("+jwt") and kind.lower() not in _ACCESS_TOKENS
        if other or not isinstance(kind, str):
            raise refused(INVALID, "typ says that it is a token for something else")
        kid: object = header.get("kid")
        if "kid" in header and not isinstance(kid, str):
            raise refused(INVALID, "kid is not a string")
        return cast("str | None", kid), algorithm

    def _read_claims(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        try:
            payload = cast("bytes", self._jws.decode_complete(token, key, algorithms=[algorithm])["payload"])
        except Exception as error:  # PyJWT and cryptography raise more than PyJWTError for keys and signatures
            raise refused(INVALID, "%s", type(error).__name__) from None
        try:
            claims: object = json.loads(payload.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            claims = None
        if not isinstance(claims, dict):
            raise refused(INVALID, "the claims are not a JSON object")
        return cast("dict[str, Any]", claims)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")  # RFC 8259 section 6
