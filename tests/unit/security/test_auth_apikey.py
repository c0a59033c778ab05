"""API keys."""

from __future__ import annotations

import gc
import hashlib
import hmac
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.errors import AuthError, ConfigurationError
from socketspec.identity import Identity
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.security.auth import APIKeyAuth


def by_header(key: str, name: str = "X-API-Key") -> Handshake:
    return Handshake(headers=Headers([(name, key)]))


async def test_the_documented_constructor_works_verbatim() -> None:
    auth = APIKeyAuth(valid_keys={"key-abc", "key-xyz"})
    for key in ("key-abc", "key-xyz"):
        found = await auth.authenticate(by_header(key))
        assert found == Identity(user_id="key:" + hashlib.sha256(key.encode()).hexdigest()[:16])
        assert found.is_authenticated


@pytest.mark.parametrize("keys", [["k1", "k2"], ("k1", "k2"), {"k1", "k2"}, frozenset({"k1"}), {"k1": 0}.keys()])
async def test_any_collection_of_keys_will_do(keys: Any) -> None:
    assert await APIKeyAuth(keys).authenticate(by_header("k1")) is not None


@pytest.mark.parametrize(
    "handshake",
    [
        by_header("key"),
        by_header("key", "x-api-key"),
        Handshake(query_params=QueryParams([("api_key", "key")])),
        Handshake(subprotocols=("socketspec.v1.json", "socketspec.bearer.key")),
        Handshake(token="key"),
        Handshake(headers=Headers([("x-api-key", "key")]), query_params=QueryParams([("api_key", "wrong")])),
        Handshake(query_params=QueryParams([("api_key", "key")]), subprotocols=("socketspec.bearer.wrong",)),
        by_header("wrong").with_token("key"),
    ],
    ids=["header", "case", "query", "subprotocol", "message", "header first", "then query", "message alone"],
)
async def test_the_key_is_looked_for_in_the_documented_order(handshake: Handshake) -> None:
    assert await APIKeyAuth({"key"}).authenticate(handshake) is not None


async def test_without_a_key_the_backend_has_nothing_to_say() -> None:
    auth = APIKeyAuth({"key"})
    for handshake in (Handshake(), by_header(""), Handshake(headers=Headers([("authorization", "Bearer key")]))):
        assert await auth.authenticate(handshake) is None


async def test_a_key_that_came_by_message_is_the_only_one_looked_at() -> None:
    for token in ("", "wrong"):
        with pytest.raises(AuthError):
            await APIKeyAuth({"key"}).authenticate(by_header("key").with_token(token))


async def test_header_and_parameter_can_be_renamed_or_turned_off() -> None:
    auth = APIKeyAuth({"key"}, header="X-Token", query_param=None)
    assert await auth.authenticate(by_header("key", "x-token")) is not None
    assert await auth.authenticate(by_header("key")) is None
    assert await auth.authenticate(Handshake(query_params=QueryParams([("api_key", "key")]))) is None
    assert await APIKeyAuth({"key"}, header=None).authenticate(by_header("key")) is None
    assert await APIKeyAuth({"key"}, query_param="k").authenticate(Handshake(query_params=QueryParams([("k", "key")])))


WRONG = [
    "k", "ke", "keys", "key ", " key", "KEY", "Key", "key\0", "\0key", "kéy", "\ud800", "wrong", "x" * 1024,
    "x" * 100_000, "key,key",
    '"key"', "key\n", "*", "%", "' OR ''='", "{}", "null", "None", hashlib.sha256(b"key").hexdigest(),
]  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
async def test_no_other_key_is_accepted_and_none_is_logged(key: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "socketspec.auth"), pytest.raises(AuthError) as caught:
        await APIKeyAuth({"key"}).authenticate(by_header(key))
    assert caught.value.message == "The API key is not valid."
    reason = "an unknown API key" if len(key) <= 1024 else "an API key of 100000 characters"
    assert caplog.record_tuples == [("socketspec.auth", logging.INFO, f"refused: {reason}")]


@given(st.text(min_size=1).filter(lambda key: key != "key"))
def test_arbitrary_text_is_refused_and_nothing_else_happens(key: str) -> None:
    answer = APIKeyAuth({"key"}).authenticate(Handshake(token=key))
    with pytest.raises(AuthError):
        answer.send(None)


