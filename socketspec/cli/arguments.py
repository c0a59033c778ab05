"""What the commands' arguments may be. Each is an argparse ``type``, and says what to write instead."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ("port", "whole")


def port(text: str) -> int:
    """A TCP port; 0 stands for any free one."""
    if not (text.isascii() and text.isdigit() and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; use 0 to 65535")
    return int(text)


def whole(highest: int, what: str) -> Callable[[str], int]:
    """A whole number from 1 to `highest`; `what` completes "is not …"."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}; use 1 to {highest}")
        return int(text)

    return parse
