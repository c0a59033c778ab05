"""What the commands' arguments may be. Each is an argparse ``type``, and says what to write instead."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Final

__all__ = ("drain_seconds", "number", "port", "surge", "whole")

_GROUPED: Final = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")


def port(text: str) -> int:
    """A TCP port; 0 stands for any free one."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use 0 to 65535")
    return int(text)


def number(what: str, lowest: float, highest: float) -> Callable[[str], float]:
    """A number from `lowest` to `highest`, such as 2.5e5 or 250,000; `what` it counts, or nothing."""

    def parse(text: str) -> float:
        value = _value(text)
        of = f" of {what}" if what else ""
        if math.isnan(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number{of}; use {_shown(lowest)} to {_shown(highest)}")
        if value < lowest:
            small = f"too few {what}" if what else "too small"
            raise argparse.ArgumentTypeError(f"{text} is {small}; it must be at least {_shown(lowest)}")
        if value > highest:
            large = f"too many {what}" if what else "too large"
            raise argparse.ArgumentTypeError(f"{text} is {large}; at most {_shown(highest)}")
        return value

    return parse


def whole(what: str, lowest: int, highest: int) -> Callable[[str], int]:
    """The same for what can only be counted."""
    parse_number = number(what, lowest, highest)

    def parse(text: str) -> int:
        value = parse_number(text)
        if not value.is_integer():
            raise argparse.ArgumentTypeError(f"{text} is not a whole number{f' of {what}' if what else ''}")
        return int(value)

    return parse


drain_seconds: Final = number("seconds", 0, 86_399)
"""How long a part of a drain takes, as `SocketApp` and the chart have it."""


def surge(text: str) -> int | str:
    """A number of nodes, or a percentage of them such as 25%, as in Kubernetes."""
    amount, percent, rest = text.partition("%")
    if rest:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of nodes nor a percentage such as 25%")
    if percent:
        return f"{whole('percent', 1, 100)(amount)}%"
    return whole("nodes", 1, 100_000)(text)


def _value(text: str) -> float:
    """NaN where it is none. A comma only stands between thousands: 1,5 would otherwise be 15."""
    try:
        return float(text.replace(",", "") if _GROUPED.fullmatch(text) else text)
    except ValueError:
        return math.nan


def _shown(value: float) -> str:
    return f"{value:,.15g}"
