"""Makes an `Identity` out of a verified token's claims."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

from socketspec.errors import AuthError
from socketspec.identity import Identity
from socketspec.security._jwt import INVALID
from socketspec.security._providing import provided
from socketspec.security._refusal import refused, unavailable

IdentityFactory = Callable[..., Identity | Awaitable[Identity | None] | None]
"""Your own way from claims to an identity. None, or an `AuthError`, refuses the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimMap:
    """Which claims an identity is made of."""

    user: str = "sub"
    role: str | None = "role"
    scopes: str | Sequence[str] = ("scope", "scopes")
    factory: IdentityFactory | None = None
    leeway: float = 0.0

    async def identity(self, claims: Mapping[str, Any]) -> Identity:
        """The identity these claims describe. Raises `AuthError`."""
        shown = MappingProxyType(claims)
        expires = cast("float | None", claims.get("exp"))
        if expires is not None:
            expires += self.leeway  # the handshake would still accept it then, so a connection may still live
        if self.factory is not None:
            made = await self._call(self.factory, shown)
            # Left out, they must not turn into "never expires" and "has no token id to revoke".
            if made.token_expires_at is None:
                made = replace(made, token_expires_at=expires)
            return made if made.claims else replace(made, claims=shown)
        user = _text(claims, self.user)
        if user is None:
            raise refused(INVALID, "no %s claim to take the user from; see user_claim= and identity=", self.user)
        return Identity(
            user_id=user,
            role=None if self.role is None else _text(claims, self.role),
            scopes=self._scopes(claims),
            claims=shown,
            token_expires_at=expires,
        )

    async def _call(self, factory: IdentityFactory, claims: Mapping[str, Any]) -> Identity:
        try:
            made = cast("object", provided(factory, factory)(claims))
            if inspect.isawaitable(made):
                made = cast("object", await made)
            if not isinstance(made, Identity | None):
                raise TypeError("identity= must return an Identity")
        except AuthError:
            raise
        except Exception as error:  # fail closed, and keep the text of a user's exception from the client
            raise unavailable("JWTAuth's identity callable", error) from None
        if made is None:
            raise refused(INVALID, "the identity callable knows nobody with these claims")
        return made

    def _scopes(self, claims: Mapping[str, Any]) -> frozenset[str]:
        names = (self.scopes,) if isinstance(self.scopes, str) else self.scopes
        value: object = next((claims[name] for name in names if claims.get(name) is not None), "")
        if isinstance(value, str):
            return frozenset(value.split())
        listed = cast("list[object]", value) if isinstance(value, list) else [None]
        if not all(isinstance(scope, str) for scope in listed):
            raise refused(INVALID, "scopes are neither text nor a list of text; see scopes_claim= and identity=")
        return frozenset(cast("list[str]", listed))


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    """A claim as text: strings and whole numbers. Anything else would be guessed, so it is refused."""
    value: object = claims.get(name)
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    # Half a surrogate pair is a str in Python and cannot be sent or stored.
    if isinstance(value, str) and value and not any("\ud800" <= letter <= "\udfff" for letter in value):
        return value
    raise refused(INVALID, "the claim %s is not text; see identity=", name)
