"""What a node knows of its presence in a namespace: when each topic's turn to be compared comes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.cluster.presence import space as module
from socketspec.cluster.presence.lease import Lease
from socketspec.cluster.presence.space import Space
from socketspec.protocol.publications import Topic

ROOM = Topic("/", "room", "lobby")


@given(st.integers(0, 500), st.integers(1, 100))
def test_in_each_period_every_topic_has_one_turn_and_the_turns_are_spread_evenly(topics: int, steps: int) -> None:
    space = Space("/", iter(["n-0"]), Lease(8.0, 5.0, lambda: 0.0))
    space.members = {Topic("/", "room", str(number)): {"a": b""} for number in range(topics)}
    space.next_round = 100.0
    assert space.next_turns(99.0, 100.0, steps) == []
    for began in (100.0, 200.0):
        turns = [space.next_turns(began + step / steps, 100.0, steps) for step in range(steps)]
        assert sorted(topic for turn in turns for topic in turn) == sorted(space.members)
        assert max(map(len, turns)) <= -(-topics // steps)
        assert space.next_turns(began + 99.0, 100.0, steps) == []


def frozen(clock: list[float], *ids: str) -> Space:
    """A node with these members that was taken for dead, which are told by another node."""
    space = Space("/", map(str, range(9)), Lease(8.0, 5.0, lambda: clock[0]))
    space.members = {ROOM: dict.fromkeys(ids, b"")}
    space.begin_again(was_claimed=True)
    assert space.told == {(ROOM, id) for id in ids}
    return space


def test_who_was_told_and_has_left_is_forgotten_where_nobody_asks_about_hooks() -> None:
    clock = [100.0]
    space = frozen(clock, "a", "b", "c")
    space.drop((ROOM, "a"))
    clock[0] += 50.0
    space.drop((ROOM, "b"))
    assert (ROOM, "a") in space.told
    clock[0] += 50.0
    space.drop((ROOM, "c"))
    assert space.told == {(ROOM, "b"), (ROOM, "c")}
    assert space.forget_told((ROOM, "b"))
    assert not space.forget_told((ROOM, "b"))


def test_no_more_of_them_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TOLD", 2)
    space = frozen([100.0], *"abcd")
    for id in "abc":
        space.drop((ROOM, id))
    assert space.told == {(ROOM, "b"), (ROOM, "c"), (ROOM, "d")}


def test_a_leave_that_is_under_way_when_the_node_is_taken_for_dead_is_kept_no_longer() -> None:
    clock = [100.0]
    space = frozen(clock, "a")
    space.drop((ROOM, "a"))
    loop = asyncio.new_event_loop()
    space.leaves[ROOM, "a"] = loop.create_future()
    loop.close()
    clock[0] += 100.0
    space.begin_again(was_claimed=True)
    assert space.told == {(ROOM, "a")}
    space.leaves.clear()
    clock[0] += 100.0
    space.members = {ROOM: {"z": b""}}
    space.begin_again(was_claimed=True)
    space.drop((ROOM, "z"))
    assert space.told == {(ROOM, "z")}
