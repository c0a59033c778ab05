"""`Depends` itself, and how dependencies are entered, left and run in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import FrozenInstanceError
from functools import partial
from typing import Any
from unittest.mock import Mock

import fastapi
import pytest

from socketspec.concurrency.threads import WORKERS, begin
from socketspec.declaration.dependencies import Dependency, Depends, enter_in_thread, run_in_thread
from socketspec.errors import ConfigurationError


def get_db() -> int:
    return 1


def test_depends_returns_a_frozen_marker() -> None:
    marker = Depends(get_db, use_cache=False)

    assert marker == Dependency(get_db, use_cache=False)
    with pytest.raises(FrozenInstanceError):
        marker.use_cache = True


def test_depends_on_a_result_instead_of_a_function_says_what_to_write() -> None:
    wrong: Any = get_db()
    with pytest.raises(ConfigurationError, match=r"Depends\(get_db\), not Depends\(get_db\(\)\)"):
        Depends(wrong)


@pytest.mark.parametrize(
    ("marker", "meant"),
    [
        (fastapi.Depends(get_db, use_cache=False), Dependency(get_db, use_cache=False)),
        (fastapi.Security(get_db, scopes=["admin"]), Dependency(get_db, security_scopes=("admin",))),
        (fastapi.Depends(get_db, scope="request"), Dependency(get_db, scope="request")),
    ],
)
def test_fastapis_markers_are_understood(marker: object, meant: Dependency) -> None:
    assert Dependency.read(marker) == meant


def test_a_scope_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='must be "connection"'):
        Depends(get_db, scope="session")  # type: ignore[arg-type] # what untyped code passes


def test_a_fastapi_marker_without_a_callable_is_understood() -> None:
    assert Dependency.read(fastapi.Depends()) == Dependency()


def test_a_concurrency_limit_that_would_not_be_kept_is_refused() -> None:
    class Limited:
        dependency = staticmethod(get_db)
        use_cache = True
        max_concurrency = 2

    with pytest.raises(ConfigurationError, match="Semaphore"):
        Dependency.read(Limited())


@pytest.mark.parametrize("value", [None, 3, "text", get_db, Mock(), Dependency, fastapi.Header()])
def test_other_defaults_are_no_markers(value: object) -> None:
    assert Dependency.read(value) is None


async def test_a_thread_runs_elsewhere_with_the_callers_context() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("seen")

    name, value = await run_in_thread(lambda: (threading.current_thread().name, variable.get()), copy_context())

    assert name != threading.current_thread().name
    assert value == "seen"


async def test_stop_iteration_in_a_thread_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await run_in_thread(lambda: next(iter(())), copy_context())


async def test_cancellation_waits_until_the_thread_is_done() -> None:
    started, release, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait(10)
        done.set()

    task = asyncio.create_task(run_in_thread(work, copy_context()))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.wait((task,), timeout=0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


@pytest.mark.parametrize("always", [False, True])
async def test_work_cancelled_before_a_thread_was_free_runs_only_if_it_must(always: bool) -> None:
    release, ran = threading.Event(), threading.Event()
    busy = [begin(partial(release.wait, 10)) for _ in range(WORKERS)]
    task = asyncio.create_task(run_in_thread(ran.set, copy_context(), always=always))
    await asyncio.wait((task,), timeout=0)
    task.cancel()
    await asyncio.wait((task,), timeout=0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.gather(*busy)
    assert ran.is_set() is always


async def test_what_a_thread_opened_while_it_was_cancelled_is_closed() -> None:
    started, release = threading.Event(), threading.Event()
    events: list[str] = []

    @contextmanager
    def resource() -> Iterator[int]:
        started.set()
        release.wait(10)
        events.append("open")
        try:
            yield 1
        finally:
            events.append("close")

    async def use() -> None:
        async with AsyncExitStack() as stack:
            await enter_in_thread(resource(), stack)
            events.append("used")

    task = asyncio.create_task(use())
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.wait((task,), timeout=0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["open", "close"]


async def test_a_context_variable_can_be_reset_in_the_clean_up_of_a_threaded_generator() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen: list[str] = []

    @contextmanager
    def resource() -> Iterator[None]:
        token = variable.set("set")
        yield
        seen.append(variable.get())
        variable.reset(token)
        seen.append(variable.get())

    async with AsyncExitStack() as stack:
        await enter_in_thread(resource(), stack)

    assert seen == ["set", "unset"]
