"""A secret that requests have to bring as ``Authorization: Bearer``."""

from __future__ import annotations

import pytest

from socketspec.protocol.handshake import Handshake, Headers, token_of
from socketspec.security.bearer import BearerSecret


@pytest.mark.parametrize("header", ["Bearer s3cret", "bearer s3cret", "BEARER   s3cret ", "Bearer\u0020s3cret\t"])
def test_the_token_is_what_follows_the_scheme_in_whatever_case(header: str) -> None:
    assert token_of(header) == "s3cret"


@pytest.mark.parametrize("header", ["", "s3cret", "Basic s3cret", "Bearers3cret", "Bearer:s3cret"])
def test_what_has_another_scheme_has_no_token(header: str) -> None:
    assert token_of(header) is None


def test_a_token_beyond_ascii_is_read_as_utf_8_from_a_header_handed_on_as_latin_1() -> None:
    header = "Bearer " + "schlüssel-☃".encode().decode("latin-1")
    assert token_of(header) == "schlüssel-☃"
    assert Handshake(headers=Headers([("Authorization", header)])).bearer_token == "schlüssel-☃"


@pytest.mark.parametrize("token", ["", "S3CRET", "s3cret2", "s3cre", "s3crét", None])
def test_only_the_secret_itself_matches(token: str | None) -> None:
    assert BearerSecret("s3cret").matches("s3cret")
    assert not BearerSecret("s3cret").matches(token)


@pytest.mark.parametrize("token", ["", None, "guess"])
def test_an_empty_secret_is_matched_by_nothing(token: str | None) -> None:
    assert not BearerSecret("").matches(token)
