"""The wall clock of a node, which a test sets wrong. Import it before anything that keeps `time.time` for later.

Only `time.time` is replaced: the monotonic clock of a machine does not jump when its wall clock is set, and PyJWT asks
`datetime` (tokens of these tests last for days). Redis keeps its own time.
"""

from __future__ import annotations

import time

__all__ = ("set_wrong",)

_right = time.time
_wrong_by = 0.0


def set_wrong(seconds: float) -> None:
    """From now on the wall clock is so many seconds ahead; behind, where negative."""
    global _wrong_by
    _wrong_by = seconds


def _wall_clock() -> float:
    return _right() + _wrong_by


time.time = _wall_clock
