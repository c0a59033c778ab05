"""How long a session has lasted does not depend on what time this node's clock shows."""

from __future__ import annotations

import time

import pytest

from socketspec.backend.first_seen import FirstSeen
from socketspec.backend.memory import MemorySessions
from socketspec.errors import ErrorCode, EventError
from socketspec.identity import Identity
from socketspec.session.config import SessionConfig
from socketspec.session.lookup import SessionLookup

ADA = Identity(user_id="ada", claims={"sid": "s"})


class Elsewhere(MemorySessions):
    """Sessions whose clock is `ahead` of this node's, and that began `age` seconds ago."""

    def __init__(self, ahead: float, age: float) -> None:
        super().__init__(time.monotonic)
        self.ahead, self.age = ahead, age

    async def begin(self, session: str, *, ttl: float) -> float:
        return FirstSeen(time.time() + self.ahead - self.age, self.age)


def lookup(ahead: float, age: float) -> SessionLookup:
    return SessionLookup("/", SessionConfig(max_duration=30.0), Elsewhere(ahead, age))


@pytest.mark.parametrize("ahead", [-300.0, -60.0, 0.0, 60.0, 300.0])
async def test_what_is_left_of_a_session_is_the_same_by_every_clock(ahead: float) -> None:
    session = await lookup(ahead, 20.0).open(ADA)
    assert session.expires_at == pytest.approx(time.time() + 10, abs=2)
    assert session.started_at == pytest.approx(time.time() - 20, abs=2)


@pytest.mark.parametrize("ahead", [-300.0, -60.0, 0.0, 60.0, 300.0])
async def test_a_session_whose_time_is_over_is_refused_by_every_clock(ahead: float) -> None:
    with pytest.raises(EventError) as refused:
        await lookup(ahead, 31.0).open(ADA)
    assert refused.value.code == ErrorCode.SESSION_EXPIRED
