"""The engines at work in this process."""

from __future__ import annotations

__all__ = ("drain_soon",)


def drain_soon() -> None:
    """Begin the drain of every engine."""
