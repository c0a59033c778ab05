"""`Turns`: bounded, in the order of coming, and nobody's place is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from socketspec.cluster.publishers.turns import Turns


def wait_until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def queued(turns: Turns) -> int:
    return len(turns._waiting)  # noqa: SLF001 # who waits is seen nowhere else


def taker(turns: Turns, name: str, took: list[str]) -> threading.Thread:
    """A thread that waits for a place and keeps it; returns once it waits."""

    def take() -> None:
        assert turns.take(10)
        took.append(name)

    before = queued(turns)
    thread = threading.Thread(target=take)
    thread.start()
    wait_until(lambda: queued(turns) == before + 1)
    return thread


def test_there_are_as_many_places_as_it_says() -> None:
    turns = Turns(2)
    assert [turns.take(0), turns.take(0), turns.take(0), turns.take(0.01)] == [True, True, False, False]
    turns.give_back()
    assert [turns.take(0), turns.take(0)] == [True, False]


def test_a_place_goes_to_whoever_waits_longest_and_not_to_whoever_gave_it_back() -> None:
    turns = Turns(1)
    took: list[str] = []
    assert turns.take(0)
    threads = [taker(turns, name, took) for name in ("first", "second", "third")]
    for number in range(3):
        turns.give_back()
        assert not turns.take(0)  # at once, before the other thread can have run
        wait_until(lambda count=number + 1: len(took) == count)  # type: ignore[misc] # lambdas have no annotations
    for thread in threads:
        thread.join()
    assert took == ["first", "second", "third"]


async def test_threads_and_event_loops_wait_in_one_queue() -> None:
    turns = Turns(1)
    took: list[str] = []
    await turns.take_in_loop()
    thread = taker(turns, "thread", took)

    async def take() -> None:
        await turns.take_in_loop()
        took.append("loop")

    task = asyncio.create_task(take())
    await asyncio.sleep(0)
    assert queued(turns) == 2
    turns.give_back()
    await asyncio.to_thread(thread.join)
    assert took == ["thread"]
    turns.give_back()
    await task
    assert took == ["thread", "loop"]


async def test_who_waits_no_longer_takes_no_place_along() -> None:
    turns = Turns(1)
    await turns.take_in_loop()
    waiting = [asyncio.create_task(turns.take_in_loop()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait({waiting[0]})
    turns.give_back()  # to the second, who is told with the loop's next turn
    waiting[1].cancel()
    await asyncio.wait(waiting)
    assert [task.cancelled() for task in waiting] == [True, True, False]
    turns.give_back()
    assert turns.take(0)


def test_a_waiter_whose_event_loop_is_closed_is_passed_over() -> None:
    turns = Turns(1)
    assert turns.take(0)
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(turns.take_in_loop())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    turns.give_back()
    assert turns.take(0)
    waiting._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001 # that it never ends is the point


def test_an_interrupt_while_waiting_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: threading.Event, _timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    turns = Turns(1)
    assert turns.take(0)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            turns.take(10)
    turns.give_back()
    assert turns.take(0)
