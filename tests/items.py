"""An app with one event that can go wrong in every way, what it counted, and what a client is told."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, field_validator

from socketspec import Connection, SocketApp
from socketspec.errors import PermissionDenied
from socketspec.testing import TestConnection
from tests.engines import running

__all__ = ("Item", "counted", "error_of", "make_app")


class Item(BaseModel):
    """A payload whose validator has a bug, which 13 finds."""

    n: int

    @field_validator("n")
    @classmethod
    def _not_13(cls, n: int) -> int:
        if n == 13:
            raise RuntimeError("a validator with a bug")
        return n


def make_app(**options: Any) -> SocketApp:
    """An app with one event: it refuses 1, fails at 2, and takes all others."""
    app = SocketApp(**options)

    @app.on("item")
    async def item(conn: Connection, payload: Item) -> None:
        if payload.n == 1:
            raise PermissionDenied("Not this one.")
        if payload.n == 2:
            raise ValueError("broken")

    return app


async def counted(app: SocketApp) -> dict[tuple[str, str], int]:
    """The app's events so far, by name and outcome."""
    return dict((await running(app)).counters.events)


async def error_of(conn: TestConnection) -> dict[str, Any]:
    """The error that comes next, with the id it answers."""
    message = await conn.receive()
    assert message["event"] == "__error__", message
    payload: dict[str, Any] = message["payload"]
    return payload | {"id": message.get("id")}
