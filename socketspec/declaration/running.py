"""How something is called that is declared: dependencies first, then the function itself, then the clean-up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from socketspec.concurrency.deadline import Deadline, held
from socketspec.declaration.compiler import Bound, Step, Values, run
from socketspec.declaration.dependencies import call_in_thread

__all__ = ("in_thread", "runner", "with_untimed_clean_up")


def runner(steps: tuple[Step, ...], last: Bound) -> Callable[[Values], Coroutine[Any, Any, Any]]:
    """Calls `last` with the values that `steps` give, and cleans up after it where one of them needs that."""
    if any(managed for _, managed in steps):
        return partial(_with_clean_up, steps, last)
    return partial(_without_clean_up, tuple(evaluate for evaluate, _ in steps), last)


async def _without_clean_up(steps: Sequence[Callable[[Values], Awaitable[Any]]], last: Bound, values: Values) -> Any:
    for evaluate in steps:
        values.append(await evaluate(values))
    return await last(values)


async def _with_clean_up(steps: Sequence[Step], last: Bound, values: Values) -> Any:
    result: Any = None
    async with AsyncExitStack() as stack:
        await run(steps, values, stack)
        result = await last(values)
    return result  # noqa: RET504  # mypy: a stack may suppress errors; this one never does


async def with_untimed_clean_up(steps: Sequence[Step], last: Bound, values: Values) -> Any:
    """As `runner`. The event's timeout counts up to the clean-up, which is never cut off in its middle."""
    result: Any = None
    deadline: Deadline | None = None
    try:
        async with AsyncExitStack() as stack:
            try:
                await run(steps, values, stack)
                result = await last(values)
            finally:
                deadline = held()
    finally:
        if deadline is not None:
            deadline.go_on()
    return result


async def in_thread(bound: Bound, values: Values) -> Any:
    """Call what is not `async`."""
    return await call_in_thread(partial(bound, values))
