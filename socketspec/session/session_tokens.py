"""Session tokens: random, and bound to the user they were given to, so that nobody else can go on with them.

No secret is behind that, and nothing is stored for it: a client can make up a token that is bound to itself. It names a
session of its own then, and nobody else's.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Final

from socketspec.errors import ValidationFailed
from socketspec.session.revocation import digest

__all__ = ("bound_name", "check_session", "is_given_to", "name_of", "new_token")

_RANDOM: Final = 32
"""Characters before those that bind it."""
_SESSION: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")


def new_token(namespace: str, user: str | None) -> str:
    """A session token for `user`, None for somebody anonymous; nobody can guess it."""
    random = secrets.token_urlsafe(_RANDOM * 3 // 4)
    return random + _bond(namespace, user, random)


def is_given_to(token: str, namespace: str, user: str | None) -> bool:
    """Whether `token` is bound to `user`. No token is bound to two users."""
    random, bond = token[:_RANDOM], token[_RANDOM:]
    return hmac.compare_digest(bond.encode(), _bond(namespace, user, random).encode())


def bound_name(namespace: str, user: str | None, name: str) -> str:
    """The id of the session that the token of `user` names: another user's token may name one alike."""
    shown = name.encode("utf-8", "backslashreplace").decode()  # half a surrogate cannot be sent
    return f"{shown}-{_bond(namespace, user, name)}"


def name_of(id: str, namespace: str, user: str | None) -> str | None:
    """The name that `id` was made of by `bound_name`; None for any other id."""
    name, _, _ = id.rpartition("-")
    return name if name and id == bound_name(namespace, user, name) else None


def _bond(namespace: str, user: str | None, random: str) -> str:
    return digest(namespace, "given to", user, random)


def check_session(value: object) -> str:
    """Return `value` if it can be a session token. Raises `ValidationFailed` with a sentence for the client."""
    if isinstance(value, str) and _SESSION.fullmatch(value):
        return value
    raise ValidationFailed(
        "`session` must be the session token from `__connect__`: 16 to 128 letters, digits, hyphens or underscores.",
        details={"reason": "session"},
    )
