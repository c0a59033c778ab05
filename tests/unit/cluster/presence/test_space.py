"""What a node knows of its presence in a namespace: when each topic's turn to be compared comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from socketspec.cluster.presence.lease import Lease
from socketspec.cluster.presence.space import Space
from socketspec.protocol.publications import Topic


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
