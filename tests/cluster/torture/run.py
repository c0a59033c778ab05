"""Runs a schedule against real nodes and servers: ``python -m tests.cluster.torture.run --seed 7 --seconds 60``.

Every round ends in a quiet, in which all that was promised has to be true. The first that is not ends the run: it
prints the command that repeats it, what the rounds were, what is wrong, and the last lines of every log.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
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
"""Seconds after a fault in which every node is to hear Redis again: probes, timeouts, pauses before tries."""
AT_ONCE: Final = 1.0
"""Seconds after that in which orders that were missed are carried out."""
TRUE_WITHIN: Final = 2 * LEASE + 4.0
"""The same for presence and hooks: a dead node's lease, the claim of a reaper that died, and a renewal."""
HEARD_WITHIN: Final = 5.0
SHOWN: Final = 12
"""Of each kind of thing that is wrong."""
TRACEBACK: Final = re.compile(r".*\nTraceback \(most recent call last\):\n(?:[ +|].*\n)+.*")
LINES: Final = 25
"""Of each log that are shown."""


class BrokenPromise(AssertionError):
    """What was promised is not true; the text says all that is known of it."""


class Run:
    """One run on `ground`."""

    def __init__(self, ground: Ground, seed: int, stalls: Stalls) -> None:
        self.rounds: list[Round] = []
        self.story: list[str] = []
        """What happened when, on the clock of the journals."""
        self._book = Book()
        self._ground = ground
        self._stalls = stalls
        self._crowd = Crowd(ground, self._book, f"{seed} {ground.mode}")
        self._faults = Faults(ground, self._book, self._crowd)
        self._checks = Checks(ground, self._book, self._crowd)

    async def go_through(self, rounds: Iterator[Round], until: float) -> None:
        """Round after round, while there is time; then the end of all. Raises `BrokenPromise`."""
        self._crowd.begin()
        while time.monotonic() < until:
            one = next(rounds)
            self.rounds.append(one)
            self._tell(str(one))
            self._crowd.live()
            await asyncio.sleep(one.before)
            self._tell("the fault begins")
            await self._faults.strike(one)
            self._tell("it is healed")
            await asyncio.sleep(one.after)
            await self._quiet()
            self._tell("all is true")
        await self._end()

    def _tell(self, what: str) -> None:
        self.story.append(f"{time.monotonic():.3f} {what}")
        print(self.story[-1], flush=True)

    async def _end(self) -> None:
        """Everybody leaves, then every node stops: nothing may be left, and no hook out."""
        await self._crowd.end()
        found = await self._becomes_true("when all have left", self._checks.all_agree, TRUE_WITHIN)
        found += _named("when all have left", await self._checks.every_key_has_an_end())
        await asyncio.gather(*(asyncio.to_thread(node.process.stop) for node in self._ground.nodes))
        for node in self._ground.nodes:
            self._book.read(str(node), node.new_lines())
        found += _named("when all nodes have stopped", self._book.hooks_are_wrong(()))
        found += _named("logs", self._tracebacks())
        if found:
            raise BrokenPromise("\n".join(found))

    async def _quiet(self) -> None:
        """Everything is checked, also after something was found to be wrong. Raises `BrokenPromise`."""
        checks, wrong = self._checks, self._becomes_true
        self._crowd.stand_still()
        found = await wrong("nodes", checks.nodes_are_ready, READY_WITHIN)
        await self._faults.notice_lost_data()
        found += await wrong("answers", self._everybody_rests, READY_WITHIN)
        found += await wrong("orders", checks.orders_are_carried_out, AT_ONCE)
        found += await wrong("presence and hooks", checks.all_agree, TRUE_WITHIN)
        said = await checks.begin_to_speak()
        found += await wrong("delivery", lambda: checks.all_hear(said), HEARD_WITHIN)
        found += _named("revocations", await checks.nobody_comes_back())
        found += _named("places", await checks.places_can_be_had())
        found += _named("histories", await checks.all_is_kept())
        found += _named("what clients saw", self._book.broken_promises)
        found += _named("logs", self._tracebacks())
        if found:
            raise BrokenPromise("\n".join(found))
        self._book.orders.clear()

    async def _everybody_rests(self) -> list[str]:
        return self._crowd.restless()

    async def _becomes_true(self, what: str, check: Callable[[], Awaitable[list[str]]], within: float) -> list[str]:
        """Ask until nothing is wrong; what is, after `within` seconds and those in which this process stood still."""
        began, stalled = time.monotonic(), self._stalls.seconds
        while wrong := await check():
            lasted = time.monotonic() - began - (self._stalls.seconds - stalled)
            if lasted > within:
                return _named(f"{what}, after {lasted:.1f} s", wrong)
            await asyncio.sleep(0.1)
        return []

    def _tracebacks(self) -> list[str]:
        logs = [(name, log) for node in self._ground.nodes for name, log in node.logs().items()]
        return [f"{name} logged {found[0]}" for name, log in logs for found in TRACEBACK.finditer(log)]


def _named(what: str, wrong: list[str]) -> list[str]:
    """The first of what is wrong, below what it is about; nothing, if nothing is."""
    more = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    return [f"{what}:", *(f"  {one}" for one in [*wrong[:SHOWN], *more])] if wrong else []


async def torture(
    seed: int, mode: Mode, seconds: float, folder: Path, *, only: Collection[str] = (), broken: str = ""
) -> list[Round]:
    """Run for about so many seconds; the rounds. Raises `BrokenPromise`, and prints what was done before."""
    again = f"python -m tests.cluster.torture.run --seed {seed} --mode {mode} --seconds {seconds:g}"
    again += "".join(f" --only '{word}'" for word in only)
    print(f"torture: {again}", flush=True)
    async with Stalls() as stalls, Ground(mode, folder, broken) as ground:
        run = Run(ground, seed, stalls)
        try:
            await run.go_through(schedule(seed, mode, only), time.monotonic() + seconds)
        except BrokenPromise as error:
            raise BrokenPromise(_account(again, run.story, ground, str(error))) from None
    return run.rounds


def _account(again: str, story: list[str], ground: Ground, wrong: str) -> str:
    parts = [f"once more: {again}", *story]
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
