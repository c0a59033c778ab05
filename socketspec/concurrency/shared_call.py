"""Functions that may block for ever, called in threads that nobody has to wait for; `SharedCall` has one at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

__all__ = ("SharedCall", "begin_in_thread")

T = TypeVar("T")


class SharedCall(Generic[T]):
    """A function without arguments that may block, called by many: who asks while it runs gets the same outcome.

    So however often it is asked, a function that hangs holds one thread. Safe in threads, in event loops
    (`asyncio.wrap_future`) and after a fork.
    """

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._name = name
        self._start_anew()

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._running: Future[T] | None = None
        self._pid = os.getpid()  # last: another thread that sees it takes the new lock

    def begin(self) -> Future[T]:
        """What comes of a call that begins now, or of the one that runs. To cancel it does nothing."""
        if self._pid != os.getpid():
            self._start_anew()  # the lock may have been held at the fork, and the thread is the parent's
        with self._lock:
            running = self._running
            if running is None or running.done():
                running = self._running = begin_in_thread(self._function, self._name)
            return running


def begin_in_thread(function: Callable[[], T], name: str) -> Future[T]:
    """What comes of `function`, which begins now in a daemon thread: at the end of the process nothing waits for it."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # others may wait for it as well: one who cancels must not end it

    def call() -> None:
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    try:
        threading.Thread(target=call, name=name, daemon=True).start()
    except RuntimeError:  # the interpreter ends: there are no new threads then
        call()
    return future
