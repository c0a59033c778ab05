"""Options that are mistyped, or mean nothing as they stand, are refused with what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from socketspec import Connection, Depends, EventRouter, Room, SocketApp
from socketspec.errors import ConfigurationError
from socketspec.testing import TestClient

App: Any = SocketApp
Router: Any = EventRouter
AnyRoom: Any = Room
on: Any = SocketApp().on


async def hook(conn: Connection) -> None: ...


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: on("a", tags=[1]), r"on\('a', tags=\[1\]\): a tag is a text"),
        (lambda: on("a", ordered="no"), r"on\('a', ordered='no'\) must be True or False"),
        (lambda: on("a", deprecated="x"), r"deprecated='x'\) must be True or False"),
        (lambda: on("a", description=5), r"description=5\) must be a text"),
        (lambda: on("a", tag=["x"]), "has no option 'tag'. Did you mean 'tags'"),
        (lambda: App(docs="yes"), r"SocketApp\(docs='yes'\) must be True or False"),
        (lambda: App(debug="no"), r"SocketApp\(debug='no'\) must be True or False"),
        (lambda: App(strict="no"), r"SocketApp\(strict='no'\) must be True or False"),
        (lambda: App(title=5), r"SocketApp\(title=5\) must be a text"),
        (lambda: App(docs_url="docs"), r"SocketApp\(docs_url='docs'\) must be a path"),
        (lambda: App(drain_token="s" * 32), "without drain_url"),
        (lambda: Router(dependancies=[]), "EventRouter has no option 'dependancies'. Did you mean 'dependencies'"),
        (lambda: AnyRoom("a", client_joins=True), "Room has no option 'client_joins'. Did you mean 'client_join'"),
        (lambda: Depends(hook, use_cache=False, scope="connection"), "Write one of the two"),
        (lambda: App().on_connect(), r"@socket.on_connect\(\) takes nothing in parentheses. Write @socket.on_connect"),
        (lambda: App().on_error(), r"@socket.on_error\(\) takes nothing"),
        (lambda: App().on_disconnect("x"), r"@socket.on_disconnect\('x'\) takes nothing"),
        (lambda: App().middleware("http"), r"@socket.middleware\('http'\) takes nothing in parentheses"),
        (lambda: Router().middleware(), r"@router.middleware\(\) takes nothing"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


async def test_overrides_may_be_assigned_as_fastapis_are() -> None:
    socket = SocketApp()

    def name() -> str:
        return "ada"

    @socket.on("who")
    async def who(conn: Connection, name: str = Depends(name)) -> dict[str, str]:
        return {"name": name}

    async with TestClient(socket) as client, client.connect() as conn:
        assert await conn.request("who") == {"name": "ada"}
        socket.dependency_overrides = {name: lambda: "eve"}
        assert await conn.request("who") == {"name": "eve"}
        socket.dependency_overrides = {}
        assert await conn.request("who") == {"name": "ada"}


def test_a_policy_without_a_limit_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="socketspec"):
        SocketApp(connection_limit_policy="evict_oldest")
    assert "limits nothing without max_connections_per_user" in caplog.text
    caplog.clear()
    SocketApp(connection_limit_policy="evict_oldest", max_connections_per_user=3)
    assert not caplog.records
