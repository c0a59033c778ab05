"""Several auth backends, one after the other."""

from __future__ import annotations

import asyncio
from typing import Any

import jwt
import pytest

from socketspec.errors import AuthError
from socketspec.identity import ANONYMOUS, Identity
from socketspec.protocol.handshake import Handshake, Headers, QueryParams
from socketspec.security.auth import APIKeyAuth, AuthBackend, JWTAuth, authenticate

ADA = Identity(user_id="ada")
BOB = Identity(user_id="bob")


class Says:
    """Answers, or raises, what it was made with."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return] # some tests answer what must not be answered


async def refusal(*backends: AuthBackend) -> str:
    with pytest.raises(AuthError) as caught:
        await authenticate(backends, Handshake())
    return caught.value.message


async def test_the_first_identity_wins_and_later_backends_are_not_asked() -> None:
    late = Says(BOB)
    assert await authenticate([Says(None), Says(ADA), late], Handshake()) is ADA
    assert late.asked == 0


async def test_a_refusal_is_final_whatever_else_the_client_brings() -> None:
    late = Says(ADA)
    assert await refusal(Says(None), Says(AuthError("You are banned.")), late) == "You are banned."
    assert late.asked == 0


SECRETS = ["one secret of more than thirty-two bytes", "another one of more than thirty-two bytes"]


def signed(secret: str, **claims: Any) -> str:
    return jwt.encode({"sub": "ada", "exp": 4_000_000_000} | claims, secret)


BAD = {"forged": signed(SECRETS[1]), "expired": signed(SECRETS[0], exp=1), "no token at all": "x"}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("in_query", [False, True])
async def test_bad_credentials_are_not_made_up_for_by_good_ones_of_another_kind(what: str, in_query: bool) -> None:
    headers = [("x-api-key", "key-abc")]
    query = [("token", BAD[what])] if in_query else []
    headers += [] if in_query else [("authorization", f"Bearer {BAD[what]}")]
    handshake = Handshake(headers=Headers(headers), query_params=QueryParams(query))
    with pytest.raises(AuthError, match="token"):
        await authenticate([JWTAuth(SECRETS[0]), APIKeyAuth({"key-abc"})], handshake)
    bad_key = Handshake(headers=Headers([("x-api-key", "x"), ("authorization", f"Bearer {signed(SECRETS[0])}")]))
    with pytest.raises(AuthError, match="key"):
        await authenticate([APIKeyAuth({"key-abc"}), JWTAuth(SECRETS[0])], bad_key)


async def test_one_token_is_shown_to_every_backend_that_may_know_it() -> None:
    """As where keys are changed: the old one and the new one are both taken for a while."""
    handshake = Handshake(headers=Headers([("authorization", f"Bearer {signed(SECRETS[1])}")]))
    backends: list[AuthBackend] = [JWTAuth(SECRETS[0]), APIKeyAuth({"k"}), JWTAuth(SECRETS[1])]
    assert (await authenticate(backends, handshake)).user_id == "ada"


async def test_the_first_refusal_is_the_one_the_client_gets() -> None:
    assert await refusal(Says(None), Says(AuthError("first")), Says(AuthError("second"))) == "first"
    bad = Handshake(token="x")
    with pytest.raises(AuthError, match="token"):
        await authenticate([JWTAuth("a" * 32), Says(AuthError("second"))], bad)
    assert await refusal(Says(AuthError("only")), Says(None)) == "only"


async def test_without_credentials_the_client_is_told_what_to_send() -> None:
    message = await refusal(JWTAuth("a" * 32), APIKeyAuth({"k"}, header="X-Key"), JWTAuth("b" * 32))
    assert message.startswith("No credentials. Send a token as Authorization: Bearer <token>, ?token=<token> or ")
    assert message.count("Bearer") == 1
    assert "X-Key" in message
    assert "?api_key=" in message
    assert await refusal(Says(None)) == "No credentials. Send the credentials your server expects."
    assert (await refusal()).startswith("No credentials.")


@pytest.mark.parametrize(
    "failure", [RuntimeError("secret text"), KeyError("secret text"), True, "ada", {"user_id": "a"}]
)
async def test_a_backend_that_fails_lets_nobody_in(failure: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert await refusal(Says(failure)) == "Authentication is not available right now."
    assert "Says" in caplog.text
    assert "Error" in caplog.text
    assert "secret text" not in caplog.text


async def test_where_a_backend_fails_no_other_lets_anybody_in() -> None:
    late = Says(ADA)
    assert await refusal(Says(RuntimeError()), late) == "Authentication is not available right now."
    assert late.asked == 0
    assert await authenticate([late, Says(RuntimeError())], Handshake()) is ADA
    assert await refusal(Says(AuthError("first")), Says(RuntimeError())) == "first"


@pytest.mark.parametrize("signal", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit()])
def test_cancellation_and_exit_pass_through(signal: BaseException) -> None:
    running = authenticate([Says(signal), Says(ADA)], Handshake())
    with pytest.raises(type(signal)):
        running.send(None)


async def test_an_identity_may_be_anonymous_if_a_backend_says_so() -> None:
    assert await authenticate([Says(ANONYMOUS)], Handshake()) is ANONYMOUS


async def test_tokens_and_api_keys_live_side_by_side() -> None:
    secret = "one secret of more than thirty-two bytes"
    backends: list[AuthBackend] = [JWTAuth(secret), APIKeyAuth({"key-abc"})]
    token = jwt.encode({"sub": "ada", "exp": 4_000_000_000}, secret)
    for handshake, user in (
        (Handshake(token=token), "ada"),
        (Handshake(headers=Headers([("x-api-key", "key-abc")])), "key:"),
        (Handshake(token="key-abc"), "key:"),
        (Handshake(subprotocols=("socketspec.bearer.key-abc",)), "key:"),
    ):
        assert str((await authenticate(backends, handshake)).user_id).startswith(user)
    with pytest.raises(AuthError, match="token"):
        await authenticate(backends, Handshake(token="neither"))
