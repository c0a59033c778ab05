"""Compiles the project once, so that none of the hundreds of processes that the tests start has to do it again.

Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each would: that is a third of what it takes to start.
"""

from __future__ import annotations

import compileall
import sys
from pathlib import Path

__all__ = ("compile_all", "keep_compiled")

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("socketspec", "adapters", "cluster", "deploy")  # links are not followed: the linked folders are named


def keep_compiled() -> None:
    """Have pytest keep what it makes of the tests, too."""
    sys.dont_write_bytecode = False


def compile_all() -> None:
    """Compile what has changed."""
    for folder in FOLDERS:
        compileall.compile_dir(ROOT / folder, quiet=2)
