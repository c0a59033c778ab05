"""The table of connection states."""

from __future__ import annotations

import re
from pathlib import Path

from socketspec.connection.states import TRANSITIONS, State

PROTOCOL = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(State)


def test_closed_is_the_only_end_and_can_be_reached_from_everywhere() -> None:
    ends = [state for state, following in TRANSITIONS.items() if not following]
    assert ends == [State.CLOSED]
    assert all(State.CLOSED in following for state, following in TRANSITIONS.items() if state is not State.CLOSED)


def test_no_state_comes_back() -> None:
    order = list(State)
    assert all(
        order.index(after) > order.index(state) for state, following in TRANSITIONS.items() for after in following
    )


def test_the_diagram_in_the_documentation_shows_exactly_the_table() -> None:
    drawn = set(re.findall(r"^(\w+) --> (\w+)$", PROTOCOL.read_text(encoding="utf-8"), re.MULTILINE))
    assert drawn == {(state.value, after.value) for state, following in TRANSITIONS.items() for after in following}
