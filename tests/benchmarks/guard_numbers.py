"""The numbers that the guard keeps: for which environment they hold, and what counts as slower."""

from __future__ import annotations

import json
import platform
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ("FIGURES", "Allowed", "Kept", "Verdict", "environment", "judge", "load", "save", "written")

PER_CHANGE: Final = 3.0
"""Percent that a figure may be above the last change's."""
IN_ALL: Final = 5.0
"""Percent that it may be above where the counting began, all changes together."""
SIMILAR: Final = 10.0
"""Percent allowed where only other packages' numbers are kept: a release of theirs may cost or save some."""
FOREIGN: Final = 50.0
"""Percent allowed where only another Python's or machine's numbers are kept. It finds what has become twice as slow."""

PLATFORM: Final = ("machine", "python", "build")
"""What every figure depends on."""
FIGURES: Final[dict[str, tuple[str, ...]]] = {
    "event": ("pydantic", "pydantic-core"),
    "fan-out": ("pydantic", "pydantic-core"),
    "accept": ("pydantic", "pydantic-core", "fastapi", "starlette", "uvicorn", "h11", "websockets"),
    "publish": ("pydantic", "pydantic-core", "redis", "hiredis", "msgpack"),
}
"""What is counted, and the packages whose code is part of it: another release of these may have other figures."""

Figures = Mapping[str, int]


class Allowed(NamedTuple):
    """How many percent more a figure may be."""

    per_change: float = PER_CHANGE
    in_all: float = IN_ALL


@dataclass(frozen=True, slots=True)
class Kept:
    """The numbers of one environment: instructions for each figure."""

    environment: Mapping[str, str]
    start: Figures
    """Where the counting began."""
    last: Figures
    """What the last change that wrote them down had."""

    def differs(self, here: Mapping[str, str], figure: str) -> dict[str, str]:
        """What `figure` depends on and is not the same here, and how it was there."""
        there = {name: self.environment.get(name, "unknown") for name in (*PLATFORM, *FIGURES[figure])}
        return {name: value for name, value in there.items() if value != here[name]}


class Verdict(NamedTuple):
    """One figure, compared with what is kept."""

    figure: str
    now: int
    last: int
    """What the last change had."""
    start: int
    """What there was where the counting began."""
    differs: Mapping[str, str]
    """What is not as it was where these were counted, and how it was there."""
    allowed: Allowed

    @property
    def since_last(self) -> float:
        """Percent more than the last change had."""
        return (self.now / self.last - 1) * 100

    @property
    def since_start(self) -> float:
        """Percent more than at the start."""
        return (self.now / self.start - 1) * 100

    @property
    def most(self) -> float:
        """How many percent more than the last change are allowed."""
        if not self.differs:
            return self.allowed.per_change
        return FOREIGN if self.differs.keys() & set(PLATFORM) else SIMILAR

    def roughly(self) -> str:
        """What the figure was compared with, where that is not the same environment."""
        theirs = ", ".join(f"{name} {value}" for name, value in self.differs.items())
        return f"{self.figure}: compared with numbers of {theirs}, which may differ by {self.most:g} %."

    def problems(self) -> list[str]:
        """What is wrong, in sentences."""
        found = []
        if self.since_last > self.most:
            found.append(
                f"{self.figure}: {self.now:,} instructions, {self.since_last:.1f} % more than the {self.last:,} "
                f"of the last change; {self.most:g} % more are allowed."
            )
        if not self.differs and self.since_start > self.allowed.in_all:
            found.append(
                f"{self.figure}: {self.now:,} instructions, {self.since_start:.1f} % more than the {self.start:,} "
                f"at the start; {self.allowed.in_all:g} % more are allowed in all."
            )
        return found


def environment() -> dict[str, str]:
    """What the number of instructions depends on, besides our own code."""
    packages = sorted({package for packages in FIGURES.values() for package in packages})
    return {
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "build": _build(),
        **{package: version(package) for package in packages},
    }


def _build() -> str:
    """How the interpreter was compiled: it decides how many instructions a line of Python takes."""
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS"))
    flags = str(sysconfig.get_config_var("PY_CORE_CFLAGS")).split()
    chosen = [name for name in ("--enable-optimizations", "--with-lto", "--enable-shared") if name in arguments]
    level = [flag for flag in flags if flag.startswith("-O")][-1:]
    return " ".join((platform.python_compiler(), *level, *chosen))


def judge(figures: Figures, here: Mapping[str, str], kept: Iterable[Kept], allowed: Allowed) -> dict[str, Verdict]:
    """Compare each figure with the numbers of the nearest environment; none where nothing is kept."""
    verdicts = {}
    for figure, now in figures.items():
        candidates = [entry for entry in kept if figure in entry.last]
        if candidates:
            nearest = min(candidates, key=lambda entry: _distance(entry, here, figure))
            differs = nearest.differs(here, figure)
            verdicts[figure] = Verdict(figure, now, nearest.last[figure], nearest.start[figure], differs, allowed)
    return verdicts


def _distance(kept: Kept, here: Mapping[str, str], figure: str) -> tuple[bool, bool, int]:
    """Another minor version of Python is further away than any packages."""
    differs = kept.differs(here, figure)
    return "machine" in differs, _minor(kept.environment) != _minor(here), len(differs)


def _minor(environment: Mapping[str, str]) -> str:
    return environment["python"].rpartition(".")[0]


def written(figures: Figures, here: Mapping[str, str], kept: Sequence[Kept], *, as_start: bool = False) -> list[Kept]:
    """`kept` with these figures as those of the last change. There is one entry for each Python on each machine.

    Where packages have changed meanwhile, what was used up of the percents allowed in all stays used up.
    """
    before = next((entry for entry in kept if all(entry.environment[name] == here[name] for name in PLATFORM)), None)
    start = dict(figures)
    if before is not None and not as_start:
        for figure in start.keys() & before.start.keys():
            is_same = not before.differs(here, figure)
            share = before.start[figure] / before.last[figure]
            start[figure] = before.start[figure] if is_same else round(start[figure] * share)
    return [*(entry for entry in kept if entry is not before), Kept(dict(here), start, dict(figures))]


def load(path: Path) -> list[Kept]:
    """The numbers kept in a file; none where there is no file."""
    if not path.exists():
        return []
    return [Kept(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]


def save(path: Path, kept: Iterable[Kept]) -> None:
    """Keep the numbers in a file."""
    path.write_text(json.dumps([asdict(entry) for entry in kept], indent=2) + "\n", encoding="utf-8")
