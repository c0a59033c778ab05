"""The bounded buffer of one connection: what waits, what is dropped, and when it is too much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.connection.outbox import Backpressure, Outbox, Overflow, Policy
from socketspec.errors import ConfigurationError
from socketspec.protocol.encoding import OVERHEAD, Message
from socketspec.protocol.formats import Format
from tests.carriers import account

POLICIES: tuple[Policy, ...] = ("disconnect", "drop_oldest", "keep_latest")


def message(event: str, size: int = 0, room: str | None = None) -> Message:
    return Message(event, b'{"x":"' + b"x" * size + b'"}', room=room)


def made(**options: Any) -> Outbox:
    return Outbox(Backpressure(**options), Format.PLAIN, account(), lambda: None)


def length(item: Message) -> int:
    return len(item.data(Format.PLAIN)) + OVERHEAD


class Model:
    """What `Outbox` should do, written for clarity: a plain list."""

    def __init__(self, limit: int, policy: Policy) -> None:
        self.limit, self.policy = limit, policy
        self.waiting: list[Message] = []

    def push(self, new: Message) -> Overflow:
        kept, place = list(self.waiting), len(self.waiting)
        lost = 0
        if self.policy == "keep_latest" and new.room is not None:
            same = [i for i, old in enumerate(kept) if (old.room, old.event) == (new.room, new.event)]
            if same:
                place = same[0]
                kept.pop(place)
                lost = 1
        while sum(map(length, kept)) + length(new) > self.limit:
            victims = [i for i, old in enumerate(kept) if old.room is not None]
            if self.policy == "disconnect" or not victims:
                return Overflow.FULL
            kept.pop(victims[0])
            place -= victims[0] < place
            lost += 1
        kept.insert(place, new)
        self.waiting = kept
        return Overflow.DROPPED if lost else Overflow.QUEUED


MESSAGES = st.builds(message, st.sampled_from("abc"), st.integers(0, 700), st.none() | st.sampled_from(["r1", "r2"]))


@given(st.sampled_from(POLICIES), st.lists(MESSAGES | st.just("pop"), max_size=40))
def test_an_outbox_does_what_its_model_does(policy: Policy, steps: list[Message | str]) -> None:
    outbox = made(max_buffer=1024, policy=policy)
    model = Model(1024, policy)
    for step in steps:
        if isinstance(step, Message):
            assert outbox.push(step) is model.push(step)
        elif model.waiting:
            assert outbox.pop() is model.waiting.pop(0)
        assert outbox.size == sum(map(length, model.waiting)) <= 1024
        assert len(outbox) == len(model.waiting)
    assert [outbox.pop() for _ in range(len(outbox))] == model.waiting
    assert outbox.size == 0


@given(st.sampled_from(POLICIES), st.lists(MESSAGES, max_size=60))
def test_replies_are_never_dropped_and_keep_their_order(policy: Policy, pushed: list[Message]) -> None:
    outbox = made(max_buffer=4096, policy=policy)
    taken = [item for item in pushed if outbox.push(item) is not Overflow.FULL]
    left = [outbox.pop() for _ in range(len(outbox))]
    replies = [item for item in taken if item.room is None]
    assert [item for item in left if item.room is None] == replies
    if policy == "drop_oldest":
        assert [item for item in taken if item in left] == left


def test_keep_latest_goes_by_the_key_function_even_when_it_is_not_consistent() -> None:
    answers = iter("abcdefgh")
    outbox = made(policy="keep_latest", key=lambda _: next(answers))
    for _ in range(3):
        assert outbox.push(message("e", room="r")) is Overflow.QUEUED
    assert [outbox.pop().event for _ in range(3)] == ["e", "e", "e"]


def test_an_empty_outbox_has_nothing_to_pop() -> None:
    outbox = made()
    outbox.push(message("a"))
    outbox.clear()
    assert (outbox.size, len(outbox)) == (0, 0)
    with pytest.raises(KeyError):
        outbox.pop()


@pytest.mark.parametrize("options", [{"policy": "drop"}, {"max_buffer": 1023}, {"send_timeout": 0}])
def test_impossible_limits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Backpressure"):
        Backpressure(**options)
