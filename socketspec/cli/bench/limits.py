"""Open files: a process may have only so many, and each connection is one."""

from __future__ import annotations

import sys
from typing import Final

from socketspec.cli.bench.load import Load, MisuseError

__all__ = ("allow_files",)

SPARE: Final = 64
"""Open files of a process that are no connections."""


def allow_files(load: Load) -> None:
    """Let this process and the ones it starts open as many files as a run needs. Raises `MisuseError`."""
    if sys.platform == "win32":
        return
    import resource  # not on every platform

    needed = -(-load.connections // load.processes) + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        most = hard - SPARE
        raise MisuseError(
            f"{load.connections:,} connections in {load.processes} process(es) need {needed:,} open files each, and "
            f"this shell allows {hard:,}: use --processes {-(-load.connections // most) if most > 0 else 'more'}, "
            "or raise the hard limit (`ulimit -Hn`, as root; LimitNOFILE= in systemd; /etc/security/limits.conf)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
