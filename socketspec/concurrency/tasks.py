"""Background tasks with an owner: named, bounded by their owner's life, never failing unseen."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Final

from socketspec.text import get_logger

__all__ = ("SeparateTasks", "Tasks")

logger: logging.Logger = get_logger("socketspec.tasks")


STUBBORN: Final = 1.0
"""Seconds, at least, that a cancelled task has to end; your code may catch the cancellation."""


class Tasks:
    """The tasks of one owner. `close` waits for them, then cancels the rest."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start `coroutine` as a task of this owner."""
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            # Runs up to its first suspension right here; most event handlers never suspend and so never reach the loop.
            task = asyncio.Task(coroutine, loop=loop, name=name, eager_start=True)
            if task.done():
                self._finished(task)
                return task
        else:
            task = loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            logger.error("Task %r failed", task.get_name(), exc_info=error)

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - it bounds the waiting, nothing is cancelled
        """Wait until those that run now have ended, at most `timeout` seconds."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout)

    async def close(self, grace: float) -> None:
        """Give the tasks `grace` seconds to finish, then cancel and await the rest."""
        current = asyncio.current_task()
        waiting = {task for task in self._tasks if task is not current}
        if waiting:
            await asyncio.wait(waiting, timeout=grace)
        unfinished = [task for task in waiting if not task.done()]
        for task in unfinished:
            task.cancel()
        if unfinished:
            logger.warning("Cancelled %d tasks that did not finish within %.1f s", len(unfinished), grace)
            _, stubborn = await asyncio.wait(unfinished, timeout=max(grace, STUBBORN))
            for task in stubborn:
                logger.error("Task %r does not end although it was cancelled: it is left behind", task.get_name())


class SeparateTasks(Tasks):
    """Tasks that serve everybody, and outlive what was being handled when they were started.

    They get none of its context variables, else their log records would carry that one connection's ids.
    """

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start `coroutine` as a task of this owner."""
        return Context().run(super().spawn, coroutine, name=name)
