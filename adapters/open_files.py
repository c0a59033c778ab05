"""How many files a process may have open: raised as far as it may be, and shared out between connections and others.

Each connection is an open file. Containers begin with 1,024, of which a process may allow itself far more. Needs no
server: `socketspec plan` reckons with the same numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

__all__ = ("OWN_FILES", "UNLIMITED", "connections_for", "files_for", "free_files", "raise_limit", "reserve_of")

UNLIMITED: Final = 1 << 30
"""What counts as no limit at all."""
LEAST_RESERVE: Final = 16
MOST_RESERVE: Final = 512
OWN_FILES: Final = 64
"""Files that a server has open itself, before the first connection."""


def raise_limit() -> int:
    """Let this process, and those that it starts, open as many files as it may. Returns how many that is."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return UNLIMITED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # macOS says there is no limit, and has one
        return _finite(soft)
    return _finite(hard)


def free_files() -> int:
    """How many more files this process may open."""
    try:
        import resource
    except ImportError:
        return UNLIMITED
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(0, _finite(soft) - _open_now())


def reserve_of(files: int) -> int:
    """Of so many files, those that are kept for probes, refusals, Redis and what the application opens."""
    return min(MOST_RESERVE, max(LEAST_RESERVE, files // 8), files // 2)


def connections_for(files: int) -> int:
    """WebSocket connections for which so many files suffice."""
    return max(1, files - reserve_of(files))


def files_for(connections: int) -> int:
    """Open files with which a server takes so many connections: those, its reserve, and its own."""
    # The reserve is an eighth of all, so a seventh of the rest.
    return connections + min(MOST_RESERVE, max(LEAST_RESERVE, math.ceil(connections / 7))) + OWN_FILES


def _open_now() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        if Path(folder).is_dir():
            return sum(1 for _ in Path(folder).iterdir())
    return LEAST_RESERVE


def _finite(limit: int) -> int:
    # "Unlimited" is -1 on some systems, and the largest number on others.
    return UNLIMITED if limit < 0 else min(limit, UNLIMITED)
