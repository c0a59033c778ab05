"""Versions that today's nodes and publishers work beside, each taken from the history of the repository.

Every release adds a line to `VERSIONS`; one goes when it is no longer the version before the oldest supported one.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support import ROOT

__all__ = ("RECORDED", "VERSIONS", "take")

VERSIONS: Final[Mapping[str, str]] = {
    "before forward compatibility": "aa92bc0e3655a3dc8f9f3b1938873437c0eab860",
}
"""By a name for people: the commit."""

RECORDED: Final = Path(__file__).parent / "recorded"
"""What each version wrote, for checkouts without a history."""


def take(commit: str, folder: Path) -> Path | None:
    """The sources at `commit`, in `folder`; None in a checkout whose history does not reach back to it."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "socketspec", "adapters", "cluster"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder
