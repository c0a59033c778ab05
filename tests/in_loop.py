"""Fixtures whose value lives inside the event loop of an `async def` test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Generic, TypeVar

__all__ = ("Entered", "InLoop")

T = TypeVar("T")
U = TypeVar("U")


class InLoop(Generic[T]):
    """What a fixture returns for `enter` to be entered in the test's loop; the test gets what that yields.

    Only `async def` tests can use such a fixture. Several arguments made from one by `pick` share one entry.
    """

    def __init__(self, enter: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.enter = enter

    def pick(self, choose: Callable[[T], U]) -> Picked[T, U]:
        """A fixture's value made from this one's."""
        return Picked(self, choose)


class Picked(Generic[T, U]):
    """Part of another fixture's value."""

    def __init__(self, source: InLoop[T], choose: Callable[[T], U]) -> None:
        self.source = source
        self.choose = choose


class Entered:
    """The arguments of one test, each `InLoop` entered once."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._values: dict[int, Any] = {}

    async def value(self, argument: Any) -> Any:
        """What the test gets for `argument`: itself, unless it is made inside the loop."""
        if isinstance(argument, Picked):
            return argument.choose(await self.value(argument.source))
        if not isinstance(argument, InLoop):
            return argument
        if id(argument) not in self._values:
            self._values[id(argument)] = await self._stack.enter_async_context(argument.enter())
        return self._values[id(argument)]
