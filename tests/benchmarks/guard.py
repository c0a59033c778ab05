"""Count the instructions of what is done most often, and fail where they are more than what is kept in guard.json.

    python tests/benchmarks/guard.py [event fan-out accept publish] [--write]

`make bench-guard` runs this. Seconds depend on what else the machine does; how many instructions the same work takes
does not. What is counted, and what to do when it fails: `docs/performance.md`.
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
    Kept,
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

_UNKNOWN: Final = "No kept numbers for this key; ran and printed; write them with `make bench-guard ARGS=--write`."
_SLOWER: Final = """
What costs it? The count is exact, so `git bisect run make bench-guard ARGS=NAME` finds the commit. Where it is worth
its price: `make bench-guard ARGS=--write`, and say why in the commit."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "figures", nargs="*", metavar="NAME", help=f"what to count: {', '.join(FIGURES)} (default: all)"
    )
    parser.add_argument("--write", action="store_true", help="keep the numbers as those of the last change")
    parser.add_argument("--write-start", action="store_true", help="and as those that --in-all counts from")
    parser.add_argument("--numbers", type=Path, default=NUMBERS, metavar="FILE", help="where they are kept")
    parser.add_argument("--tolerance", type=float, default=PER_CHANGE, metavar="PERCENT", help="more in one change")
    parser.add_argument("--in-all", type=float, default=IN_ALL, metavar="PERCENT", help="more since the start")
    found = parser.parse_args()
    if unknown := set(found.figures) - FIGURES.keys():
        parser.error(f"there is no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if found.figures and (found.write or found.write_start):
        parser.error("only all figures together are written; leave out the names")
    return found


def report(counted: Mapping[str, Counted], verdicts: Mapping[str, Verdict]) -> None:
    """Print the table."""
    print(f"{'instructions':<14}{'now':>12}{'last change':>15}{'':>9}{'most':>7}{'start':>15}{'':>9}{'most':>7}")
    for figure, found in counted.items():
        line = f"{figure:<14}{found.instructions:>12,}"
        if figure in verdicts:
            verdict = verdicts[figure]
            line += f"{verdict.last:>15,}{verdict.since_last:>+8.2f}%{verdict.most:>+6g}%"
            line += (
                ""
                if verdict.differs
                else f"{verdict.start:>15,}{verdict.since_start:>+8.2f}%{verdict.allowed.in_all:>+6g}%"
            )
        print(line + (f"   stretches differ by {found.spread:.1f} %" if found.spread > UNSTEADY else ""))


def compare(counted: Mapping[str, Counted], here: Mapping[str, str], kept: Sequence[Kept], allowed: Allowed) -> int:
    """Print how the figures compare with what is kept; the exit code."""
    figures = {figure: found.instructions for figure, found in counted.items()}
    verdicts = judge(figures, here, kept, allowed)
    report(counted, verdicts)
    unknown = [figure for figure in figures if figure not in verdicts or verdicts[figure].differs]
    if unknown:
        print(f"\n{_UNKNOWN}\nKey: {', '.join(f'{name} {value}' for name, value in here.items())}.")
    for figure in unknown:
        print(verdicts[figure].roughly() if figure in verdicts else f"{figure}: nothing is kept to compare with.")
    problems = [problem for verdict in verdicts.values() for problem in verdict.problems()]
    print("".join(f"\n{problem}" for problem in problems))
    if problems:
        print(_SLOWER)
    return 1 if problems or len(verdicts) < len(figures) else 0


def main() -> int:
    options = arguments()
    counted: dict[str, Counted] = {}
    try:
        for figure in options.figures or FIGURES:
            counted[figure] = count(figure)
    except Unable as reason:
        print(f"Nothing was compared. {reason}", file=sys.stderr)
        return 2
    here, kept = environment(), load(options.numbers)
    code = compare(counted, here, kept, Allowed(options.tolerance, options.in_all))
    if not (options.write or options.write_start):
        return code
    figures = {figure: found.instructions for figure, found in counted.items()}
    save(options.numbers, written(figures, here, kept, as_start=options.write_start))
    print(f"Written to {options.numbers}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
