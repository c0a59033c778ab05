"""The torture run, for a minute: real nodes, clients and servers, faults drawn from a seed, the truth after each fault.

The seeds are fixed. One that is drawn anew in every run would find more, but in somebody's change that has nothing to
do with it, and would make of a red run a matter of luck. New seeds are for ``make torture``, by hand and for longer; a
seed that found something joins the list below once it is mended. ``SOCKETSPEC_TORTURE_SEED`` puts another in their
place. Every run prints its seed and the command that repeats it: the faults and the wishes of every client are the same
again, only how they interleave is the machine's.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.torture.book import Book, Order
from tests.cluster.torture.breaks import BREAKS
from tests.cluster.torture.common import Line
from tests.cluster.torture.run import BrokenPromise, torture
from tests.cluster.torture.schedule import FAULTS, MODES, Mode, schedule
from tests.servers import started

SEED = os.environ.get("SOCKETSPEC_TORTURE_SEED")
RUNS: tuple[tuple[Mode, int, float], ...] = (("single", 1, 60.0), ("sentinel", 1, 20.0), ("cluster", 1, 20.0))
"""Mode, seed and seconds."""


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize(("mode", "seed", "seconds"), RUNS)
async def test_after_every_fault_all_is_true(mode: Mode, seed: int, seconds: float, tmp_path: Path) -> None:
    with started():
        rounds = await torture(int(SEED or seed), mode, seconds, tmp_path)
    assert rounds


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("broken", "fault", "noticed"),
    [
        ("dead-nodes-stay", "node killed", "members"),
        ("hooks-run-twice", "node killed", "joins less leaves: -1 instead of 0"),
        ("rooms-have-no-limit", "nothing", "and places for"),
        ("revocations-are-not-heard", "nothing", "the user was revoked"),
    ],
)
async def test_a_promise_that_is_taken_out_is_missed(broken: str, fault: str, noticed: str, tmp_path: Path) -> None:
    assert broken in BREAKS
    with started(), pytest.raises(BrokenPromise, match=noticed):
        await torture(1, "single", 60, tmp_path, only=[fault], broken=broken)


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_says_it_all(mode: Mode) -> None:
    once, again, other = (schedule(seed, mode) for seed in (7, 7, 8))
    first = [next(once) for _ in range(40)]
    assert first == [next(again) for _ in range(40)]
    assert first != [next(other) for _ in range(40)]
    assert {one.fault for one in first[: len(FAULTS[mode])]} == {*FAULTS[mode]}


def test_a_fault_that_does_not_exist_is_said() -> None:
    with pytest.raises(ValueError, match="no fault of cluster has any of"):
        next(schedule(1, "cluster", ["redis flushed"]))


def test_who_was_being_thrown_out_when_their_node_was_killed_may_be_told_by_nobody() -> None:
    """Redis may have carried out the leave, and the node have died before the hook. Of all others somebody is told."""
    book = Book()
    book.read("0.0", [Line(1.0, what, id, room) for id in "abc" for what, room in (("open", ""), ("join", "talk:0"))])
    book.orders.append(Order(2.0, "disconnected", "u", frozenset("a")))
    book.sent_away.add("b")
    book.node_dies("0.0", "abc", [])
    wrong = book.hooks_are_wrong(())
    assert len(wrong) == 1
    assert wrong[0].startswith("c is no member of talk:0; joins less leaves: 1 instead of 0")


def test_who_was_thrown_out_of_a_node_that_lives_is_told() -> None:
    book = Book()
    book.read("0.0", [Line(1.0, "open", "a", ""), Line(1.0, "join", "a", "talk:0")])
    book.sent_away.add("a")
    assert book.hooks_are_wrong(())
