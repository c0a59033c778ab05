"""What becomes of code that still works for a connection which has gone: its next `emit` raises `Disconnected`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from socketspec.errors import Disconnected

__all__ = ("after_the_end", "is_disconnect", "is_expected")

_cleaning_up: ContextVar[bool] = ContextVar("socketspec_cleaning_up", default=False)


@contextmanager
def after_the_end() -> Iterator[None]:
    """Inside run the hooks that clean up after a connection. They know that it has gone, so `emit` does nothing."""
    token = _cleaning_up.set(True)
    try:
        yield
    finally:
        _cleaning_up.reset(token)


def is_expected() -> bool:
    """Whether the code that runs knows that the connection has gone."""
    return _cleaning_up.get()


def is_disconnect(error: BaseException) -> bool:
    """Whether `error` says that a connection has gone, and nothing else: also where a task group gathered it."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(Disconnected)[1] is None
    return isinstance(error, Disconnected)
