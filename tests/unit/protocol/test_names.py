"""Names, and reserved events."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.protocol.names import (
    CLIENT_EVENTS,
    RESERVED_EVENTS,
    check_event_name,
    check_namespace,
    check_room_name,
    check_user_id,
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


@pytest.mark.parametrize(
    ("check", "subject"),
    [
        (check_room_name, "room name"),
        (check_event_name, "event name"),
        (check_namespace, "namespace name"),
        (check_user_id, "user id"),
    ],
)
def test_the_type_of_what_is_no_text_is_said_once(check: Check, subject: str) -> None:
    wrong: Any = 5
    with pytest.raises(ValueError, match=f"^{subject} is of type int; pass a str$"):
        check(wrong)


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
