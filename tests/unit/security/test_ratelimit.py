"""Options of a rate limit."""

from __future__ import annotations

from typing import Any

import pytest

from socketspec.errors import ConfigurationError
from socketspec.security.ratelimit import RateLimit


def test_rate_and_capacity_can_be_given_by_position_or_by_name() -> None:
    limit = RateLimit(10, 20)
    assert limit == RateLimit(rate=10, capacity=20)
    assert (limit.scope, limit.max_violations) == (None, 100)


def test_everything_else_is_given_by_name_only() -> None:
    with pytest.raises(TypeError):
        RateLimit(10, 20, "ip")  # type: ignore[call-arg]  # that this is refused is what is tested


async def slow_scope(conn: object) -> str:
    return "key"


NUMBERS: list[Any] = [0, -1, True, float("nan"), float("inf"), "10", None, 10**400]


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        *(("rate", value, "events a second greater than 0") for value in NUMBERS),
        *(("capacity", value, "at least 1") for value in [*NUMBERS, 0.5]),
        *(("max_violations", value, "whole number") for value in (-1, 1.5, True, None, "1")),
        *(("scope", value, "'connection', 'user', 'ip'") for value in ("room", "", 5, ["user"])),
        ("scope", slow_scope, "plain `def`"),
    ],
    ids=lambda value: str(value)[:14],
)
def test_a_bad_value_is_refused_with_its_name_and_the_fix(name: str, value: Any, fix: str) -> None:
    options: dict[str, Any] = {"rate": 10, "capacity": 20, name: value}
    with pytest.raises(ConfigurationError) as caught:
        RateLimit(**options)
    assert f"RateLimit({name}={value!r})" in str(caught.value)
    assert fix in str(caught.value)


def test_named_scopes_and_functions_are_accepted() -> None:
    assert [RateLimit(1, 1, scope=scope).scope for scope in ("connection", "user", "ip")] == [
        "connection",
        "user",
        "ip",
    ]
    by_tenant = RateLimit(1, 1, scope=lambda conn: conn.headers["x-tenant"])
    assert callable(by_tenant.scope)
