"""Counts instructions with callgrind (of valgrind): each case of `guarded.cases` in a process of its own.

User space only: what the kernel does, waiting, and the server of Redis are not in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from socketspec.cluster.embedded import EmbeddedServer
from tests.benchmarks.native import BUILD, HERE, compiled

__all__ = ("Counted", "Unable", "count", "marks", "median")

ROOT: Final = HERE.parents[1]
PATIENCE: Final = 300.0
"""Seconds that one case may take; some ten are usual."""
QUIET: Final = "?lease=3600&probe_interval=60"
"""Keeps the node from saying anything else to Redis while its publishes are counted."""

_COUNTED: Final = re.compile(r"^desc: Trigger: Client Request: counted$.*?^totals: (\d+)$", re.MULTILINE | re.DOTALL)


class Unable(RuntimeError):
    """Nothing could be counted; the text says why, and what to do."""


class Counted(NamedTuple):
    """What one case takes."""

    instructions: int
    """For one event, one fan-out, …"""
    spread: float
    """Percent by which the stretches differ that it is the median of."""


def count(case: str) -> Counted:
    """Count one case. Raises `Unable`."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Unable("valgrind is missing. On Debian: apt-get install valgrind, or scripts/tools.")
    folder = BUILD / "guard" / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [valgrind, "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/callgrind.out"]
    command += [sys.executable, "-s", "-m", "tests.benchmarks.guarded.cases", case, str(marks())]
    with _surroundings(case) as variables:
        times = _run(case, command, variables)
    return median(folder, times)


def marks() -> Path:
    """The library by which a case says where counting begins and ends. Raises `Unable`."""
    made = compiled(HERE / "guarded" / "marks.c", BUILD / "marks.so", "-shared", "-fPIC")
    if made is None:
        raise Unable(
            "A C compiler or valgrind's headers are missing. On Debian: apt-get install gcc libc6-dev valgrind."
        )
    return made


@contextlib.contextmanager
def _surroundings(case: str) -> Iterator[dict[str, str]]:
    """Environment variables for a case: the same ones, wherever and by whomever the guard is started."""
    variables = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    if "LD_LIBRARY_PATH" in os.environ:  # some Pythons do not start without it
        variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    if case != "publish":
        yield variables
        return
    with EmbeddedServer() as server:
        yield {**variables, "SOCKETSPEC_BACKEND": server.url + QUIET}


def _run(case: str, command: list[str], variables: dict[str, str]) -> int:
    """Run a case; how often it did its work in each stretch."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unable(f"{case} was not done within {PATIENCE:g} seconds.") from None
    if done.returncode:
        raise Unable(f"{case} failed, and was not counted:\n{done.stderr}")
    return int(done.stdout)


def median(folder: Path, times: int) -> Counted:
    """What the profiles in `folder` say, each of a stretch in which the work was done so many times."""
    profiles = [path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("callgrind.out.*")]
    stretches = [int(found[1]) for profile in profiles if (found := _COUNTED.search(profile))]
    if not stretches:
        raise Unable(f"callgrind has written nothing to {folder} that was counted between two marks.")
    middle = statistics.median(stretches)
    return Counted(round(middle / times), (max(stretches) - min(stretches)) / middle * 100)
