"""Authentication: who is this client?

A backend looks at the opening handshake. `JWTAuth` and `APIKeyAuth` are two; any class with an
``async def authenticate(self, handshake)`` is another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from socketspec.errors import AuthError, ConfigurationError
from socketspec.identity import Identity
from socketspec.protocol.handshake import Handshake
from socketspec.security._apikeys import APIKeyAuth
from socketspec.security._claims import ClaimMap, IdentityFactory
from socketspec.security._jwks import KeySet
from socketspec.security._jwks_fetch import fetcher
from socketspec.security._jwt import ClaimRules, OneKey, TokenVerifier
from socketspec.security._keys import (
    PUBLIC_KEY_ALGORITHMS,
    SECRET_ALGORITHMS,
    VerificationKey,
    hmac_key,
    load_public_key,
    load_secret,
    require_cryptography,
)
from socketspec.security._providing import provided
from socketspec.security._refusal import logger, unavailable

__all__ = ("APIKeyAuth", "AuthBackend", "JWTAuth", "NoCredentials", "authenticate")


class AuthBackend(Protocol):
    """Finds out who a client is."""

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        """Who this is, or None where the handshake has no credentials of this backend's kind.

        Raises `AuthError` for bad credentials. Its message is sent to the client: keep it short, and keep tokens
        and the texts of other exceptions out of it. Optional attributes: ``first_message: bool``, whether a client
        without credentials may send them as its first message, and ``accepts: str``, what to send, for people.
        """
        ...


Auth = AuthBackend | Callable[..., Any]
"""An auth backend, or a function that is its `authenticate`. Either may ask for dependencies behind the handshake."""


async def authenticate(backends: Sequence[AuthBackend], handshake: Handshake) -> Identity:
    """The identity from the first backend that finds credentials of its kind.

    Raises `AuthError`: that of the first backend that refused; without one, "No credentials". A refusal is final, and
    so is a failure (its cause is logged): nobody gets in because something is broken. Only a token or key that
    `JWTAuth` or `APIKeyAuth` does not take is shown to the backends after it, and nothing else of the handshake: there
    it may be known.
    """
    first: AuthError | None = None
    for backend in backends:
        try:
            authenticate_by = provided(backend, backend.authenticate)
            found = cast("object", await authenticate_by(handshake))
            if not isinstance(found, Identity | None):
                raise TypeError("authenticate must return an Identity or None")
        except AuthError as error:
            first = first or error
            token = backend.presented(handshake) if isinstance(backend, JWTAuth | APIKeyAuth) else None
            if token is None:
                break
            handshake = handshake.with_token(token)
        except Exception as error:  # fail closed, and keep the text of a user's exception from the client
            first = first or unavailable(f"the auth backend {type(backend).__qualname__}", error)
            break
        else:
            if found is not None:
                return found
    if first is not None:
        raise first
    accepted = [cast("str", getattr(backend, "accepts", "the credentials your server expects")) for backend in backends]
    logger.info("refused: no credentials")
    raise NoCredentials(f"No credentials. Send {', or '.join(dict.fromkeys(accepted))}.")


class NoCredentials(AuthError):
    """The handshake has no credentials of any kind that is accepted."""


class JWTAuth:
    """Authenticates clients by a JSON Web Token.

    The token is taken from ``Authorization: Bearer``, then ``?token=``, then the subprotocol
    ``socketspec.bearer.<token>``; one that came by message is the only one looked at.

    Exactly one of these verifies it:

    - `secret`: the issuer's shared secret, for HS256 (the default), HS384 and HS512;
    - `public_key`: in PEM, DER, OpenSSH, JWK or certificate form. The default algorithm is RS256 for RSA keys, the
      curve's own for EC keys, EdDSA for Ed25519 and Ed448;
    - `jwks_url`: where the issuer publishes its keys. RS256 unless you say otherwise. Keys are kept for `jwks_ttl`
      seconds; a new key id is looked for at most every 30 seconds; while the URL does not answer, the keys serve for
      another `jwks_grace` seconds, then every token is refused. Requests have the User-Agent ``socketspec/VERSION``,
      and the `headers` that you give; one of the same name replaces ours.

    `algorithm` names one algorithm, `algorithms` several. The latter two need ``socketspec[crypto]``.

    Claims: ``exp`` must be there (`require_exp=False` accepts tokens that never expire), ``nbf`` and ``iat`` may be;
    clocks may differ by `leeway` seconds, 60 at most, and ``iat`` may always be 10 seconds ahead. ``iss`` must equal
    `issuer`. ``aud`` must name `audience`, or one of them; without `audience`, a token that has one is refused
    (RFC 7519 section 4.1.3).

    The identity: `user_id` from `user_claim`, `role` from `role_claim` (text or whole numbers, the first one
    required), `scopes` from the first of `scopes_claim` (text with spaces, or a list of texts), `claims` all claims,
    read-only, and `token_expires_at` from ``exp`` and `leeway`. Or pass `identity`, a callable, sync or async, that
    makes it from the claims; it returns None or raises `AuthError` to refuse, and may ask for dependencies. Where it
    sets no `token_expires_at` or `claims`, the token's are filled in.

    `first_message` lets a client that brought no credentials send ``__refresh_auth__ {"token": …}`` first.

    Raises `ConfigurationError` for options that cannot work or are not safe.
    """

    def __init__(
        self,
        secret: str | bytes | None = None,
        algorithm: str | None = None,
        *,
        public_key: str | bytes | Mapping[str, Any] | None = None,
        jwks_url: str | None = None,
        algorithms: Sequence[str] | None = None,
        audience: str | Sequence[str] | None = None,
        issuer: str | None = None,
        leeway: float = 0.0,
        require_exp: bool = True,
        identity: IdentityFactory | None = None,
        user_claim: str = "sub",
        role_claim: str | None = "role",
        scopes_claim: str | Sequence[str] = ("scope", "scopes"),
        first_message: bool = False,
        jwks_ttl: float = 300.0,
        jwks_grace: float = 3600.0,
        allow_http_jwks: bool = False,
        headers: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.first_message = first_message
        if sum(source is not None for source in (secret, public_key, jwks_url)) != 1:
            raise ConfigurationError(
                "JWTAuth: pass exactly one of secret= (shared secret), public_key= (the issuer's public key) and "
                "jwks_url= (where the issuer publishes its keys)."
            )
        wanted = _named(algorithm, algorithms)
        keys: OneKey | KeySet
        self.algorithms: tuple[str, ...]
        if secret is not None:
            self.algorithms = _check_algorithms(wanted or ("HS256",), tuple(SECRET_ALGORITHMS), "secret=")
            keys = OneKey(_secret_key(secret, self.algorithms))
        elif public_key is not None:
            key = load_public_key(public_key)
            self.algorithms = _check_algorithms(wanted or key.algorithms[:1], key.algorithms, "this public_key=")
            keys = OneKey(key)
        else:
            require_cryptography("JWTAuth: jwks_url")
            self.algorithms = _check_algorithms(wanted or ("RS256",), PUBLIC_KEY_ALGORITHMS, "jwks_url=")
            fetch = fetcher(str(jwks_url), allow_http=allow_http_jwks, headers=headers)
            keys = KeySet(str(jwks_url), algorithms=self.algorithms, ttl=jwks_ttl, grace=jwks_grace, fetch=fetch)
        if headers is not None and jwks_url is None:
            raise ConfigurationError("JWTAuth: headers= go with requests for jwks_url=, and there is none.")
        rules = ClaimRules(audience=audience, issuer=issuer, leeway=leeway, require_exp=require_exp)
        self._tokens = TokenVerifier(keys, algorithms=self.algorithms, rules=rules, clock=clock)
        self._claims = ClaimMap(user=user_claim, role=role_claim, scopes=scopes_claim, factory=identity, leeway=leeway)

    def __repr__(self) -> str:
        return f"JWTAuth(algorithms={list(self.algorithms)!r})"

    @property
    def accepts(self) -> str:
        """What to send, for people."""
        return "a token as Authorization: Bearer <token>, ?token=<token> or the subprotocol socketspec.bearer.<token>"

    @property
    def factory(self) -> IdentityFactory | None:
        """What `identity` was given: called with the claims. What else it asks for is provided, as to a hook."""
        return self._claims.factory

    def presented(self, handshake: Handshake) -> str | None:
        """The token that is looked at; None where the handshake has none."""
        return handshake.bearer_token

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        """The token's identity; None where the handshake has no token. Raises `AuthError` for a bad token."""
        token = self.presented(handshake)
        if token is None:
            return None
        return await self._claims.identity(await self._tokens.verify(token))


