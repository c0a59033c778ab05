"""Waiting for what must come to be, and counting what must not be left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from socketspec.concurrency.tasks import Tasks


def open_sockets() -> set[str]:
    """The kernel's names of the sockets that this process has open; a name is not used again soon."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


async def until(check: Callable[[], object], within: float = 10.0) -> float:
    """Wait for `check`; the seconds it took."""
    began = time.monotonic()
    while not check():
        assert time.monotonic() < began + within, f"not within {within:g} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


class WatchedTasks(Tasks):
    """Tasks that keep the errors which they ended in."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[BaseException] = []

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """As `Tasks.spawn`."""
        task = super().spawn(coroutine, name=name)
        task.add_done_callback(self._note)
        return task

    def _note(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.failures.append(error)


async def turns(check: Callable[[], object]) -> None:
    """Let the event loop turn until `check` is true: for what needs turns, and no time."""
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come true in 1000 turns of the event loop")


def levels(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """The levels of the log records that hold `text`, in order."""
    return [record.levelname for record in caplog.records if text in record.getMessage()]
