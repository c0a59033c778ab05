"""Room patterns."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.declaration.patterns import RoomPattern
from socketspec.errors import ConfigurationError


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("lobby", "lobby", {}),
        ("lobby", "lobby2", None),
        ("chat:{room}", "chat:1", {"room": "1"}),
        ("chat:{room}", "chat:", None),
        ("chat:{room}", "chat:a:b", None),
        ("chat:{room}", "xchat:1", None),
        ("chat:{room}", "chat", None),
        ("{room}", "anything", {"room": "anything"}),
        ("{room}", "", None),
        ("{room}:log", "a:log", {"room": "a"}),
        ("{room}:log", ":log", None),
        ("{a}:{b}:{c}", "1:2:3", {"a": "1", "b": "2", "c": "3"}),
        ("{a}:{b}:{c}", "1::3", None),
        ("{a}:{b}", "1:2:3", None),
        ("{a}-{b}", "x-y-z", {"a": "x", "b": "y-z"}),
        ("{a}-{b}", "-x", None),
        ("{a}-{b}", "--x", {"a": "-", "b": "x"}),
        ("{a}-:{b}", "x--:y", {"a": "x-", "b": "y"}),
        ("{a}::{b}", "x:::y", None),
        ("aXb{v}b", "aXb", None),
        ("aa{v}aa", "aaaa", None),
        ("aa{v}aa", "aaaaa", {"v": "a"}),
        ("a.{v}*", "a.x*", {"v": "x"}),
        ("a.{v}*", "abx*", None),
        ("{{{v}}}", "{x}", {"v": "x"}),
        ("{{}}", "{}", {}),
        ("a{v}", "a*", {"v": "*"}),
        ("a{v}", "a\n", {"v": "\n"}),
    ],
)
def test_a_pattern_matches_literally_except_for_its_variables(
    source: str, name: str, expected: dict[str, str] | None
) -> None:
    assert RoomPattern(source).match(name) == expected


def test_a_pattern_shows_what_it_is_made_of_and_compares_by_source() -> None:
    pattern = RoomPattern("{tenant}:chat:{room}")
    assert (pattern.source, pattern.variables, pattern.is_static) == (
        "{tenant}:chat:{room}",
        ("tenant", "room"),
        False,
    )
    assert RoomPattern("lobby").is_static
    assert {pattern: 1}[RoomPattern("{tenant}:chat:{room}")] == 1
    assert pattern != RoomPattern("lobby")
    assert pattern != "{tenant}:chat:{room}"
    assert repr(pattern) == "RoomPattern('{tenant}:chat:{room}')"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "is empty"),
        ("chat:{room", "position 5: '{' is never closed"),
        ("chat:room}", "position 9: '}' closes nothing"),
        ("{a}{b}", "position 3: two variables with nothing between"),
        ("{a}:{a}", "position 4: the variable 'a' is there twice"),
        ("x:{}", "position 2: '' is not a Python identifier"),
        ("x:{1a}", "'1a' is not a Python identifier"),
        ("x:{a b}", "'a b' is not a Python identifier"),
        ("x:{class}", "'class' is not a Python identifier"),
        ("x:{a{b}", "'a{b' is not a Python identifier"),
        ("x\n:{a}", "fits no room, because the room name .* has a control character"),
        (" lobby", "fits no room"),
        ("x" * 201, "fits no room"),
        ("x" * 200 + "{a}", "fits no room"),
        (None, "needs a str"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused_with_the_place(source: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem.replace("{", r"\{").replace("}", r"\}")):
        RoomPattern(source)


def test_static_and_longer_patterns_come_first() -> None:
    sources = ["{a}", "chat:{room}", "x", "{a}:{b}:x", "{a}bb:x", "chat:lobby", "chat:vip-{room}"]
    ordered = sorted(map(RoomPattern, sources), key=lambda pattern: pattern.specificity)
    assert [pattern.source for pattern in ordered] == [
        "chat:lobby",
        "x",
        "chat:vip-{room}",
        "chat:{room}",
        "{a}bb:x",
        "{a}:{b}:x",
        "{a}",
    ]


def test_a_hostile_name_is_matched_in_linear_time() -> None:
    pattern = RoomPattern("-".join(f"{{v{number}}}" for number in range(40)) + "!")
    started = time.process_time()
    assert pattern.match("-" * 1_000_000) is None
    assert pattern.match("a-" * 500_000 + ":!") is None
    assert time.process_time() - started < 1.0


plain_literals = st.text(alphabet="ab-:.*{}", min_size=1, max_size=4)
values = st.text(alphabet="ab-.*{}é\n", min_size=1, max_size=5)


@st.composite
def patterns(draw: st.DrawFn) -> tuple[RoomPattern, list[str]]:
    """A pattern and its literals: before, between and after the variables."""
    count = draw(st.integers(0, 4))
    literals = [draw(plain_literals) for _ in range(count + 1)]
    if count and draw(st.booleans()):
        literals[0] = ""
    if count and draw(st.booleans()):
        literals[-1] = ""
    escaped = [literal.replace("{", "{{").replace("}", "}}") for literal in literals]
    source = escaped[0] + "".join(f"{{v{number}}}{literal}" for number, literal in enumerate(escaped[1:]))
    return RoomPattern(source), literals


@given(st.lists(values, min_size=1, max_size=4))
def test_with_colons_between_the_variables_every_allowed_value_is_matched(given_values: list[str]) -> None:
    variables = {f"v{number}": value for number, value in enumerate(given_values)}
    pattern = RoomPattern("x:" + ":".join(f"{{{variable}}}" for variable in variables))
    assert pattern.match("x:" + ":".join(given_values)) == variables


def readings(literals: list[str], name: str) -> list[list[str]]:
    """Every way to read `name`, by trying all of them; the shortest first values first."""
    if not name.startswith(literals[0]):
        return []
    rest = name[len(literals[0]) :]
    if len(literals) == 1:
        return [[]] if not rest else []
    return [
        [rest[:length], *others]
        for length in range(1, len(rest) + 1)
        if ":" not in rest[:length]
        for others in readings(literals[1:], rest[length:])
    ]


@given(patterns(), st.data())
def test_matching_finds_the_first_of_all_possible_readings(
    made: tuple[RoomPattern, list[str]], data: st.DataObject
) -> None:
    pattern, literals = made
    near = literals[0] + "".join(data.draw(st.text("ab-:.", max_size=4)) + literal for literal in literals[1:])
    name = data.draw(st.sampled_from([near, near[:-1], near + "a"]) | st.text("ab-:.", max_size=12))
    found = pattern.match(name)
    possible = readings(literals, name)
    assert (list(found.values()) if found is not None else None) == (possible[0] if possible else None)
