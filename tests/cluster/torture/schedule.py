"""What happens in a run, all of it drawn from one seed: which faults, to whom, for how long. No I/O here."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, get_args

from tests.cluster.torture.common import LEASE, NODES

__all__ = ("FAULTS", "MODES", "Mode", "Round", "mode_of", "schedule")

Mode = Literal["single", "sentinel", "cluster"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

EVERYWHERE: Final = (
    "nothing",
    "node killed",
    "node stopped",
    "node frozen briefly",
    "node frozen beyond its lease",
    "redis frozen briefly",
    "redis frozen beyond a lease",
    "clients of redis killed",
    "subscribers of redis killed",
    "clock of a node wrong",
)
FAULTS: Final[dict[Mode, tuple[str, ...]]] = {
    "single": (
        *EVERYWHERE,
        "redis restarted with its data",
        "redis away beyond a lease",
        "redis restarted without its data",
        "redis flushed",
        "link of a node cut briefly",
        "link of a node cut beyond a lease",
        "link of a node cut upwards",
        "link of a node cut downwards",
        "all links cut beyond a lease",
        "links reset",
        "link of a node slow",
        "node killed while another loses replies",
    ),
    "sentinel": (*EVERYWHERE, "primary killed", "primary switched", "primary and a node killed"),
    "cluster": (*EVERYWHERE, "primary killed", "primary switched", "primary and a node killed"),
}
"""The kinds of faults, by what there is to break."""
ENDINGS: Final = ("briefly", "slow", "reset", "killed", "upwards", "downwards")


@dataclass(frozen=True)
class Round:
    """Clients do as they like; then comes a fault, which is healed; then all is quiet and has to be true."""

    number: int
    fault: str
    node: int
    """Whom it concerns, where it concerns one node."""
    other: int
    """Another node, where it concerns two."""
    seconds: float
    """How long the fault lasts."""
    wrong_by: float
    """By how many seconds a clock is set wrong."""
    before: float
    """Seconds of ordinary life before the fault."""
    after: float
    """The same between its end and the quiet."""

    def __str__(self) -> str:
        return (
            f"round {self.number}: {self.fault}; node {self.node}, other {self.other}, {self.seconds:.2f} s, "
            f"clock {self.wrong_by:+.0f} s; {self.before:.2f} s before, {self.after:.2f} s after"
        )


def mode_of(seed: int) -> Mode:
    """The servers that a seed stands for, where nobody chooses them."""
    return Random(f"{seed} mode").choice(MODES)


def schedule(seed: int, mode: Mode, only: Collection[str] = ()) -> Iterator[Round]:
    """Rounds without end: every kind of fault before any comes again.

    With `only`, those that are named there, or where none is, those that have one of these words in their name. Raises
    `ValueError` where no kind is left.
    """
    random = Random(f"{seed} {mode} schedule")
    kinds = [kind for kind in FAULTS[mode] if not only or kind in only]
    kinds = kinds or [kind for kind in FAULTS[mode] if any(word in kind for word in only)]
    if not kinds:
        raise ValueError(f"no fault of {mode} has any of {only} in its name: {', '.join(FAULTS[mode])}")
    bag: list[str] = []
    for number in itertools.count(1):
        if not bag:
            bag = random.sample(kinds, len(kinds))
        fault = bag.pop()
        node, other = random.sample(range(NODES), 2)
        is_long = "beyond" in fault or (not fault.endswith(ENDINGS) and random.random() < 0.5)
        yield Round(
            number,
            fault,
            node,
            other,
            seconds=LEASE * (random.uniform(1.2, 2.2) if is_long else random.uniform(0.1, 0.6)),
            wrong_by=random.choice((-1, 1)) * random.choice((5.0, 100.0, 2 * 3600.0)),
            before=random.uniform(0.5, 2.0),
            after=random.uniform(0.0, 1.0),
        )
