"""Where code runs that is not `async`: in worker threads, or in the thread that waits for what needs it.

A thread that has to wait for the event loop (see `socket.sync`) is of use meanwhile: what is not `async` and has to run
for its sake runs in that very thread. So nobody waits for a worker thread while holding one, however many wait at a
time and however deep calls are nested: threads that wait cannot use up the threads that they wait for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, ContextVar
from queue import Empty, SimpleQueue
from threading import Lock, get_ident
from time import monotonic
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

__all__ = ("WORKERS", "WaitingThread", "begin", "release", "retain", "waiting_here")

T = TypeVar("T")

WORKERS: Final = 40
"""Worker threads of an event loop, at most: as many as Starlette has for the `def` routes of HTTP."""


class _Workers:
    """The worker threads of one event loop. They start when they are first needed."""

    def __init__(self) -> None:
        self.users = 0
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="socketspec")


_workers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Workers] = WeakKeyDictionary()
_changing = Lock()


def _workers_of(loop: asyncio.AbstractEventLoop) -> _Workers:
    found = _workers.get(loop)
    if found is None:
        found = _workers[loop] = _Workers()
    return found


def retain(loop: asyncio.AbstractEventLoop) -> None:
    """Say that an app runs in `loop`: its worker threads stay until all of them have said `release`."""
    with _changing:
        _workers_of(loop).users += 1


def release(loop: asyncio.AbstractEventLoop) -> None:
    """Say that an app has stopped. After the last one the threads end, each with what it is doing."""
    with _changing:
        found = _workers_of(loop)
        found.users -= 1
        if found.users <= 0:
            del _workers[loop]
            found.pool.shutdown(wait=False)


class _Work:
    """A function without arguments that is to run in some thread, once."""

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.done: Future[Any] = Future()
        self._function = function
        self._loop = loop

    def run(self) -> None:
        """Run it in this thread."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(result)

    def run_elsewhere(self) -> None:
        """Have a worker thread run it."""
        with _changing:
            pool = _workers_of(self._loop).pool
            try:
                pool.submit(self.run)
            except RuntimeError:  # the interpreter ends: there are no new threads then
                pass
            else:
                return
        self.run()


class WaitingThread:
    """The thread that made this, while it waits for something and runs what is needed for that."""

    def __init__(self) -> None:
        self._thread = get_ident()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._lock = Lock()
        self._is_open = True

    @property
    def is_here(self) -> bool:
        """Whether this is the current thread, and still to be had."""
        return self._is_open and self._thread == get_ident()

    def take(self, work: _Work) -> bool:
        """Whether this thread will run `work`: as long as it waits."""
        with self._lock:
            if self._is_open:
                self._queue.put(work)
            return self._is_open

    def wait_for(self, result: Future[T], timeout: float) -> None:
        """Until `result` is there, at most `timeout` seconds, run what comes. What runs then is not cut off."""
        deadline = monotonic() + timeout
        result.add_done_callback(lambda _: self._queue.put(None))
        while not result.done():
            try:
                work = self._queue.get(timeout=max(deadline - monotonic(), 0.0))
            except Empty:
                return
            if work is not None:
                work.run()

    def close(self) -> None:
        """Wait no more. What has not run yet, a worker thread runs."""
        with self._lock:
            self._is_open = False
        while True:
            try:
                work = self._queue.get_nowait()
            except Empty:
                return
            if work is not None:
                work.run_elsewhere()


_waiting: ContextVar[WaitingThread | None] = ContextVar("socketspec_waiting_thread", default=None)
"""The thread that waits for what is being done. Tasks that this starts inherit it, as they do all context variables."""


@contextmanager
def waiting_here(context: Context) -> Iterator[WaitingThread]:
    """This thread, which is about to wait for what runs in `context`."""
    outer = context.run(_waiting.get)
    if outer is not None and outer.is_here:
        yield outer  # it runs something for another call: what that one needs must go on, too
        return
    thread = WaitingThread()
    context.run(_waiting.set, thread)
    try:
        yield thread
    finally:
        thread.close()


def begin(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run `function` in the thread that waits for the current task, or in a worker thread."""
    loop = asyncio.get_running_loop()
    work = _Work(function, loop)
    waiting = _waiting.get()
    if waiting is None or not waiting.take(work):
        work.run_elsewhere()
    return asyncio.wrap_future(work.done, loop=loop)
