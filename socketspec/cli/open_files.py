"""How many open files a node takes: what `socketspec serve` keeps in reserve, as arithmetic that needs no server."""

from __future__ import annotations

import math
from typing import Final

__all__ = ("OWN_FILES", "files_for")

LEAST_RESERVE: Final = 16
MOST_RESERVE: Final = 512
"""Of the files that are left when it starts, `socketspec serve` keeps an eighth for other things; within these."""
OWN_FILES: Final = 64
"""Files that it has open itself."""


def files_for(connections: int) -> int:
    """Open files with which `socketspec serve` takes so many connections: those, its reserve, and its own."""
    return connections + min(MOST_RESERVE, max(LEAST_RESERVE, math.ceil(connections / 7))) + OWN_FILES
