"""Undo of declarations: what is declared together is there as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ("Restore", "saved")

Restore = Callable[[], None]
"""Puts something back as it was. Others hold the very objects, so it changes those and replaces none."""


def saved(*containers: list[Any] | dict[Any, Any] | set[Any]) -> Restore:
    """What puts these back."""
    copies = [container.copy() for container in containers]

    def restore() -> None:
        for container, before in zip(containers, copies, strict=True):
            container.clear()
            if isinstance(container, list):
                container.extend(before)
            else:
                container.update(before)

    return restore
