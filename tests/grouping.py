"""Which tests run on the same worker of pytest-xdist, and which begin first.

Tests need no marks for it: what their fixtures are, and which folder they are in, says it all. The first worker writes
down the groups of the tests that it has found, and the controller, which looks for no tests itself, reads them. (The
marks of pytest-xdist would be a suffix of every test's name, and are without effect in pytest 9.2.)
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

__all__ = ("Grouping",)

TESTS: Final = Path(__file__).parent
SHARED: Final = ("class", "module", "package")
"""Scopes of fixtures that are made once for several tests: all of those run where it is made."""
COSTLY: Final = ("breakable_sentinels", "breakable_cluster", "sentinel_servers", "cluster_servers")
"""Fixtures of the session that take seconds: their tests run on one worker each, so that they are made once."""
QUICK: Final = ("contract", "unit")
"""Folders whose tests take a moment each: they come last, and fill up what is left."""
BY_FILE: Final = (*QUICK, "deploy")
"""Folders whose files are given out whole: their tests are quick, or share what a process keeps once it was made."""
FILE: Final = "groups_file"
"""What a worker is told the path of the groups as."""


class Grouping:
    """The plugin, in the controller and in every worker."""

    def __init__(self, config: pytest.Config) -> None:
        self._told: dict[str, Any] = getattr(config, "workerinput", {})
        self._folder = Path()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tell a worker where to write."""
        if not self._folder.name:
            self._folder = Path(tempfile.mkdtemp(prefix="socketspec-groups-"))
        node.workerinput[FILE] = str(self._folder / FILE)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
        """What `-n 2` means here."""
        return _ByGroup(config, log, self._folder / FILE) if config.option.dist == "load" else None

    @pytest.hookimpl(trylast=True)  # pytest has put together what shares a parameter
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put first what takes longest, so that no worker is left with it at the end."""
        items.sort(key=_turn)

    @pytest.hookimpl(tryfirst=True)  # before the controller hears of them
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write the groups down."""
        if self._told.get("workerid") == "gw0":
            groups = {item.nodeid: group for item in session.items if (group := _group(item))}
            Path(self._told[FILE]).write_text(json.dumps(groups), encoding="utf-8")

    def pytest_unconfigure(self) -> None:
        """Remove what was written."""
        if self._folder.name:
            shutil.rmtree(self._folder)


class _ByGroup(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist ships no types
    """Gives out tests group by group, in the order in which they were found."""

    def __init__(self, config: pytest.Config, log: Producer, file: Path) -> None:
        super().__init__(config, log)
        self._file = file
        self._groups: dict[str, str] = {}

    def schedule(self) -> None:
        """Once every worker has found its tests; once more for one that replaces a crashed one."""
        if not self._groups:
            self.config.option.loadscopereorder = False  # else the largest groups came first, which are the quickest
            self._groups = json.loads(self._file.read_text(encoding="utf-8"))
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self._groups.get(nodeid, nodeid)


def _group(item: pytest.Item) -> str:
    """The name of the tests that run one after the other on one worker; "" where any worker will do."""
    assert isinstance(item, pytest.Function)
    path = item.path.relative_to(TESTS)
    given = item.callspec.params if hasattr(item, "callspec") else {}
    if shared := sorted(name for name in item.fixturenames if _scope(item, name) in SHARED):
        return "-".join([path.as_posix(), *(f"{name}={given[name]}" for name in shared if name in given)])
    for name in COSTLY:
        if name in item.fixturenames or f"{given.get('subject')}_servers" == name:  # the contract's backend
            return name
    return path.as_posix() if path.parts[0] in BY_FILE else ""


def _scope(item: pytest.Function, name: str) -> str:
    made = item._fixtureinfo.name2fixturedefs.get(name)  # noqa: SLF001 - pytest has no public way to ask
    return made[-1].scope if made else "function"


def _turn(item: pytest.Item) -> tuple[bool, bool]:
    return item.path.relative_to(TESTS).parts[0] in QUICK, item.get_closest_marker("slow") is None
