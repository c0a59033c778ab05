"""What a run says of itself: how many tests and about how long before it, what was skipped and how to get it after it.

A reason for a skip begins with what is missing, then a colon and how to get it: "chromium: scripts/tools". More may
follow after a semicolon; `pytest -rs` shows it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from pathlib import PurePath
from typing import Final

import pytest

__all__ = ("Account", "duration", "skipped")

REMEMBERED: Final = "socketspec/seconds"
"""Where pytest's cache keeps the seconds that a test of each folder took in the last large run."""
LARGE: Final = 1_000
"""Tests of a run that says how long those of a folder take."""
FIRST_GUESS: Final = {"benchmarks": 2.0, "cluster": 1.0, "contract": 0.1, "deploy": 0.5, "e2e": 0.5, "unit": 0.02}
"""The same where there was none."""
USUAL: Final = 0.1
"""The same for a folder that nothing is known of."""


class Account:
    """The plugin. Under pytest-xdist it works in the process that the workers report to."""

    def __init__(self, config: pytest.Config, reporter: pytest.TerminalReporter) -> None:
        self._cache: pytest.Cache | None = getattr(config, "cache", None)  # there is none with -p no:cacheprovider
        self._reporter = reporter
        self._workers = len(config.option.tx) if getattr(config.option, "dist", "no") != "no" else 0
        self._announced = False
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._tests: Counter[str] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """All in one process: say what begins."""
        if not self._workers and not session.config.option.collectonly:
            self._announce([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """The first worker has found its tests, which are everybody's: say what begins."""
        if not self._announced:
            self._announce(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take note of how long it took."""
        folder = _folder(report.nodeid)
        self._seconds[folder] += report.duration
        self._tests[folder] += report.when == "setup"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        """Remember how long it took, and end with what was skipped."""
        yield
        if self._tests.total() >= LARGE and self._cache is not None:
            each = {folder: self._seconds[folder] / count for folder, count in self._tests.items()}
            self._cache.set(REMEMBERED, self._remembered() | each)
        reasons = Counter(_reason(report) for report in self._reporter.stats.get("skipped", ()))
        if reasons:
            self._reporter.write_line(skipped(reasons))

    def _announce(self, ids: Sequence[str]) -> None:
        self._announced = True
        each = self._remembered()
        alone = sum(each.get(_folder(nodeid), USUAL) for nodeid in ids)
        workers = f" on {self._workers} workers" if self._workers else ""
        self._reporter.write_line(f"{len(ids):,} tests{workers}: about {duration(alone / max(self._workers, 1))}")

    def _remembered(self) -> dict[str, float]:
        remembered: dict[str, float] = self._cache.get(REMEMBERED, {}) if self._cache is not None else {}
        return FIRST_GUESS | remembered


def duration(seconds: float) -> str:
    """`seconds` as one says it: "20 seconds", "3 minutes"."""
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{max(round(seconds, -1), 10):.0f} seconds"


def skipped(reasons: Counter[str]) -> str:
    """The one line for these reasons, the most frequent first."""
    ways: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for reason, count in reasons.items():
        what, _, rest = reason.partition(": ")
        counts[what] += count
        ways.setdefault(what, rest.partition("; ")[0])
    parts = [f"{what} ({count})" + (f": {ways[what]}" if ways[what] else "") for what, count in counts.most_common()]
    return f"{reasons.total()} skipped: {'; '.join(parts)}"


def _reason(report: pytest.TestReport) -> str:
    """Why it was skipped: pytest keeps it as file, line and text."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _folder(nodeid: str) -> str:
    """The folder of `tests` that a test is in."""
    parts = PurePath(nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 2 else ""
