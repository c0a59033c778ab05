"""Several auth backends, one after the other."""

from __future__ import annotations

import asyncio
from typing import Any

import jwt
import pytest

from socketspec.errors import AuthError
from socketspec.identity import ANONYMOUS, Identity
from socketspec.protocol.handshake import Handshake, Headers
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


async def test_a_later_backend_may_know_what_an_earlier_one_refused() -> None:
    assert await authenticate([Says(AuthError("no")), Says(ADA)], Handshake()) is ADA


async def test_the_first_refusal_is_the_one_the_client_gets() -> None:
    assert await refusal(Says(None), Says(AuthError("first")), Says(AuthError("second"))) == "first"
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


async def test_a_failing_backend_does_not_keep_out_whom_another_one_knows() -> None:
    assert await authenticate([Says(RuntimeError()), Says(ADA)], Handshake()) is ADA
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
