"""Tells a task's own cancellation from one that leaked out of what it awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ("CancelledWithinError", "unless_cancelled")


T = TypeVar("T")


class CancelledWithinError(RuntimeError):
    """Your code let the cancellation of something it awaited escape; its own task was not cancelled."""


async def unless_cancelled(awaitable: Awaitable[T]) -> T:
    """Await `awaitable`. Raises `CancelledWithinError` where it ends in a cancellation that is not this task's own:
    to asyncio that looks like a task that was meant to end, and it would vanish without a trace.
    """
    try:
        return await awaitable
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling() > 0:
            raise
        raise CancelledWithinError("something this code awaited was cancelled") from error
