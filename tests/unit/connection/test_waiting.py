"""What waits for all clients together: it counts what is in memory, and the largest buffers go first."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec import SocketApp
from socketspec.connection.outbox import Backpressure, Outbox, Overflow, Policy
from socketspec.connection.waiting import Waiting
from socketspec.errors import ConfigurationError
from socketspec.protocol.encoding import OVERHEAD, Message
from socketspec.protocol.formats import Format
from socketspec.protocol.publications import Position

VARIABLE = "SOCKETSPEC_MAX_NODE_BUFFER"
FORMATS = (Format.PLAIN, Format.JSON, Format.MSGPACK)


def message(size: int, *, room: str | None = "r", event: str = "said", offset: int | None = None) -> Message:
    position = None if offset is None else Position(offset, "epoch", "tag")
    return Message(event, b'{"x":"' + b"x" * size + b'"}', room=room, position=position)


@dataclass
class Clients:
    """Outboxes that share an account; who was given up stands in `closed`."""

    waiting: Waiting
    boxes: list[Outbox] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)

    def come(self, count: int, policy: Policy = "disconnect", max_buffer: int = 1 << 20) -> None:
        for number in range(count):

            def give_up(number: int = number) -> None:
                self.closed.append(number)
                self.boxes[number].clear()

            limits = Backpressure(policy=policy, max_buffer=max_buffer)
            self.boxes.append(Outbox(limits, FORMATS[number % 3], self.waiting, give_up))


def unbounded() -> Waiting:
    return Waiting(1 << 40, lambda: 0.0)


MESSAGES = [message(10 * number, room=None if number % 3 else "r", offset=number or None) for number in range(12)]
STEPS = st.tuples(st.integers(0, 3), st.sampled_from(["pop", "clear", *range(12)]))


@given(st.sampled_from(["disconnect", "drop_oldest", "keep_latest"]), st.lists(STEPS, max_size=60))
def test_it_counts_each_body_once_and_each_place_in_a_queue(policy: Policy, steps: list[tuple[int, str | int]]) -> None:
    clients = Clients(unbounded())
    clients.come(4, policy, max_buffer=4096)
    places: list[list[Message]] = [[] for _ in clients.boxes]
    for index, step in steps:
        box = clients.boxes[index]
        if step == "clear":
            box.clear()
        elif step == "pop":
            if len(box):
                box.pop()
        else:
            box.push(MESSAGES[int(step)])
        places[index] = queue_of(box)
        bodies = {id(data): len(data) for data in waiting_bodies(clients, places)}
        expected = sum(bodies.values()) + OVERHEAD * sum(map(len, places))
        assert clients.waiting.size == expected
        assert clients.waiting.size <= sum(box.size for box in clients.boxes)
    for box in clients.boxes:
        box.clear()
    assert clients.waiting.size == 0


def queue_of(box: Outbox) -> list[Message]:
    """What waits in it, which stays there."""
    return [message for message, _ in box._queue.values()]  # noqa: SLF001 - popping them would change what is looked at


def waiting_bodies(clients: Clients, places: list[list[Message]]) -> list[bytes]:
    return [message.data(FORMATS[number % 3]) for number in range(len(clients.boxes)) for message in places[number]]


def test_a_broadcast_that_waits_for_everybody_counts_once() -> None:
    clients = Clients(unbounded())
    clients.come(300)
    said = message(60_000)
    for box in clients.boxes:
        assert box.push(said) is Overflow.QUEUED
    assert 3 * 60_000 < clients.waiting.size < 3 * 60_000 + 300 * OVERHEAD + 1000  # it is encoded in three formats


def test_beyond_the_limit_those_for_whom_most_waits_are_closed_until_an_eighth_is_free() -> None:
    clients = Clients(Waiting(100_000, lambda: 0.0))
    clients.come(5)
    for number, size in enumerate([10_000, 40_000, 5_000, 30_000, 8_000]):
        clients.boxes[number].push(message(size))
        clients.waiting.keep_to_limit()
    assert clients.closed == []
    clients.boxes[2].push(message(10_000))
    clients.waiting.keep_to_limit()
    assert clients.closed == [1]
    assert clients.waiting.closed == 1
    assert clients.waiting.size <= 100_000 * 7 / 8
    clients.boxes[2].push(message(60_000))
    clients.waiting.keep_to_limit()
    assert clients.closed == [1, 2]
    assert [len(box) for box in clients.boxes] == [1, 0, 0, 1, 1]


def test_who_was_emptied_is_not_closed() -> None:
    clients = Clients(Waiting(10_000, lambda: 0.0))
    clients.come(2)
    clients.boxes[0].push(message(9_000))
    clients.boxes[0].pop()
    clients.boxes[1].push(message(11_000))
    clients.waiting.keep_to_limit()
    assert clients.closed == [1]
    assert clients.waiting.size == 0


def test_the_log_says_so_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    times = [0.0, 1.0, 59.0, 60.0]
    clients = Clients(Waiting(10_000, lambda: times[0]))
    clients.come(1)
    with caplog.at_level(logging.WARNING, logger="socketspec.connection"):
        while times:
            clients.boxes[0].push(message(11_000))
            clients.waiting.keep_to_limit()
            times.pop(0)
    assert clients.waiting.closed == 4
    assert len(caplog.messages) == 2
    assert "max_node_buffer" in caplog.messages[0]


def limit_of(**options: Any) -> int:
    return SocketApp(backpressure=Backpressure(**options)).settings.max_node_buffer


def test_how_much_may_wait_says_the_app_or_else_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert limit_of() == 256 << 20
    assert limit_of(max_buffer=512 << 20) == 512 << 20
    monkeypatch.setenv(VARIABLE, "2000000")
    assert limit_of() == 2_000_000
    assert limit_of(max_node_buffer=3_000_000) == 3_000_000
    monkeypatch.setenv(VARIABLE, "")
    assert limit_of() == 256 << 20


@pytest.mark.parametrize("wrong", [4999, 0, -1, True, 5000.0, "5000", 2**63])
def test_a_node_takes_at_least_what_may_wait_for_one_connection(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"max_node_buffer=.*max_buffer is 5000"):
        limit_of(max_buffer=5000, max_node_buffer=wrong)


@pytest.mark.parametrize("wrong", ["4999", "-1", "5e3", "much", "9" * 30])
def test_the_environment_is_checked_as_well(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, wrong)
    with pytest.raises(ConfigurationError, match=rf"{VARIABLE}='{re.escape(wrong)}'.*max_buffer is 5000"):
        limit_of(max_buffer=5000)
