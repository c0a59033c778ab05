"""Sessions whose lookups the test lets through, holds or fails, and an app that has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from socketspec import SocketApp
from socketspec.backend.memory import MemoryBackend, MemorySessions
from socketspec.errors import BackendError
from tests.identities import ByName

__all__ = ("GatedSessions", "gated_app")


class GatedSessions(MemorySessions):
    """Lookups of revocations that wait for the test, or fail."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.looking = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = False

    async def is_revoked(self, subjects: Sequence[str]) -> bool:
        if self.away:
            raise BackendError("redis is gone")
        self.looking.set()
        await self.gate.wait()
        return await super().is_revoked(subjects)


def gated_app(**options: Any) -> tuple[SocketApp, GatedSessions]:
    """An app whose clients say who they are, and its sessions."""
    backend = MemoryBackend()
    backend.sessions = sessions = GatedSessions()
    return SocketApp(backend=backend, auth=ByName(), **options), sessions
