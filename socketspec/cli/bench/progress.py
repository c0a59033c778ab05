"""How a run goes on, on a terminal as a bar, elsewhere as a line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Final, TextIO

__all__ = ("Progress",)

WIDTH: Final = 24
"""Characters of the bar."""
LINE_EVERY: Final = 5.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Shows how far a run is. It writes to stderr, so that the summary can be piped."""

    def __init__(self, out: TextIO | None = None, *, is_quiet: bool = False) -> None:
        self._out = out or sys.stderr
        self._is_quiet = is_quiet
        self._is_terminal = self._out.isatty()
        self._last = float("-inf")
        self._phase = ""
        self._has_bar = False

    def show(self, phase: str, part: float, text: str) -> None:
        """Show that `part` (0 to 1) of a phase is done."""
        if self._is_quiet:
            return
        if self._is_terminal:
            filled = round(min(max(part, 0.0), 1.0) * WIDTH)
            line = f"{phase:<11}[{'#' * filled}{'.' * (WIDTH - filled)}] {text}"
            width = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r\x1b[2K{line[:width]}")
            self._out.flush()
            self._has_bar = True
            return
        now = time.monotonic()
        if phase != self._phase or now - self._last >= LINE_EVERY:
            self._phase, self._last = phase, now
            print(f"{phase}: {text}", file=self._out, flush=True)

    def end(self) -> None:
        """Take the bar away."""
        if self._has_bar:
            self._out.write("\r\x1b[2K")
            self._out.flush()
            self._has_bar = False
