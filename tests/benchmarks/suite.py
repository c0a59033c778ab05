"""What every benchmark shares: its settings, its results in a table of ratios and in JSON, its command line."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.benchmarks.environments import HOME, PEERS, prepare
from tests.benchmarks.load import pin
from tests.benchmarks.native import BUILD, describe
from tests.benchmarks.sockets import raise_file_limit
from tests.benchmarks.stage import TARGETS, Failed, Platform, Target

TEXT: Final = 81
"""Bytes of text in a message of 119 bytes, 121 with the head of its frame."""


@dataclass(frozen=True)
class Settings:
    """How much is measured. `quick` shrinks everything to what shows that it runs."""

    platform: Platform
    rounds: int = 5
    quick: bool = False
    seconds: float = 1.5
    """How long one figure is measured, about."""
    connections: int = 1000
    picture: Path = BUILD / "growth.svg"

    def targets(self, *wanted: Target) -> list[Target]:
        """Those of `wanted` that can run here; in a smoke run the first two of them."""
        found = [target for target in wanted if self.platform.can_run(target)]
        return found[:2] if self.quick else found

    def times(self, wanted: int) -> int:
        """Rounds of a benchmark that by default has `wanted` of the usual five."""
        return max(1, math.ceil(self.rounds * wanted / 5))


class Goal(NamedTuple):
    """What a figure has to reach."""

    at_least: float = -math.inf
    at_most: float = math.inf
    unit: str = ""

    def __str__(self) -> str:
        if self.at_least > -math.inf:
            return f"≥ {self.at_least:,g}{self.unit}"
        return f"≤ {self.at_most:,g}{self.unit}" if self.at_most < math.inf else ""

    def verdict(self, value: float) -> str:
        if not str(self):
            return ""
        return "ok" if self.at_least <= value <= self.at_most else "MISSED"


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: str
    against: str = ""
    theirs: str = ""
    ratio: float = math.nan
    goal: str = ""
    verdict: str = ""


@dataclass
class Results:
    """Figures by name and target, one for each round, and the rows made of them."""

    runs: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    curves: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)

    def add(self, figure: str, target: str, value: float) -> None:
        self.runs.setdefault(figure, {}).setdefault(target, []).append(value)

    def middle(self, figure: str, target: str) -> float:
        """The median of the rounds; NaN without any."""
        values = self.runs.get(figure, {}).get(target, [])
        return statistics.median(values) if values else math.nan

    def ratio(self, figure: str, target: str, other: str, other_figure: str = "") -> float:
        """The median of the ratios of figures that were taken in the same round."""
        mine = self.runs.get(figure, {}).get(target, [])
        theirs = self.runs.get(other_figure or figure, {}).get(other, [])
        pairs = [a / b for a, b in zip(mine, theirs, strict=False) if b]
        return statistics.median(pairs) if pairs else math.nan

    def compare(
        self,
        what: str,
        figure: str,
        target: Target,
        other: Target | str,
        *,
        goal: Goal | None = None,
        form: str = "{:,.0f}/s",
        other_figure: str = "",
    ) -> None:
        """A row with the ratio of two targets."""
        key, label = (other, other) if isinstance(other, str) else (other.key, other.label)
        theirs = self.middle(other_figure or figure, key)
        if math.isnan(theirs):
            return
        ratio = self.ratio(figure, target.key, key, other_figure)
        wanted = goal or Goal()
        ours = self.middle(figure, target.key)
        row = Row(what, form.format(ours), label, form.format(theirs), ratio, str(wanted), wanted.verdict(ratio))
        self.rows.append(row)

    def contrast(self, what: str, ours: str, against: str, theirs: str, ratio: float, goal: Goal) -> None:
        """A row with a ratio that was worked out elsewhere."""
        self.rows.append(Row(what, ours, against, theirs, ratio, str(goal), goal.verdict(ratio)))

    def hold(self, what: str, value: float, goal: Goal, *, form: str) -> None:
        """A row with a figure that has to reach a goal by itself."""
        self.rows.append(Row(what, form.format(value), goal=str(goal), verdict=goal.verdict(value)))

    def attempt(self, target: Target, measure: Callable[[], None]) -> None:
        """Measure a peer, which may fail: it is then left out, with a remark. Ours may not."""
        if target.key in self.failed:
            return
        say(f"  {target.label}")
        try:
            measure()
        except (Failed, OSError) as error:
            if target.app == "socketspec" and not target.environment:
                raise
            self.failed.add(target.key)
            self.remarks.append(f"{target.label} was left out: {error}")

    def merge(self, other: Results) -> None:
        """Take in what another benchmark found."""
        self.runs |= other.runs
        self.rows += other.rows
        self.curves |= other.curves
        self.remarks += other.remarks


Benchmark = Callable[[Settings], Results]


def in_turns(targets: Sequence[Target], number: int) -> Sequence[Target]:
    """The targets of a round; who comes second finds another machine, so they take turns in being first."""
    return targets[:: 1 if number % 2 == 0 else -1]


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the targets take turns")
    parser.add_argument("--quick", action="store_true", help="a smoke run: seconds, and figures that mean nothing")
    parser.add_argument("--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="for every server alike")
    parser.add_argument(
        "--peers", default=",".join(PEERS), help=f"which to install and run (default: {','.join(PEERS)})"
    )
    parser.add_argument("--home", type=Path, default=HOME, help="where the peers are installed")
    parser.add_argument("--published", default="", help="folder with the source of the published socketspec")
    parser.add_argument("--json", type=Path, default=BUILD / "results.json", help="where all figures are written")
    parser.add_argument("--picture", type=Path, default=BUILD / "growth.svg", help="where the plot is written")
    return parser


def settings_of(options: argparse.Namespace) -> tuple[Settings, list[str]]:
    """What the command line asks for, and remarks about peers that cannot run."""
    wanted = [name for name in options.peers.split(",") if name in PEERS]
    running, remarks = prepare(wanted, options.home, options.loop, options.published)
    if options.quick:
        return Settings(running, 1, quick=True, seconds=0.05, connections=50, picture=options.picture), remarks
    return Settings(running, options.rounds, picture=options.picture), remarks


def run(benchmarks: dict[str, Benchmark], description: str | None, arguments: Sequence[str] | None = None) -> Results:
    """Parse the command line, run the benchmarks, print one table, write the JSON."""
    parser = parser_of(description)
    if len(benchmarks) > 1:
        parser.add_argument("names", nargs="*", help=f"which benchmarks (default: all of {', '.join(benchmarks)})")
    options = parser.parse_args(arguments)
    unknown = set(getattr(options, "names", ())) - set(benchmarks)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(benchmarks)}")
    settings, remarks = settings_of(options)
    found = Results(remarks=remarks)
    cores, began = os.sched_getaffinity(0), time.monotonic()
    gc.disable()  # its pauses would be measured as delays
    raise_file_limit()
    pin(1)
    try:
        for name in getattr(options, "names", ()) or benchmarks:
            say(f"{name}:")
            found.merge(benchmarks[name](settings))
    finally:
        os.sched_setaffinity(0, cores)
        gc.enable()
    seconds = time.monotonic() - began
    print(table(found, settings, seconds))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(everything(found, settings, seconds), indent=1) + "\n")
    say(f"all figures: {options.json}")
    return found


def table(results: Results, settings: Settings, seconds: float) -> str:
    """The table of ratios, as Markdown."""
    head = ("", "SocketSpec", "against", "", "ratio", "goal", "")
    cells = [head, *(_cells(row) for row in results.rows)]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(head))]
    cells.insert(1, tuple("-" * width for width in widths))
    padded = (" | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in cells)
    lines = [f"| {line} |" for line in padded] if results.rows else []
    about = ", ".join(f"{key} {value}" for key, value in machine(settings).items())
    return "\n".join((*lines, "", f"{about}; {seconds:.0f} s", *(f"- {remark}" for remark in results.remarks)))


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if math.isnan(row.ratio) else f"{row.ratio:.2f}" if row.ratio < 100 else f"{row.ratio:,.0f}"
    return row.what, row.ours, row.against, row.theirs, ratio, row.goal, row.verdict


def machine(settings: Settings) -> dict[str, str]:
    """Where and with what this ran."""
    versions = {}
    for name in ("socketspec", "fastapi", "uvicorn", "websockets", "uvloop"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": str(os.cpu_count()),
        **versions,
        "loop": settings.platform.loop,
        "rounds": str(settings.rounds),
        "bare loop": describe(),
    }


def everything(results: Results, settings: Settings, seconds: float) -> dict[str, Any]:
    """All figures, for machines."""
    return {
        "machine": machine(settings),
        "quick": settings.quick,
        "seconds": round(seconds, 1),
        "rows": [row._asdict() | {"ratio": None if math.isnan(row.ratio) else row.ratio} for row in results.rows],
        "runs": results.runs,
        "curves": results.curves,
        "remarks": results.remarks,
        "targets": {target.key: target.label for target in TARGETS},
    }
