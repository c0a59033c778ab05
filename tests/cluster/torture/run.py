"""Runs a schedule against real nodes and servers: ``python -m tests.cluster.torture.run --seed 7 --seconds 60``.

Every round ends in a quiet, in which all that was promised has to be true. The first that is not ends the run: it prints
the command that repeats it, what the rounds were, what is wrong, and the last lines of every log.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final

from tests.cluster.torture.book import Book
from tests.cluster.torture.breaks import BREAKS
from tests.cluster.torture.checks import Checks
from tests.cluster.torture.common import LEASE
from tests.cluster.torture.crowd import Crowd
from tests.cluster.torture.faults import Faults
from tests.cluster.torture.ground import Ground
from tests.cluster.torture.schedule import MODES, Mode, Round, mode_of, schedule
from tests.cluster.torture.stalls import Stalls

__all__ = ("BrokenPromise", "main", "torture")

READY_WITHIN: Final = 15.0
"""Seconds after a fault in which every node is to hear Redis again: probes, timeouts and pauses before tries together."""
AT_ONCE: Final = 1.0
"""Seconds after that in which orders that were missed are carried out."""
TRUE_WITHIN: Final = 2 * LEASE + 4.0
"""The same for presence and hooks: a dead node's lease, the claim of a reaper that died, and a renewal."""
HEARD_WITHIN: Final = 5.0
LINES: Final = 25
"""Of each log that are shown."""


class BrokenPromise(AssertionError):
    """What was promised is not true; the text says all that is known of it."""


class Run:
    """One run on `ground`."""

    def __init__(self, ground: Ground, seed: int, stalls: Stalls) -> None:
        self.rounds: list[Round] = []
        self._book = Book()
        self._ground = ground
        self._stalls = stalls
        self._crowd = Crowd(ground, self._book, f"{seed} {ground.mode}")
        self._faults = Faults(ground, self._book, self._crowd)
        self._checks = Checks(ground, self._book, self._crowd)

    async def go_through(self, rounds: Collection[Round] | object, until: float) -> None:
        """Round after round, while there is time. Raises `BrokenPromise`."""
        self._crowd.begin()
        for one in rounds:  # type: ignore[attr-defined] # an iterator without end
            if time.monotonic() >= until:
                break
            self.rounds.append(one)
            began = time.monotonic()
            self._crowd.live()
            await asyncio.sleep(one.before)
            await self._faults.strike(one)
            await asyncio.sleep(one.after)
            await self._quiet()
            print(f"{one}: true after {time.monotonic() - began:.1f} s", flush=True)
        self._crowd.live()
        await self._crowd.end()

    async def _quiet(self) -> None:
        checks = self._checks
        self._crowd.stand_still()
        await self._becomes_true(checks.nodes_are_ready, READY_WITHIN)
        await self._becomes_true(self._everybody_rests, READY_WITHIN)
        await self._becomes_true(checks.orders_are_carried_out, AT_ONCE)
        await self._becomes_true(checks.all_agree, TRUE_WITHIN)
        said = await checks.begin_to_speak()
        await self._becomes_true(lambda: checks.all_hear(said), HEARD_WITHIN)
        for check in (checks.nobody_comes_back, checks.places_can_be_had, checks.all_is_kept):
            self._must_be_true(check.__name__, await check())
        self._must_be_true("what clients saw", self._book.broken_promises)
        self._must_be_true("logs", self._tracebacks())
        self._book.orders.clear()

    async def _everybody_rests(self) -> list[str]:
        return self._crowd.restless()

    async def _becomes_true(self, check: Callable[[], Awaitable[list[str]]], within: float) -> None:
        began, stalled = time.monotonic(), self._stalls.seconds
        while wrong := await check():
            lasted = time.monotonic() - began - (self._stalls.seconds - stalled)
            if lasted > within:
                self._must_be_true(f"{getattr(check, '__name__', 'check')} after {lasted:.1f} s", wrong)
            await asyncio.sleep(0.1)

    def _must_be_true(self, what: str, wrong: list[str]) -> None:
        if wrong:
            raise BrokenPromise("\n  ".join([f"{what}:", *wrong[:20]]))

    def _tracebacks(self) -> list[str]:
        return [
            f"{name} logged a traceback" for node in self._ground.nodes for name, log in node.logs().items()
            if "Traceback (most recent call last)" in log
        ]


async def torture(
    seed: int, mode: Mode, seconds: float, folder: Path, *, only: Collection[str] = (), broken: str = ""
) -> list[Round]:
    """Run for about so many seconds; the rounds. Raises `BrokenPromise`, and prints what was done before."""
    again = f"python -m tests.cluster.torture.run --seed {seed} --mode {mode} --seconds {seconds:g}"
    again += "".join(f" --only '{word}'" for word in only)
    print(f"torture: {again}", flush=True)
    until = time.monotonic() + seconds
    async with Stalls() as stalls, Ground(mode, folder, broken) as ground:
        run = Run(ground, seed, stalls)
        try:
            await run.go_through(schedule(seed, mode, only), until)
        except BrokenPromise as error:
            raise BrokenPromise(_account(again, run.rounds, ground, str(error))) from None
    return run.rounds


def _account(again: str, rounds: list[Round], ground: Ground, wrong: str) -> str:
    parts = [f"once more: {again}", *map(str, rounds)]
    for node in ground.nodes:
        for name, log in node.logs().items():
            parts += [f"--- the last of {name}", *log.splitlines()[-LINES:]]
    return "\n".join([*parts, "--- wrong:", wrong])


def main() -> int:
    """The command line; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed where it is not given")
    parser.add_argument("--mode", choices=[*MODES, "any"], default="any", help="any: as the seed says")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", action="append", default=[], help="faults with this word in their names, alone")
    parser.add_argument("--break", dest="broken", choices=["", *BREAKS], default="", help="take a promise out first")
    given = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    mode = mode_of(seed) if given.mode == "any" else given.mode
    with tempfile.TemporaryDirectory(prefix="socketspec-torture-") as folder:
        try:
            rounds = asyncio.run(torture(seed, mode, given.seconds, Path(folder), only=given.only, broken=given.broken))
        except BrokenPromise as error:
            print(error)
            return 1
    print(f"{len(rounds)} rounds, and all was true")
    return 0


if __name__ == "__main__":
    sys.exit(main())
