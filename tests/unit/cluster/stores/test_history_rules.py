"""What is asked of a topic's history, and what is made of the answer: which positions are honoured, and which never."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.envelope import encode_body
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.cluster.stores import history
from socketspec.cluster.stores.history import RedisHistory, read_command
from socketspec.errors import BackendError
from socketspec.protocol.publications import Position, Publication, Topic

KEYS = Keys("p")
LOG = Topic("/", "room", "log")
EPOCH = "one"


def at(offset: int, tag: str = "", epoch: str = EPOCH) -> Position:
    return Position(offset, epoch, tag or f"tag{offset}")


def entry(offset: int, body: bytes | None = None) -> list[Any]:
    """An entry of the stream, as Redis gives it."""
    if body is None:
        body = encode_body(Publication(f"event{offset}", b"{}"))
    return [b"%d-0" % offset, [b"b", body, b"t", b"tag%d" % offset]]


def reply(newest: int, entries: Sequence[Any], size: int = 5) -> list[Any]:
    """What ``read.lua`` gives for a stream whose newest offset is `newest`."""
    return [newest, EPOCH.encode(), b"tag%d" % newest, size, list(entries)]


def since_reply(since: int, newest: int, size: int = 5) -> list[Any]:
    """The same for everything from the entry at `since` on, of a stream of which the newest `size` + 1 are there."""
    first = max(since, newest - size, 1)
    return reply(newest, [entry(offset) for offset in range(first, newest + 1)], size)


def parse_read(
    reply: Any,
    topic: Topic,
    *,
    since: Position | None = None,
    limit: int | None = None,
    unreadable: Unreadable | None = None,
) -> list[Publication]:
    where = KEYS.stream(topic)
    return history.parse_read(reply, topic, where, unreadable or Unreadable(), since=since, limit=limit)


def events(found: Sequence[Publication]) -> list[str]:
    return [item.event for item in found]


# What is asked


@pytest.mark.parametrize(("limit", "count"), [(None, -1), (3, 3), (1, 1), (0, 0), (-1, 0)])
def test_the_newest_are_asked_for_up_to_the_limit(limit: int | None, count: int) -> None:
    command = read_command(KEYS, LOG, limit=limit)
    assert command.keys == (KEYS.meta(LOG), KEYS.stream(LOG))
    assert command.args == ("newest", count, 0)


@pytest.mark.parametrize(("limit", "count"), [(None, -1), (3, 4), (1, 2), (0, 1), (-1, 1)])
def test_what_follows_is_asked_for_with_the_one_before_it_whose_tag_is_compared(limit: int | None, count: int) -> None:
    command = read_command(KEYS, LOG, since=at(7), limit=limit)
    assert command.keys == (KEYS.meta(LOG), KEYS.stream(LOG))
    assert command.args == ("since", count, 7)


@pytest.mark.parametrize(
    ("offset", "asked"), [(0, 0), (1, 1), (-1, 0), (-(2**70), 0), (2**53, 2**53), (2**53 + 1, 2**53), (2**70, 2**53)]
)
def test_no_offset_that_a_client_makes_up_goes_further_than_one_that_may_be(offset: int, asked: int) -> None:
    assert read_command(KEYS, LOG, since=at(offset)).args[2] == asked


# The newest


def test_the_newest_come_oldest_first_each_with_its_position() -> None:
    found = parse_read(reply(4, [entry(4), entry(3), entry(2)]), LOG)
    assert events(found) == ["event2", "event3", "event4"]
    assert [item.position for item in found] == [at(2), at(3), at(4)]


def test_where_nothing_is_kept_there_is_nothing_to_read() -> None:
    assert parse_read(None, LOG) == []
    assert parse_read(reply(3, []), LOG, limit=0) == []


def test_what_another_version_wrote_is_left_out_of_the_newest() -> None:
    found = parse_read(reply(4, [entry(4), entry(3, b"\xff"), entry(2)]), LOG)
    assert events(found) == ["event2", "event4"]


# Since a position


@pytest.mark.parametrize(
    ("since", "newest", "expected"),
    [
        (3, 4, ["event4"]),
        (1, 4, ["event2", "event3", "event4"]),
        (4, 4, []),
        (0, 3, ["event1", "event2", "event3"]),
        (0, 5, ["event1", "event2", "event3", "event4", "event5"]),
        (95, 100, ["event96", "event97", "event98", "event99", "event100"]),
    ],
)
def test_a_position_that_is_kept_gives_what_followed_it(since: int, newest: int, expected: list[str]) -> None:
    assert events(parse_read(since_reply(since, newest), LOG, since=at(since))) == expected


@pytest.mark.parametrize(("limit", "count"), [(None, 4), (9, 4), (4, 4), (3, 3), (1, 1), (0, 0)])
def test_a_limit_takes_the_ones_that_followed_first(limit: int | None, count: int) -> None:
    # Redis gives no more than `limit` + 1; more of them change nothing.
    found = parse_read(since_reply(2, 6), LOG, since=at(2), limit=limit)
    assert events(found) == ["event3", "event4", "event5", "event6"][:count]


@pytest.mark.parametrize(
    ("position", "newest", "words"),
    [
        (at(4, epoch="other"), 6, "begun a new history"),
        (at(0, epoch="other"), 6, "begun a new history"),
        (at(6, epoch="other"), 6, "begun a new history"),
        (at(7), 6, "begun a new history"),
        (at(-1), 6, "begun a new history"),
        (at(2**70), 6, "begun a new history"),
        (at(0), 6, "no longer keeps what followed offset 0"),
        (at(93), 99, "no longer keeps what followed offset 93"),
        (at(4, tag="other"), 6, "offset 4 of 'log' is another publication"),
        (at(6, tag="other"), 6, "offset 6 of 'log' is another publication"),
        (at(4, tag="tag44"), 6, "offset 4 of 'log' is another publication"),
    ],
)
def test_a_position_that_cannot_be_honoured_is_refused_in_words(position: Position, newest: int, words: str) -> None:
    with pytest.raises(LookupError, match=words) as raised:
        parse_read(since_reply(max(position.offset, 0), newest), LOG, since=position)
    assert "'log'" in str(raised.value)


def test_where_nothing_is_kept_no_position_can_be_honoured() -> None:
    with pytest.raises(LookupError, match="'log' keeps no history at present"):
        parse_read(None, LOG, since=at(0))


def test_a_position_whose_own_entry_is_gone_cannot_be_verified() -> None:
    for entries in ([], [entry(4), entry(5)], [entry(2), entry(3)]):
        with pytest.raises(LookupError, match="'log' no longer keeps offset 3, so it cannot be verified"):
            parse_read(reply(5, entries), LOG, since=at(3))


@pytest.mark.parametrize("missing", [4, 5])
def test_an_entry_that_is_missing_in_the_middle_is_never_passed_over(missing: int) -> None:
    entries = [entry(offset) for offset in range(3, 7) if offset != missing]
    words = rf"'log' no longer keeps offset {missing} in a form"
    with pytest.raises(LookupError, match=words):
        parse_read(reply(6, entries), LOG, since=at(3))
    assert events(parse_read(reply(6, entries), LOG, since=at(3), limit=missing - 4)) == ["event4"][: missing - 4]


def test_an_entry_that_another_version_wrote_is_never_passed_over() -> None:
    entries = [entry(3), entry(4), entry(5, b"\xff")]
    with pytest.raises(LookupError, match="'log' no longer keeps offset 5 in a form this version can read"):
        parse_read(reply(5, entries), LOG, since=at(3))
    assert events(parse_read(reply(5, entries), LOG, since=at(3), limit=1)) == ["event4"]


def test_a_position_whose_own_entry_cannot_be_read_still_has_its_tag() -> None:
    """What it holds was received already; only that it is the same matters."""
    entries = [entry(3, b"\xff"), entry(4)]
    assert events(parse_read(reply(4, entries), LOG, since=at(3))) == ["event4"]


# What is no answer


@pytest.mark.parametrize(
    "broken",
    [
        "OK",
        7,
        [],
        [1, b"one", b"tag", 5],
        [b"x", b"one", b"tag", 5, []],
        [1, "one", b"tag", 5, []],
        [1, b"\xff", b"tag", 5, []],
        [1, b"one", None, 5, []],
        [1, b"one", b"tag", None, []],
        [1, b"one", b"tag", 5, 3],
        [1, b"one", b"tag", 5, [], 6],
    ],
)
def test_what_is_no_answer_of_ours_is_an_error_that_shows_it(broken: Any) -> None:
    for since in (None, at(1)):
        with pytest.raises(BackendError, match=r"^Redis answered a history read with .*; is a proxy in between\?$"):
            parse_read(broken, LOG, since=since)


def test_only_the_beginning_of_what_is_no_answer_is_shown() -> None:
    with pytest.raises(BackendError) as raised:
        parse_read("x" * 10_000, LOG)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "broken",
    [
        None,
        b"",
        [b"2-0"],
        [b"two-0", [b"b", b"x", b"t", b"y"]],
        [b"2-0", [b"b", encode_body(Publication("e", b"{}"))]],
        [b"2-0", [b"t", b"tag2"]],
        [b"2-0", [b"b", encode_body(Publication("e", b"{}")), b"t", b"\xff"]],
        [b"2-0", [b"b", encode_body(Publication("e", b"{}")), b"t"]],
        [b"2-0", [b"b", encode_body(Publication("e", b"{}")), b"t", b"tag2", b"odd"]],
        [b"2-0", None],
        ["2-0", [b"b", b"x", b"t", b"y"]],
        [b"2-0", [b"b", "text", b"t", b"tag2"]],
    ],
)
def test_an_entry_that_makes_no_sense_is_left_out_of_the_newest_and_refused_behind_a_position(broken: Any) -> None:
    entries = [entry(1), broken, entry(3)]
    assert events(parse_read(reply(3, entries[::-1]), LOG)) == ["event1", "event3"]
    with pytest.raises(LookupError, match="offset 2 in a form"):
        parse_read(reply(3, entries), LOG, since=at(1))


def test_further_fields_of_an_entry_are_of_a_later_version_and_do_no_harm() -> None:
    name, fields = entry(2)
    (found,) = parse_read(reply(2, [[name, [b"new", b"1", *fields]]]), LOG)
    assert found.event == "event2"


# The store


class Answering:
    """A runner that answers what it was made to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.commands: list[Command] = []

    async def run(self, command: Command) -> Any:
        self.commands.append(command)
        return self.answer

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        return [await self.run(command) for command in commands]


async def test_the_store_asks_and_parses_for_the_same_position_and_limit() -> None:
    runner = Answering(since_reply(2, 6))
    store = RedisHistory(runner, KEYS)
    assert events(await store.read(LOG, since=at(2), limit=2)) == ["event3", "event4"]
    assert runner.commands == [read_command(KEYS, LOG, since=at(2), limit=2)]
    with pytest.raises(LookupError):
        await store.read(LOG, since=at(2, tag="other"))
