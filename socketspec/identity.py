"""Who is connected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ("ANONYMOUS", "Identity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who is connected, as an auth backend found out."""

    user_id: str | None = None
    role: str | None = None
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The verified token's claims; empty for API keys."""
    token_expires_at: float | None = None
    """When the credentials run out, in seconds since the epoch; None: never."""
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Whatever your own auth backend wants handlers to know."""
    is_authenticated: bool = True


ANONYMOUS = Identity(is_authenticated=False)
"""The identity of every connection of an app without `auth`."""
