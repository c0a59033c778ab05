"""Whether a reader has got a message: random lines of history that fork, against the plain list of what it got."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.protocol.publications import Position
from socketspec.protocol.spans import REMEMBERED, UNBEGUN, Span, follows, history_lost


def at(offset: int, tag: str = "", epoch: str = "one") -> Position:
    return Position(offset, epoch, tag or f"tag{offset}")


@pytest.mark.parametrize(
    ("last", "position", "answer"),
    [
        (None, at(9), True),
        (at(3), at(4), True),
        (at(3), at(5), False),
        (at(3), at(3), False),
        (at(3), at(3, "other"), False),
        (at(3), at(2), False),
        (at(3), at(1, epoch="two"), True),
        (at(3), at(4, epoch="two"), False),
        (UNBEGUN, at(1), True),
        (UNBEGUN, at(2), False),
    ],
)
def test_what_follows(last: Position | None, position: Position, answer: bool) -> None:
    assert follows(last, position) is answer


def test_where_nothing_is_known_nothing_is_old() -> None:
    span = Span()
    assert not span.has(at(1))
    assert span.is_beyond(at(1))


def test_what_was_replayed_is_old_and_what_a_failover_put_in_its_place_is_new() -> None:
    span = Span(at(6))
    assert span.has(at(6))
    assert span.has(at(4))  # on one line, what comes before is old
    assert not span.has(at(6, "other"))
    assert not span.has(at(7))
    assert not span.has(at(1, epoch="two"))
    span.fork()
    assert not span.has(at(4, "other"))
    assert span.has(at(6))
    assert not span.is_beyond(at(6, "other"))
    assert span.is_beyond(at(7))


def test_so_many_positions_are_remembered() -> None:
    span = Span()
    for offset in range(1, REMEMBERED + 2):
        span.got(at(offset))
    span.fork()
    assert [offset for offset in range(1, REMEMBERED + 2) if not span.has(at(offset))] == [1]


@given(kept=st.integers(0, 20), lost=st.integers(0, 20), more=st.integers(0, 20), begins=st.integers(0, 20))
def test_of_two_lines_with_a_common_beginning_everything_new_comes_and_nothing_old(
    kept: int, lost: int, more: int, begins: int
) -> None:
    """The reader brings a position, gets the rest of the old line, is told that it forked, then all of both again."""
    common = [at(offset) for offset in range(1, kept + 1)]
    old = [*common, *(at(offset, f"old{offset}") for offset in range(kept + 1, kept + lost + 1))]
    new = [at(offset, f"new{offset}") for offset in range(kept + 1, kept + more + 1)]
    began = old[min(begins, len(old) - 1)] if old else at(1, "first")
    span = Span(began)
    replayed = old[began.offset :]
    for position in replayed:
        assert not span.has(position)
        span.got(position)
    assert all(span.has(position) for position in old)
    span.fork()
    taken = []
    for position in [*replayed, *new]:
        if not span.has(position):
            span.got(position)
            taken.append(position)
    assert taken == [position for position in new if position != began]


@given(since=st.integers(1, 30), replayed=st.integers(0, 300), begins=st.integers(1, 330), more=st.integers(0, 10))
def test_who_was_told_of_a_loss_and_is_given_older_ones_gets_them_without_a_gap(
    since: int, replayed: int, begins: int, more: int
) -> None:
    """The history was the right one after all: it comes again from some place on, which the reader has or has not."""
    span = Span(at(since))
    top = since + replayed
    for offset in range(since + 1, top + 1):
        span.got(at(offset))
    span.fork()
    taken: list[int] = []
    for offset in range(min(begins, top + 1), top + more + 1):
        if not span.has(at(offset)):
            span.got(at(offset))
            taken.append(offset)
    assert taken == list(range(taken[0], top + more + 1)) if taken else not more
    assert not taken or taken[0] in (begins, top + 1)


def test_what_members_are_told_fits_the_answer_to_a_resume() -> None:
    told = history_lost('log:"1"')
    assert told.event == "__resume__"
    assert told.position is None
    assert json.loads(told.payload) == {"rooms": {'log:"1"': {"recovered": False, "reason": "history_lost"}}}
