"""Checks options that are texts and switches, and names those that there are not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from socketspec.errors import ConfigurationError
from socketspec.text import did_you_mean

__all__ = ("check_flag", "check_known", "check_text", "knows_options", "without_parentheses")

P = ParamSpec("P")
T = TypeVar("T")


def check_flag(where: str, value: object) -> None:
    """Raise `ConfigurationError` for what is no bool. `where` begins errors: ``"on('act', ordered"``."""
    if type(value) is not bool:
        raise ConfigurationError(f"{where}={value!r}) must be True or False.")


def check_text(where: str, value: object) -> None:
    """Raise `ConfigurationError` for what is no text. `where`: as for `check_flag`."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{where}={value!r}) must be a text, such as 'Orders of the shop'.")


def check_known(owner: str, options: Iterable[str], known: list[str]) -> None:
    """Raise `ConfigurationError` for the first of `options` that is not `known`."""
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or f"The options are {', '.join(known)}."
            raise ConfigurationError(f"{owner} has no option {name!r}. {hint}")


def knows_options(owner: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a function raise `ConfigurationError` for an option that it does not have, which is a slip of another."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> T:
            check_known(owner, options, known)
            return function(*args, **options)

        return call

    return decorate


def without_parentheses(function: Any, decorator: str) -> None:
    """Raise `ConfigurationError` where `decorator`, such as ``"socket.on_connect"``, did not get a function."""
    if not callable(function):
        shown = "" if function is None else repr(function)
        raise ConfigurationError(
            f"@{decorator}({shown}) takes nothing in parentheses. Write @{decorator} without them."
        )
