"""What can be revoked, as digests: no session token, token id or user id is stored or sent between nodes."""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from socketspec.errors import AuthError

__all__ = ("REVOKED_FOR", "Revoked", "check_ttl", "revocation_subjects")


MAX_TTL: Final = 10 * 365 * 86_400.0
"""The longest that a revocation may last, in seconds."""
REVOKED_FOR: Final = 86_400.0
"""Seconds a revocation lasts unless it says otherwise."""


class Revoked(AuthError):
    """The session, user or token of this client was revoked."""

    def __init__(self) -> None:
        super().__init__("These credentials were revoked. Sign in again.", details={"reason": "revoked"})


def check_ttl(ttl: float) -> None:
    """Raise `ValueError` unless a revocation may last that long."""
    if isinstance(ttl, bool) or not 0 < ttl <= MAX_TTL:
        raise ValueError(f"revoke(ttl={ttl!r}) must be more than 0 seconds and at most 10 years")


def revocation_subjects(
    namespace: str, *, session: str | None = None, user: str | None = None, token_id: str | None = None
) -> tuple[str, ...]:
    """What `backend.Sessions.revoke` is told and nodes tell each other. Raises `ValueError` where nothing is named."""
    named: list[tuple[Kind, str | None]] = [("session", session), ("user", user), ("token", token_id)]
    for kind, value in named:
        given: object = value  # untyped code passes anything
        if given is not None and not (isinstance(given, str) and given):
            raise ValueError(f"revoke: the {kind} must be a non-empty str, not {given!r}")
    subjects = tuple(subject_of(namespace, kind, value) for kind, value in named if value is not None)
    if not subjects:
        raise ValueError("revoke: say what, with session=, user= or token_id=")
    return subjects


Kind = Literal["session", "user", "token"]


def subject_of(namespace: str, kind: Kind, value: str) -> str:
    return f"{kind}:{digest(namespace, kind, value)}"


def digest(*parts: str | None) -> str:
    """128 bits that stand for `parts`; their lengths are part of it, so none can run into the next."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = None if part is None else part.encode("utf-8", "surrogatepass")
        digest.update(b"-:" if data is None else b"%d:%b" % (len(data), data))
    return digest.hexdigest()