@pytest.mark.parametrize(("key", "accepted"), [("key-a", True), ("key-x", False), ("wrong", False), ("k", False)])
async def test_every_key_is_compared_once_in_constant_time(
    key: str, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = APIKeyAuth({"key-a", "key-b"})
    compared: list[tuple[int, int]] = []
    digested: list[int] = []
    compare, digest = hmac.compare_digest, hmac.digest

    def counting_compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    def counting_digest(key: bytes, message: bytes, name: str) -> bytes:
        digested.append(len(key))
        return digest(key, message, name)

    monkeypatch.setattr(hmac, "compare_digest", counting_compare)
    monkeypatch.setattr(hmac, "digest", counting_digest)
    if accepted:
        await auth.authenticate(by_header(key))
    else:
        with pytest.raises(AuthError):
            await auth.authenticate(by_header(key))
    assert (compared, digested) == ([(32, 32)], [32])


async def test_a_mapping_gives_each_key_its_identity() -> None:
    ada = Identity(user_id="ada", role="admin")
    auth = APIKeyAuth({"key-a": ada, "key-b": Identity(user_id="bob")})
    assert await auth.authenticate(by_header("key-a")) is ada
    with pytest.raises(AuthError):
        await auth.authenticate(by_header("ada"))


async def test_changing_the_mapping_afterwards_changes_nothing() -> None:
    keys = {"key-a": Identity(user_id="ada")}
    auth = APIKeyAuth(keys)
    keys["key-b"] = Identity(user_id="eve")
    with pytest.raises(AuthError):
        await auth.authenticate(by_header("key-b"))


async def test_a_callable_is_asked() -> None:
    async def look_up(key: str) -> Identity | None:
        return Identity(user_id="ada") if key == "good" else None

    auth = APIKeyAuth(look_up)
    found = await auth.authenticate(by_header("good"))
    assert found == Identity(user_id="ada")
    with pytest.raises(AuthError, match="not valid"):
        await auth.authenticate(by_header("bad"))


async def test_a_callable_need_not_be_async() -> None:
    def look_up(key: str) -> Any:
        return Identity(user_id=key)

    assert await APIKeyAuth(look_up).authenticate(by_header("good")) == Identity(user_id="good")


async def test_a_callable_is_not_asked_about_no_key_or_an_endless_one() -> None:
    asked: list[str] = []

    async def look_up(key: str) -> Identity | None:
        asked.append(key)
        return Identity(user_id="ada")

    for key in ("", "x" * 1025):
        with pytest.raises(AuthError):
            await APIKeyAuth(look_up).authenticate(Handshake(token=key))
    assert asked == []


async def test_a_callable_can_refuse_in_its_own_words() -> None:
    async def look_up(key: str) -> Identity | None:
        raise AuthError("This key was withdrawn.")

    with pytest.raises(AuthError, match=r"^This key was withdrawn\.$"):
        await APIKeyAuth(look_up).authenticate(by_header("good"))


async def test_a_callable_that_fails_lets_nobody_in_and_does_not_log_the_key(caplog: pytest.LogCaptureFixture) -> None:
    known: dict[str, Identity] = {}

    async def look_up(key: str) -> Identity | None:
        return known[key]

    async def agree(key: str) -> Any:
        return True

    for failing in (look_up, agree):
        with pytest.raises(AuthError) as caught:
            await APIKeyAuth(failing).authenticate(by_header("a-very-secret-key"))
        assert caught.value.message == "Authentication is not available right now."
    assert "KeyError" in caplog.text
    assert "TypeError" in caplog.text
    assert "in look_up" in caplog.text
    assert "a-very-secret-key" not in caplog.text


def test_the_keys_are_not_kept() -> None:
    key = "key-" + "secret" * 5
    auth = APIKeyAuth([key])
    assert key not in repr(auth)
    reached: list[object] = [auth]
    for _ in range(4):
        reached += [found for found in gc.get_referents(*reached) if not isinstance(found, type)]
    assert not any(found == key for found in reached if isinstance(found, str))
    assert hashlib.sha256(key.encode()).digest() not in [found for found in reached if isinstance(found, bytes)]


@pytest.mark.parametrize(
    "keys",
    [
        "key-abc", b"key-abc", set(), [], {}, (), {""}, ["good", ""], [None], [1], [b"key"], None, 7, iter(["key"]),
        ["with space"], [" key"], ["key\n"], ["kéy"], ["x" * 1025], {"": Identity()}, {"key": "ada"}, {"key": None},
    ],
)  # fmt: skip
def test_keys_that_cannot_work_are_refused_at_construction(keys: Any) -> None:
    with pytest.raises(ConfigurationError, match="APIKeyAuth") as caught:
        APIKeyAuth(keys)
    assert "key-abc" not in str(caught.value)
    assert "x" * 20 not in str(caught.value)


def test_first_message_is_off_unless_asked_for() -> None:
    assert APIKeyAuth({"k"}).first_message is False
    assert APIKeyAuth({"k"}, first_message=True).first_message is True
