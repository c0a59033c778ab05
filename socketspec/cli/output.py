"""What the commands print with."""

from __future__ import annotations

import sys
from typing import Final

from socketspec.text import one_line

__all__ = ("FAILED", "MISUSED", "fail")

FAILED: Final = 1
"""The exit status of a command that could not do what it was asked."""
MISUSED: Final = 2
"""The exit status where what was asked makes no sense."""


def fail(message: str, status: int = FAILED) -> int:
    """Say on stderr what went wrong, on one line: servers have a say in it. Returns the exit status."""
    print(f"socketspec: {one_line(message)}", file=sys.stderr, flush=True)
    return status
