"""Names, reserved events and room patterns."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from socketspec.declaration.patterns import RoomPattern
from socketspec.errors import ConfigurationError
from socketspec.protocol.names import (
    CLIENT_EVENTS,
    RESERVED_EVENTS,
    check_event_name,
    check_namespace,
    check_room_name,
    is_reserved,
)

Check = Callable[[str], str]


@pytest.mark.parametrize(
    "name",
    [
        "chat",
        "chat:lobby",
        "a b",
        "*",
        "?[]{}:*^$\\%s{0}",
        "x" * 200,
        "é" * 100,
        "日本語",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "👩\u200d💻",
        "a\u00a0b",
        "\U000e0fff",
        "__ping__",
    ],
)
@pytest.mark.parametrize("check", [check_room_name, check_event_name])
def test_a_printable_name_is_returned_as_it_is(check: Check, name: str) -> None:
    assert check(name) == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        ("x" * 201, "too long"),
        ("é" * 101, "too long"),
        (" a", "white space"),
        ("a ", "white space"),
        ("a\u3000", "white space"),
        ("\u00a0a", "white space"),
        ("a\nb", r"a control character \(U\+000A\) at position 1"),
        ("a\x00", "a control character"),
        ("a\x7f", "a control character"),
        ("é\x85", "a control character"),
        ("a\u2028b", "a line separator"),
        ("a\u2029b", "a line separator"),
        ("a\ud800", "a lone surrogate"),
        ("a\u202eb", "an invisible formatting character"),
        ("a\u200bb", "an invisible formatting character"),
        ("\ufeffa", "an invisible formatting character"),
        ("e\u0301", "normal form C"),
        ("\u212b", "normal form C"),
        (b"chat", "of type bytes; pass a str"),
        (None, "of type NoneType; pass a str"),
        (5, "of type int; pass a str"),
    ],
)
@pytest.mark.parametrize(("check", "kind"), [(check_room_name, "room"), (check_event_name, "event")])
def test_a_bad_name_is_refused_with_what_is_wrong(check: Check, kind: str, name: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{kind} name .*{problem}"):
        check(name)


def test_the_refusal_of_a_huge_name_is_short_and_plain_ascii_where_the_name_is_shown() -> None:
    with pytest.raises(ValueError, match="too long") as caught:
        check_room_name("\u202e\n" * 1_000_000)
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)
    assert "\u202e" not in str(caught.value)


@pytest.mark.parametrize("name", ["/", "/chat", "/ü"])
def test_a_namespace_starts_with_a_slash(name: str) -> None:
    assert check_namespace(name) == name


@pytest.mark.parametrize(("name", "problem"), [("chat", 'start with "/"'), ("", "is empty"), ("/\n", "control")])
def test_a_bad_namespace_is_refused_with_what_is_wrong(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^namespace .*{problem}"):
        check_namespace(name)


@given(st.text(max_size=250))
def test_whatever_passes_keeps_every_promise_and_whatever_is_plain_passes(name: str) -> None:
    try:
        assert check_room_name(name) is name
    except ValueError:
        assert not (name and name.isprintable() and name == name.strip() and len(name) <= 50) or (
            unicodedata.normalize("NFC", name) != name
        )
    else:
        assert 1 <= len(name.encode()) <= 200
        assert name == name.strip() == unicodedata.normalize("NFC", name)
        assert len(name.splitlines()) == 1
        assert not any(unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"} for each in name)


def test_the_reserved_events_are_those_of_the_protocol() -> None:
    assert " ".join(sorted(RESERVED_EVENTS)) == (
        "__ack__ __auth_expiring__ __connect__ __disconnect__ __error__ __idle_warning__ __ping__ __pong__ "
        "__refresh_auth__ __resume__ __server_shutdown__ __session_expiring__"
    )
    assert set(CLIENT_EVENTS) == {"__ping__", "__pong__", "__refresh_auth__", "__resume__"}
    assert all(is_reserved(name) for name in RESERVED_EVENTS)


@pytest.mark.parametrize(
    ("name", "reserved"),
    [("__future__", True), ("__", True), ("__x", False), ("x__", False), ("_x_", False), ("a__b", False), ("", False)],
)
def test_every_name_between_double_underscores_is_reserved(name: str, reserved: bool) -> None:
    assert is_reserved(name) is reserved


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


def test_formatting_fills_the_variables_in() -> None:
    assert RoomPattern("{{{tenant}}}:chat:{room}").format(tenant="acme", room="a*b") == "{acme}:chat:a*b"
    assert RoomPattern("lobby").format() == "lobby"
    assert RoomPattern("x:{self}").format(self="1") == "x:1"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({}, "needs exactly these variables: a, b; got: none"),
        ({"a": "1"}, "got: a"),
        ({"a": "1", "b": "2", "c": "3"}, "got: a, b, c"),
        ({"a": "", "b": "2"}, "a='' must have at least one character"),
        ({"a": "1:2", "b": "2"}, "a='1:2' must have at least one character and no"),
        ({"a": 1, "b": "2"}, "a is of type int; pass a str"),
        ({"a": "x-y", "b": "z"}, "would be read as other variables"),
    ],
)
def test_formatting_refuses_what_matching_would_not_give_back(variables: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RoomPattern("{a}-{b}").format(**variables)


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


@given(patterns(), st.data())
def test_matching_gives_back_what_formatting_was_given(
    made: tuple[RoomPattern, list[str]], data: st.DataObject
) -> None:
    pattern, _ = made
    variables = {variable: data.draw(values) for variable in pattern.variables}
    try:
        name = pattern.format(**variables)
    except ValueError as error:
        assert "would be read as other variables" in str(error)  # noqa: PT017 - other errors must fail the test
        assume(False)
    else:
        assert pattern.match(name) == variables


@given(st.integers(1, 4), st.data())
def test_with_colons_between_the_variables_every_allowed_value_can_be_formatted(
    count: int, data: st.DataObject
) -> None:
    pattern = RoomPattern("x:" + ":".join(f"{{v{number}}}" for number in range(count)))
    drawn = st.fixed_dictionaries(dict.fromkeys(pattern.variables, values))
    first, second = data.draw(drawn), data.draw(drawn)
    assert pattern.match(pattern.format(**first)) == first
    assert (pattern.format(**first) == pattern.format(**second)) == (first == second)


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
