"""Count the instructions of what is done most often, and fail where they are more than what is kept in guard.json.

    python tests/benchmarks/guard.py [event fan-out accept publish] [--write]

`make bench-guard` runs this. Seconds depend on what else the machine does; how many instructions the same work takes
hardly does. What is counted, and what to do when it fails: `docs/performance.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.callgrind import Counted, Unable, count
from tests.benchmarks.guard_numbers import (
    FIGURES,
    IN_ALL,
    PER_CHANGE,
    Allowed,
    Verdict,
    environment,
    judge,
    load,
    save,
    written,
)

NUMBERS: Final = Path(__file__).with_suffix(".json")
UNSTEADY: Final = 1.0
"""Percent of difference between the stretches of one figure that is worth a word."""

_UNKNOWN: Final = """
No kept numbers for this key; ran and printed; write them with `make bench-guard ARGS=--write`.
Key: {key}."""
_SLOWER: Final = """
On one machine the count repeats within 0.3 %, so `git bisect run make bench-guard ARGS={figure}` finds the commit that
costs it; another machine may count 1 % more or less. Where it is worth its price: `make bench-guard ARGS=--write`, and
the commit says why."""
_BETTER: Final = """
{figure}: {percent:.1f} % less than the last change. So that it stays so: `make bench-guard ARGS=--write`."""


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "figures", nargs="*", metavar="NAME", help=f"what to count: {', '.join(FIGURES)} (default: all)"
    )
    parser.add_argument("--write", action="store_true", help="keep the numbers as those of the last change")
    parser.add_argument("--write-start", action="store_true", help="and as those that --in-all counts from")
    parser.add_argument("--numbers", type=Path, default=NUMBERS, metavar="FILE", help="where they are kept")
    parser.add_argument("--tolerance", type=float, default=PER_CHANGE, metavar="PERCENT", help="more in one change")
    parser.add_argument("--in-all", type=float, default=IN_ALL, metavar="PERCENT", help="more since the start")
    found = parser.parse_args(given)
    if unknown := set(found.figures) - FIGURES.keys():
        parser.error(f"there is no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if found.figures and (found.write or found.write_start):
        parser.error("only all figures together are written; leave out the names")
    return found


def report(counted: Mapping[str, Counted], verdicts: Mapping[str, Verdict]) -> None:
    """Print the table."""
    print(f"{'instructions':<14}{'now':>12}{'last change':>15}{'':>9}{'most':>7}{'start':>15}{'':>9}{'most':>7}")
    for figure, found in counted.items():
        unsteady = f"   stretches differ by {found.spread:.1f} %" if found.spread > UNSTEADY else ""
        print(f"{figure:<14}{found.instructions:>12,}{_columns(verdicts.get(figure))}{unsteady}")


def _columns(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    last = f"{verdict.last:>15,}{verdict.since_last:>+8.2f}%{verdict.most:>+6g}%"
    if verdict.differs:
        return last
    return f"{last}{verdict.start:>15,}{verdict.since_start:>+8.2f}%{verdict.allowed.in_all:>+6g}%"


def compare(figures: Mapping[str, int], verdicts: Mapping[str, Verdict], here: Mapping[str, str]) -> int:
    """Say what to think of the figures; the exit code."""
    unknown = [figure for figure in figures if figure not in verdicts or verdicts[figure].differs]
    if unknown:
        print(_UNKNOWN.format(key=", ".join(f"{name} {value}" for name, value in here.items())))
    for figure in unknown:
        print(verdicts[figure].roughly() if figure in verdicts else f"{figure}: nothing is kept to compare it with.")
    for figure, verdict in verdicts.items():
        if verdict.is_better:
            print(_BETTER.format(figure=figure, percent=-verdict.since_last))
    slower = [figure for figure, verdict in verdicts.items() if verdict.problems()]
    for figure in slower:
        print("", *verdicts[figure].problems(), sep="\n")
    if slower:
        print(_SLOWER.format(figure=slower[0]))
    return 1 if slower or len(verdicts) < len(figures) else 0


def main(given: Sequence[str] | None = None) -> int:
    """Count, compare, and write down if asked to; the exit code."""
    options = arguments(given)
    try:
        counted = {figure: count(figure) for figure in options.figures or FIGURES}
    except Unable as reason:
        print(f"Nothing was compared. {reason}", file=sys.stderr)
        return 2
    figures = {figure: found.instructions for figure, found in counted.items()}
    here, kept = environment(), load(options.numbers)
    verdicts = judge(figures, here, kept, Allowed(options.tolerance, options.in_all))
    report(counted, verdicts)
    code = compare(figures, verdicts, here)
    if options.write or options.write_start:
        save(options.numbers, written(figures, here, kept, as_start=options.write_start))
        print(f"\nWritten to {options.numbers}.")
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
