"""Every option that is a secret refuses an empty one: it would guard nothing, and nobody would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette

from socketspec import Identity, SocketApp
from socketspec.adapters.prometheus import mount_metrics
from socketspec.cluster.options import RedisOptions
from socketspec.cluster.urls import parse_url
from socketspec.errors import ConfigurationError
from socketspec.security.auth import APIKeyAuth, JWTAuth
from socketspec.security.secret_options import check_secret

SECRETS: dict[str, Callable[[Any], object]] = {
    "docs_access_token": lambda secret: SocketApp(docs=True, docs_access_token=secret),
    "docs_access_token without docs": lambda secret: SocketApp(docs_access_token=secret),
    "drain_token": lambda secret: SocketApp(drain_url="/drain", drain_token=secret),
    "drain_token without drain_url": lambda secret: SocketApp(drain_token=secret),
    "mount_metrics": lambda secret: mount_metrics(Starlette(), token=secret),
    "JWT secret": lambda secret: JWTAuth(secret),
    "JWT public key": lambda secret: JWTAuth(public_key=secret),
    "API keys": lambda secret: APIKeyAuth({secret}),
    "API keys with identities": lambda secret: APIKeyAuth({"good-key": Identity(), secret: Identity()}),
    "Redis password": lambda secret: RedisOptions(password=secret),
    "Sentinel password": lambda secret: RedisOptions(sentinel_password=secret),
    "password in a URL": lambda secret: parse_url(f"redis://user:{secret}@host"),
    "password in a URL without a user": lambda secret: parse_url(f"redis://:{secret}@host"),
}


@pytest.mark.parametrize("secret", ["", " ", "\t\n", "\u3000"])
@pytest.mark.parametrize("name", SECRETS)
def test_an_empty_secret_is_refused_with_a_sentence_that_says_what_to_write(name: str, secret: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        SECRETS[name](secret)
    assert len(str(refusal.value)) > 40


@pytest.mark.parametrize("name", ["docs_access_token", "drain_token", "mount_metrics"])
def test_a_secret_that_is_no_text_is_refused_and_not_quoted(name: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a str, not bytes") as refusal:
        SECRETS[name](b"hunter2")
    assert "hunter2" not in str(refusal.value)


def test_none_and_a_real_secret_are_fine() -> None:
    check_secret("option", None, without="")
    check_secret("option", " s3cret ", without="")
    assert parse_url("redis://user@host")[0].password is None