def _named(algorithm: str | None, algorithms: Sequence[str] | None) -> tuple[str, ...]:
    if algorithm is not None and algorithms is not None:
        raise ConfigurationError("JWTAuth: pass algorithm= for one algorithm or algorithms= for several, not both.")
    if isinstance(algorithms, str):
        raise ConfigurationError(f"JWTAuth: algorithms is a string. Write algorithms=[{algorithms!r}].")
    if algorithms is not None and not algorithms:
        raise ConfigurationError("JWTAuth: algorithms is empty. Name those your issuer signs with, or leave it out.")
    return tuple(algorithms or ()) if algorithm is None else (algorithm,)


def _check_algorithms(wanted: tuple[str, ...], possible: tuple[str, ...], source: str) -> tuple[str, ...]:
    for name in wanted:
        if name.strip().lower() in ("none", ""):
            raise ConfigurationError("JWTAuth: the algorithm 'none' means no signature: anybody could be anybody.")
        if name not in possible:
            raise ConfigurationError(
                f"JWTAuth: {name!r} does not go with {source}. Use one of {', '.join(possible) or 'no algorithm'}; "
                f"{', '.join(SECRET_ALGORITHMS)} go with secret=, the others with public_key= or jwks_url=."
            )
    return tuple(dict.fromkeys(wanted))


def _secret_key(secret: str | bytes, algorithms: tuple[str, ...]) -> VerificationKey:
    raw = load_secret(secret)
    needed = max(SECRET_ALGORITHMS[name] for name in algorithms)
    if len(raw) < needed:
        logger.warning(
            "JWTAuth: the secret has %d bytes, %s wants %d or more (RFC 7518 section 3.2): a short one can be found "
            "by trying. Make one with: python -c 'import secrets; print(secrets.token_urlsafe(%d))'",
            len(raw), ", ".join(algorithms), needed, needed,
        )  # fmt: skip
    return VerificationKey(hmac_key(raw), algorithms)
