"""Time that passes only where everybody waits: an hour of heartbeats takes a millisecond, and nothing is ever late."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

__all__ = ("in_virtual_time",)


class _Jumping(selectors.DefaultSelector):
    """Where the loop would wait, its clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "everything waits for something that never comes"
            self.now += max(timeout, 0.0)
        return events


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an `async def` test in such time. Fails as well where a callback failed that nobody heard of."""

    @wraps(test)
    def run(**arguments: Any) -> None:
        unheard: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
            await test(**arguments)

        with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
            runner.run(main())
        assert not unheard, unheard

    return run
