"""What of the benchmarks is written in C, compiled when it is first used.

Set ``CC`` to choose the compiler; ``CC=none`` to do without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
BUILD: Final = HERE.parents[1] / "build" / "bench"
"""Ignored by git, like everything the benchmarks write."""


def compiler() -> str | None:
    """The C compiler; None where there is none."""
    wanted = os.environ.get("CC")
    names = (wanted,) if wanted else ("cc", "gcc", "clang")
    return next((path for name in names if (path := shutil.which(name))), None)


@cache
def bare_program() -> Path | None:
    """The bare loop of ``send()``; None without a compiler."""
    return compiled(HERE / "bare.c", BUILD / "bare")


def compiled(source: Path, made: Path, *options: str) -> Path | None:
    """`source` as the program or library `made`; None where it cannot be compiled. The compiler says why."""
    command = compiler()
    if command is None:
        return None
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        made.parent.mkdir(parents=True, exist_ok=True)
        fresh = made.with_suffix(f".{os.getpid()}")  # another run may be compiling too
        if subprocess.run([command, "-O2", *options, "-o", fresh, source], check=False).returncode:
            return None
        fresh.replace(made)
    return made


def describe() -> str:
    """For the report: what the bare loop is written in."""
    return "C" if bare_program() is not None else "Python (no C compiler)"
