"""Changes the code in small ways and counts how many of the changes the tests notice.

    make mutation ARGS="socketspec/fanout/hub.py"                40 changes, drawn with a seed that is printed
    make mutation ARGS="socketspec/fanout/hub.py --all"          every change there is
    make mutation ARGS="socketspec --draw 10 --seed 7"           10 in each file of a folder

The judges are the unit tests, and the contract tests on the memory backend. What they do not notice is printed. It
shows a missing test, code that is not needed, or a change that makes no difference: ``equivalent.txt`` lists the last
kind, each change below its reason.
"""

from __future__ import annotations

import argparse
import difflib
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.mutation.changes import Change, changes
from tests.mutation.judge import Judge, Verdict

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
MISSED = "NOT NOTICED ("
LEFT_OUT = ("_server", "_servers")
"""Tests with a fixture that is called so need other processes; a copy of this process cannot share them."""


class Campaign:
    """A plugin that asks the tests about changes instead of running them."""

    def __init__(self, options: argparse.Namespace, files: Sequence[Path]) -> None:
        self._options = options
        self._files = files
        self._equivalent = read_equivalent(EQUIVALENT.read_text(encoding="utf-8"))
        self.missed = 0

    def pytest_sessionstart(self) -> None:
        from hypothesis import settings  # not earlier: pytest warns of modules that its plugins find imported

        # Without luck and without haste: the same examples each time, on a machine that may be busy.
        settings.register_profile("mutation", derandomize=True, deadline=None, database=None)
        settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if _is_judge(item)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        began = time.monotonic()
        judge = Judge(session, self._files)
        for test in judge.measured.failed:
            print(f"left out, it fails without a change: {session.items[test].nodeid}")
        print(f"{len(session.items)} tests, {time.monotonic() - began:.0f} s; seed {self._options.seed}", flush=True)
        totals: Counter[str] = Counter()
        for file in self._files:
            totals += self._judge(judge, file)
        if len(self._files) > 1:
            _say("all", totals)
        print(f"{time.monotonic() - began:.0f} s")
        return True

    def _judge(self, judge: Judge, file: Path) -> Counter[str]:
        source = file.read_text(encoding="utf-8")
        counts: Counter[str] = Counter()
        for change, name in self._drawn(source):
            if name in self._equivalent:
                counts["equivalent"] += 1
                continue
            verdict = judge.about(file, change)
            if verdict.by == "cannot be applied":
                continue
            counts["drawn"] += 1
            counts["noticed"] += verdict.noticed
            if not verdict.noticed:
                self.missed += 1
                self._show(file, source, change, name, verdict)
            elif self._options.verbose:
                print(f"noticed: {name}\n    {verdict.by}", flush=True)
        _say(str(file.relative_to(ROOT)), counts)
        return counts

    def _drawn(self, source: str) -> list[tuple[Change, str]]:
        named = list(numbered(changes(source)))
        if self._options.again is not None:
            missed = read_missed(self._options.again.read_text(encoding="utf-8"))
            return [item for item in named if item[1] in missed]
        wanted = [item for item in named if self._options.only in item[1]]
        if self._options.all or len(wanted) <= self._options.draw:
            return wanted
        drawn = random.Random(self._options.seed).sample(wanted, self._options.draw)  # noqa: S311 - no secret
        return sorted(drawn, key=lambda item: item[0].lines.start)

    def _show(self, file: Path, source: str, change: Change, name: str, verdict: Verdict) -> None:
        where = str(file.relative_to(ROOT))
        diff = difflib.unified_diff(source.splitlines(), change.source.splitlines(), where, where, lineterm="", n=1)
        print(f"\n{MISSED}{verdict.by}): {name}")
        print("\n".join(line for line in list(diff)[2:] if line not in ("+", "-")), flush=True)


def numbered(found: Sequence[Change]) -> Iterator[tuple[Change, str]]:
    """Each change with its name; where several have the same, with a number."""
    seen: Counter[str] = Counter()
    for change in found:
        seen[change.name] += 1
        yield change, change.name if seen[change.name] == 1 else f"{change.name}  ({seen[change.name]})"


def read_equivalent(text: str) -> dict[str, str]:
    """Names of changes of which nobody could tell, and the reasons, which stand above them."""
    found: dict[str, str] = {}
    reason = ""
    for line in text.splitlines():
        if line.startswith("#"):
            reason = line.removeprefix("#").strip()
        elif line.strip():
            found[line.strip()] = reason
    return found


def read_missed(text: str) -> set[str]:
    """The names of the changes that an earlier campaign, which printed `text`, found not to be noticed."""
    return {line.partition("): ")[2] for line in text.splitlines() if line.startswith(MISSED)}


def _is_judge(item: pytest.Item) -> bool:
    parameters = getattr(item, "callspec", None)
    backend = "memory" if parameters is None else parameters.params.get("subject", "memory")
    fixtures: Sequence[str] = getattr(item, "fixturenames", ())
    return backend == "memory" and not any(name.endswith(LEFT_OUT) for name in fixtures)


def _say(what: str, counts: Counter[str]) -> None:
    drawn, noticed = counts["drawn"], counts["noticed"]
    share = f"{noticed / drawn:.1%}" if drawn else "none"
    print(f"{what}: {drawn} changes, {noticed} noticed ({share}); {counts['equivalent']} equivalent", flush=True)


def _files(patterns: Sequence[str]) -> list[Path]:
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = sorted(ROOT.glob(pattern))
        if not matches:
            raise SystemExit(
                f"no file is called {pattern!r}; give paths from the project's root, such as socketspec/fanout/hub.py"
            )
        for match in matches:
            for file in sorted(match.rglob("*.py")) if match.is_dir() else [match]:
                found.setdefault(file)
    return list(found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutation ARGS=…", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="source files, folders or glob patterns")
    parser.add_argument("--draw", type=int, default=40, metavar="N", help="changes drawn in each file (default: 40)")
    parser.add_argument("--all", action="store_true", help="every change")
    parser.add_argument("--only", default="", metavar="TEXT", help="changes whose name has this text")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only what the campaign missed that printed this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", nargs="+", default=["tests/unit", "tests/contract"], metavar="PATH")
    parser.add_argument("--verbose", action="store_true", help="name the test that noticed each change")
    options = parser.parse_args()
    files = _files(options.files)
    campaign = Campaign(options, files)
    arguments = ["-q", "-s", "--no-header", "-p", "no:cacheprovider", "-o", "timeout=0"]
    status = pytest.main([*arguments, *options.tests], plugins=[campaign])
    return 1 if campaign.missed or status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) else 0


if __name__ == "__main__":
    sys.exit(main())
