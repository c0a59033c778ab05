"""Worker threads: how many, whose, and until when."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context

from socketspec.concurrency import threads
from socketspec.concurrency.threads import WORKERS


async def test_an_event_loop_has_so_many_workers_of_its_own() -> None:
    release, running = threading.Event(), threading.Semaphore(0)

    def work() -> str:
        running.release()
        release.wait(10)
        return threading.current_thread().name

    begun = [threads.begin(work) for _ in range(WORKERS + 1)]
    for _ in range(WORKERS):
        assert await asyncio.to_thread(running.acquire, timeout=10)
    assert not running.acquire(timeout=0.05)
    release.set()
    assert all(name.startswith("socketspec") for name in await asyncio.gather(*begun))


async def test_they_end_with_the_last_app_of_the_loop() -> None:
    loop = asyncio.get_running_loop()
    threads.retain(loop)
    threads.retain(loop)
    thread = await threads.begin(threading.current_thread)
    threads.release(loop)
    assert await threads.begin(threading.current_thread) is thread
    threads.release(loop)
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
    assert await threads.begin(threading.current_thread) is not thread  # what comes later still finds one


async def test_what_a_thread_that_waits_no_more_was_to_run_runs_in_a_worker() -> None:
    context = copy_context()
    names: list[str] = []
    ran = threading.Event()

    def work() -> None:
        names.append(threading.current_thread().name)
        ran.set()

    with threads.waiting_here(context):
        begun = context.run(threads.begin, work)
        assert not ran.is_set()
    await begun
    assert names[0].startswith("socketspec")
    await context.run(threads.begin, work)
    assert len(names) == 2


async def test_a_thread_with_a_copy_of_anothers_context_waits_for_itself() -> None:
    context = copy_context()
    with threads.waiting_here(context) as outer:
        found: list[threads.WaitingThread] = []

        def elsewhere() -> None:
            with threads.waiting_here(context.copy()) as own:
                found.append(own)

        await asyncio.to_thread(elsewhere)
        assert found[0] is not outer
        with threads.waiting_here(context) as inner:
            assert inner is outer
