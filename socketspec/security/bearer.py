"""A secret that HTTP requests have to bring as ``Authorization: Bearer``."""

from __future__ import annotations

import hashlib
import hmac

__all__ = ("BearerSecret",)


class BearerSecret:
    """Kept and compared as a digest. An empty secret is never matched: it would let everybody in."""

    def __init__(self, secret: str) -> None:
        self._digest = _digest(secret) if secret else None

    def matches(self, token: str | None) -> bool:
        """Whether `token` is the secret. How long that takes says nothing about the secret."""
        return self._digest is not None and token is not None and hmac.compare_digest(_digest(token), self._digest)


def _digest(secret: str) -> bytes:
    # All digests have the same length, so comparing two of them does not show how long the secret is.
    return hashlib.sha256(secret.encode()).digest()
