"""Whose bucket an event draws from, locally and where nodes share one."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from socketspec.backend.protocols import Limits
from socketspec.connection import Connection
from socketspec.inbound.limiter import Limiter
from socketspec.security.ratelimit import RateLimit


class FakeLimits:
    """Shared buckets that remember what was asked."""

    def __init__(self, verdict: float = 0.0) -> None:
        self.verdict = verdict
        self.asked: list[tuple[str, float, float]] = []

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        self.asked.append((key, rate, capacity))
        return self.verdict


_numbers = itertools.count()


def connection(user: str | None = None, ip: str | None = "10.0.0.1") -> Connection:
    return cast(
        "Connection",
        SimpleNamespace(
            identity=SimpleNamespace(user_id=user),
            handshake=SimpleNamespace(client=(ip, 1) if ip else None),
            id=f"c{next(_numbers)}",
        ),
    )


def limiter(scope: Any = None, *, shared: bool = False, **options: Any) -> tuple[Limiter, FakeLimits]:
    limits = FakeLimits()
    return Limiter(RateLimit(1, 2, scope=scope, **options), cast("Limits", limits), shared=shared), limits


def passes(limit: Limiter, conn: Connection, now: float = 0.0) -> bool:
    wait = limit.check(conn, now)
    assert isinstance(wait, float | int)
    return wait == 0


@pytest.mark.parametrize("scope", [None, "connection"])
def test_each_connection_has_its_own_bucket(scope: Any) -> None:
    limit, _ = limiter(scope)
    one, two = connection("ann"), connection("ann")
    assert [passes(limit, one) for _ in range(3)] == [True, True, False]
    assert passes(limit, two)
    assert passes(limit, one, now=1.0)


@pytest.mark.parametrize(
    ("scope", "same", "other"),
    [
        ("user", connection("ann", "10.0.0.2"), connection("bob")),
        ("ip", connection("bob"), connection("ann", "10.0.0.2")),
        (lambda conn: conn.identity.user_id[0], connection("abe"), connection("bob")),
    ],
    ids=["user", "ip", "function"],
)
def test_connections_of_one_scope_share_a_bucket(scope: Any, same: Connection, other: Connection) -> None:
    limit, limits = limiter(scope)
    first = connection("ann")
    assert [passes(limit, first), passes(limit, same), passes(limit, first)] == [True, True, False]
    assert passes(limit, other)
    assert limits.asked == []


def test_who_has_no_user_or_address_has_a_bucket_of_its_own() -> None:
    for scope, nobody in (("user", connection(None)), ("ip", connection("ann", None))):
        limit, _ = limiter(scope)
        assert [passes(limit, nobody) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("scope", "key"),
    [(None, "user:ann"), ("user", "user:ann"), ("ip", "ip:10.0.0.1"), (lambda _: "team", "custom:team")],
    ids=["none", "user", "ip", "function"],
)
def test_a_shared_backend_is_asked(scope: Any, key: str) -> None:
    limit, limits = limiter(scope, shared=True)
    limits.verdict = 1.5
    verdict = limit.check(connection("ann"), 0.0)
    assert asyncio.iscoroutine(verdict)
    assert asyncio.run(verdict) == 1.5
    assert limits.asked == [(key, 1, 2)]


def test_a_shared_backend_is_not_asked_about_a_connection_alone() -> None:
    limit, limits = limiter("connection", shared=True)
    assert passes(limit, connection("ann"))
    limit, limits = limiter(None, shared=True)
    assert passes(limit, connection(None))
    assert limits.asked == []


def test_refusals_beyond_the_allowance_are_abuse_and_are_forgotten_in_time() -> None:
    limit, _ = limiter(max_violations=3)
    conn = connection()
    assert [limit.is_abuse(conn, 0.0) for _ in range(4)] == [False, False, False, True]
    assert not limit.is_abuse(conn, 1.0)
    never, _ = limiter(max_violations=0)
    assert not any(never.is_abuse(connection(), 0.0) for _ in range(1000))
