"""Which tests run on the same worker of pytest-xdist, and which begin first.

Tests need no marks for it: what their fixtures are, and which folder they are in, says it all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

__all__ = ("mark_group", "turn")

TESTS: Final = Path(__file__).parent
SHARED: Final = ("class", "module", "package")
"""Scopes of fixtures that are made once for several tests: all of those run where it is made."""
QUICK: Final = ("contract", "unit")
"""Folders whose tests take a moment each: given out file by file, and last, so that they fill up what is left."""


def mark_group(item: pytest.Item) -> None:
    """Tell pytest-xdist which group `item` belongs to, if any."""
    if group := _group(item):
        item.add_marker(pytest.mark.xdist_group(group))


def turn(item: pytest.Item) -> tuple[bool, bool]:
    """What tests are sorted by: the slow ones begin first, so that no worker is left with them at the end."""
    return item.path.relative_to(TESTS).parts[0] in QUICK, item.get_closest_marker("slow") is None


def _group(item: pytest.Item) -> str:
    """The name of the tests that run one after the other on one worker; "" where any worker will do."""
    assert isinstance(item, pytest.Function)
    path = item.path.relative_to(TESTS)
    shared = sorted(name for name in item.fixturenames if _scope(item, name) in SHARED)
    if not shared:
        return path.as_posix() if path.parts[0] in QUICK else ""
    given = item.callspec.indices if hasattr(item, "callspec") else {}
    return "-".join([path.as_posix(), *(f"{name}{given[name]}" for name in shared if name in given)])


def _scope(item: pytest.Function, name: str) -> str:
    made = item._fixtureinfo.name2fixturedefs.get(name)  # noqa: SLF001 - pytest has no public way to ask
    return made[-1].scope if made else "function"
