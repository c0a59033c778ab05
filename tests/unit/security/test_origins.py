"""Which origins may connect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.errors import ConfigurationError
from socketspec.protocol.handshake import Headers
from socketspec.security.origins import OriginPolicy

LISTED = ["https://myapp.com", "https://staging.myapp.com", "http://localhost:8000"]


def sent(*origins: str) -> Headers:
    return Headers([("Host", "myapp.com"), *(("Origin", origin) for origin in origins)])


@pytest.mark.parametrize("origin", LISTED)
def test_a_listed_origin_may_connect(origin: str) -> None:
    assert OriginPolicy(LISTED).allows(sent(origin))


@pytest.mark.parametrize(
    ("listed", "origin"),
    [
        ("https://myapp.com", "https://MyApp.com"),
        ("https://myapp.com", "HTTPS://MYAPP.COM"),
        ("https://myapp.com", "https://myapp.com:443"),
        ("https://myapp.com:443", "https://myapp.com"),
        ("http://MYAPP.com:80", "http://myapp.com"),
        ("http://myapp.com:8080", "http://myapp.com:8080"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://[::1]:3000", "http://[0:0:0:0:0:0:0:1]:3000"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("https://under_score.example", "https://under_score.example"),
    ],
)
def test_case_and_default_ports_do_not_matter(listed: str, origin: str) -> None:
    assert OriginPolicy([listed]).allows(sent(origin))


FOREIGN = [
    "https://evil.com", "https://myapp.com.evil.com", "https://evil-myapp.com", "https://evilmyapp.com", "https://myapp.co",
    "https://sub.myapp.com", "https://myapp.comm", "https://myapp", "https://com", "http://myapp.com", "ws://myapp.com",
    "wss://myapp.com", "https://myapp.com:8443", "https://myapp.com:80", "https://myapp.com:0", "https://myapp.com:",
    "https://myapp.com:0443", "https://myapp.com:443443", "https://myapp.com:+443", "https://myapp.com:\uff14\uff14\uff13",
    "https://myapp.com/", "https://myapp.com/x", "https://myapp.com?", "https://myapp.com#", "https://myapp.com\\",
    "https://myapp.com.", "https://.myapp.com", "https://myapp..com", "https://-myapp.com", "https://myapp.com ",
    " https://myapp.com", "https://myapp.com\t", "https://myapp.com\n", "https://myapp.com\r\n", "https://myapp.com\0",
    "https://myapp.com, https://evil.com", "https://myapp.com https://evil.com", "https://evil.com#https://myapp.com",
    "https://user@myapp.com", "https://myapp.com@evil.com", "https://myapp.com:443@evil.com", "https://myapp%2ecom",
    "https://myapp%00.com", "https://m\u0443app.com", "https://myapp。com", "https://\uff4dyapp.com", "https://myapp.com\u200b",
    "https://myapp.com\u0130", "https:myapp.com", "https:/myapp.com", "https:///myapp.com", "//myapp.com", "myapp.com",
    "null", "NULL", "", "*", "https://*", "https://*.myapp.com", "https://", "://", "file://", "file:///etc/passwd",
    "https://[::1]", "https://[myapp.com]", "https://[::1%25eth0]", "https://[1:2]", "https://[", "data:text/html,x",
    "about:blank", "undefined",
    "http://localhost", "http://localhost:8001", "http://127.0.0.1:8000", "http://localhost:80008", "https://localhost:8000",
    "\ud800", "x" * 100_000, "https://" + "a." * 50_000 + "com", "https://myapp.com" + ":" * 50_000,
]  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN, ids=[f"{i}-{origin[:30]!a}" for i, origin in enumerate(FOREIGN)])
def test_no_other_origin_may_connect(origin: str) -> None:
    assert not OriginPolicy(LISTED).allows(sent(origin))


def test_letters_that_become_ascii_in_lower_case_are_not_ascii() -> None:
    kelvin = "\u212a"
    assert kelvin.lower() == "k"
    assert not OriginPolicy(["https://key.example"]).allows(sent(f"https://{kelvin}ey.example"))


@given(st.text(), st.text())
def test_text_around_a_listed_origin_makes_it_another_one(before: str, after: str) -> None:
    origin = before + "https://myapp.com" + after
    assert OriginPolicy(["https://myapp.com"]).allows(sent(origin)) is (
        origin.lower() in ("https://myapp.com", "https://myapp.com:443") and origin.isascii()
    )


@pytest.mark.parametrize("allowed", [LISTED, ["*"], ["null"]])
def test_a_handshake_without_an_origin_is_no_page_and_may_connect(allowed: list[str]) -> None:
    assert OriginPolicy(allowed).allows(Headers([("Host", "myapp.com")]))


def test_an_empty_origin_is_not_a_missing_one() -> None:
    assert not OriginPolicy(LISTED).allows(sent(""))


def test_null_matches_only_where_it_is_listed() -> None:
    assert OriginPolicy([*LISTED, "null"]).allows(sent("null"))
    assert not OriginPolicy(LISTED).allows(sent("null"))


def test_several_origins_are_refused_even_if_all_are_listed() -> None:
    for origins in (LISTED[:2], [LISTED[0]] * 2, [LISTED[0], "https://evil.com"], ["https://evil.com", LISTED[0]]):
        assert not OriginPolicy(LISTED).allows(sent(*origins))


@pytest.mark.parametrize("origin", ["https://evil.com", "null", "", "anything"])
def test_the_star_allows_every_origin(origin: str) -> None:
    assert OriginPolicy(["*"]).allows(sent(origin))


@pytest.mark.parametrize(
    ("allowed", "advice"),
    [
        ("https://myapp.com", "['https://myapp.com']"),
        ("*", "['*']"),
        ([], '["*"]'),
        ((), '["*"]'),
        (["myapp.com"], "'https://myapp.com'"),
        (["MyApp.com:8443"], "'https://myapp.com:8443'"),
        (["//myapp.com"], "'https://myapp.com'"),
        (["https://myapp.com/"], "'https://myapp.com'"),
        (["https://myapp.com/chat?x=1#y"], "'https://myapp.com'"),
        (["wss://myapp.com"], "'https://myapp.com'"),
        (["ws://myapp.com:8000/ws"], "'http://myapp.com:8000'"),
        ([" https://myapp.com "], "'https://myapp.com'"),
        (["https://myapp.com."], "'https://myapp.com'"),
        (["https://user@myapp.com"], "'https://myapp.com'"),
        (["https://*.myapp.com"], "wildcards"),
        (["https://myapp.com", "*"], "wildcards"),
        (["https://myapp.com:*"], "wildcards"),
        (["https://bücher.example"], "xn--"),
        (["https://myapp.com:99999"], "port"),
        (["https://my%61pp.com"], "'https://example.com'"),
        (["https://"], "'https://example.com'"),
        ([""], "'https://example.com'"),
        (["NULL"], "'https://null'"),
        ([None], "None"),
        ([b"https://myapp.com"], "not a string"),
    ],
)
def test_a_list_that_cannot_match_is_refused_with_the_right_spelling(allowed: Any, advice: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        OriginPolicy(allowed)
    assert "allowed_origins" in str(caught.value)
    assert advice in str(caught.value)


def test_the_policy_shows_its_origins() -> None:
    assert repr(OriginPolicy(["https://B.example:443", "http://a.example"])) == (
        "OriginPolicy(['http://a.example', 'https://b.example'])"
    )
    assert repr(OriginPolicy(["*"])) == "OriginPolicy(['*'])"
