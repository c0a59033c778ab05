"""A function that may block is called once for all who ask meanwhile."""

from __future__ import annotations

import asyncio
import threading

import pytest

from socketspec.concurrency.shared_call import SharedCall


async def test_who_asks_while_it_runs_shares_the_outcome_and_who_gives_up_takes_it_from_nobody() -> None:
    go = threading.Event()
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        go.wait(10)
        return len(calls)

    shared = SharedCall(work, "work")
    given_up = asyncio.ensure_future(asyncio.wrap_future(shared.begin()))
    waiting = asyncio.ensure_future(asyncio.wrap_future(shared.begin()))
    await asyncio.sleep(0)
    given_up.cancel()
    go.set()
    assert await waiting == 1
    assert await asyncio.wrap_future(shared.begin()) == 2  # the next one asks anew


def test_an_error_reaches_whoever_asked_and_the_next_call_begins_anew() -> None:
    outcomes = iter([ValueError("first"), None])

    def work() -> None:
        if error := next(outcomes):
            raise error

    shared = SharedCall(work, "work")
    with pytest.raises(ValueError, match="first"):
        shared.begin().result(5)
    assert shared.begin().result(5) is None
