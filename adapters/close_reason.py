"""How long the reason in a close frame may be."""

from __future__ import annotations

from typing import Final

__all__ = ("fitting_reason",)

MAX_BYTES: Final = 123
"""What a close frame holds beside its code (RFC 6455 section 5.5)."""


def fitting_reason(reason: str) -> str:
    """As much of `reason` as a close frame holds, in whole characters."""
    return reason.encode()[:MAX_BYTES].decode(errors="ignore")
