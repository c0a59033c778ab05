"""An event that is refused before its handler does not run the handler, whoever refuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from socketspec import Connection, SocketApp
from socketspec.backend.memory import MemoryBackend, MemoryLimits
from socketspec.security.ratelimit import RateLimit
from socketspec.testing import TestClient
from tests.backends import SharedBackend


class FullLimits(MemoryLimits):
    """Limits that other nodes share, of which the first event took everything."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)
        self.taken = False

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        taken, self.taken = self.taken, True
        return 1.25 if taken else 0.0


def counting_app(**options: Any) -> tuple[SocketApp, list[int]]:
    app = SocketApp(**options)
    handled: list[int] = []

    @app.on("act")
    async def act(conn: Connection, payload: dict[str, int]) -> None:
        handled.append(payload["n"])

    return app, handled


@pytest.mark.parametrize("backend", [MemoryBackend, lambda: SharedBackend(FullLimits())])
@pytest.mark.parametrize("scope", ["connection", "ip"])
async def test_a_rate_limited_event_is_not_handled(backend: Callable[[], MemoryBackend], scope: Any) -> None:
    app, handled = counting_app(backend=backend(), rate_limit=RateLimit(0.001, 1, scope=scope))
    async with TestClient(app) as client:
        conn = await client.connect()
        for number in (1, 2, 3):
            await conn.send("act", {"n": number}, id=number)
        answers = [await conn.receive() for _ in range(3)]
        # Refusals are answered at once, the first one's handler when it is through.
        assert sorted(answer["event"] for answer in answers) == ["__ack__", "__error__", "__error__"]
        refusals = [answer["payload"] for answer in answers if answer["event"] == "__error__"]
        assert {refusal["code"] for refusal in refusals} == {"RATE_LIMIT_ERROR"}
        assert all(refusal["details"]["retry_after"] > 1 for refusal in refusals)
    assert handled == [1]


async def test_an_event_that_is_too_large_is_not_handled() -> None:
    app, handled = counting_app(max_payload_size=100)
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send_raw('{"event":"act","payload":{"n":1}}'.ljust(101))
        assert (await conn.receive())["payload"]["code"] == "PAYLOAD_TOO_LARGE"
        await conn.send_raw('{"event":"act","payload":{"n":2},"id":2}'.ljust(100))
        assert (await conn.receive())["event"] == "__ack__"
    assert handled == [2]


async def test_an_event_whose_payload_does_not_fit_is_not_handled() -> None:
    app, handled = counting_app()
    async with TestClient(app) as client:
        conn = await client.connect()
        await conn.send("act", {"n": "many"})
        assert (await conn.receive())["payload"]["code"] == "VALIDATION_ERROR"
    assert handled == []
