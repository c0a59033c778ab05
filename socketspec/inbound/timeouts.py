"""Ends what takes longer than its event may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from socketspec.concurrency.deadline import Deadline, running
from socketspec.errors import TimedOut

__all__ = ("GRACE", "AnsweredTimeout", "within")

GRACE: Final = 0.2
"""Seconds that what was cancelled has to clean up before its client is answered all the same.

What runs in a thread cannot be cancelled: it goes on to its end, and its dependencies are cleaned up after then.
"""


class AnsweredTimeout(TimedOut):
    """A timeout that the client has been told of."""


async def within(handling: Awaitable[Any], error: TimedOut, seconds: float, answer: Callable[[], None]) -> Any:
    """Await `handling`; after `seconds`, cancel it, and raise `error` when it has ended.

    Where that takes more than `GRACE`, `answer` is called meanwhile, and `AnsweredTimeout` is raised, whatever it ends
    in. A `TimeoutError` of its own is none of this, and is raised as it is. The clean-up of dependencies after a
    handler that ended in time is not cut off, and does not make it late.
    """
    answered = False

    def late() -> None:
        nonlocal answered
        answered = True
        answer()

    deadline = Deadline(seconds, GRACE, late)
    try:
        async with deadline.timeout:
            with running(deadline):
                result = await handling
    except TimeoutError as ended:
        if not deadline.expired:
            raise
        if answered:
            raise AnsweredTimeout(error.message, details=error.details) from ended.__cause__
        raise error from None
    except Exception as failure:
        if answered:
            raise AnsweredTimeout(error.message, details=error.details) from failure
        raise
    finally:
        deadline.close()
    if answered:
        raise AnsweredTimeout(error.message, details=error.details)
    return result
