"""How a connection of the test client ended."""

from __future__ import annotations

from typing import Any

from socketspec.testing import ConnectionClosed, TestConnection

__all__ = ("end_of",)


async def end_of(conn: TestConnection) -> tuple[list[dict[str, Any]], int, str]:
    """What still came before the end, and how it ended."""
    messages: list[dict[str, Any]] = []
    while True:
        try:
            messages.append(await conn.receive())
        except ConnectionClosed as closed:
            return messages, closed.code, closed.reason
