"""Session tokens: random, and of no use to another user or in another namespace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from socketspec.session.session_tokens import check_session, is_given_to, new_token

USERS = st.none() | st.text(max_size=5)
NAMESPACES = st.sampled_from(["/", "/a", "/ab"])


@given(NAMESPACES, USERS)
def test_a_token_can_be_brought_and_is_its_users(namespace: str, user: str | None) -> None:
    token = new_token(namespace, user)
    assert check_session(token) == token
    assert is_given_to(token, namespace, user)
    assert new_token(namespace, user) != token


@given(st.tuples(NAMESPACES, USERS), st.tuples(NAMESPACES, USERS))
def test_a_token_is_nobody_elses(one: tuple[str, str | None], two: tuple[str, str | None]) -> None:
    assert is_given_to(new_token(*one), *two) is (one == two)


@given(st.text(alphabet="abcXYZ019_-", min_size=16, max_size=128), USERS)
def test_a_made_up_token_is_nobodys(token: str, user: str | None) -> None:
    assert not is_given_to(token, "/", user)


@given(st.integers(0, 63))
def test_a_token_that_was_changed_anywhere_is_nobodys(at: int) -> None:
    token = new_token("/", "ada")
    letter = "b" if token[at] == "a" else "a"
    for changed in (token[:at] + letter + token[at + 1 :], token[:at] + token[at + 1 :], token + letter):
        assert not is_given_to(changed, "/", "ada")
