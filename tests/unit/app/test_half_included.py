"""A declaration that is refused leaves nothing behind, wherever it would have gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from socketspec import Connection, Event, EventRouter, SocketApp
from socketspec.errors import ConfigurationError, EventError
from socketspec.testing import TestClient


class Gone(EventError):
    code = "GONE"


async def handler(conn: Connection) -> None: ...


async def hook(conn: Connection) -> None: ...


async def on_error(conn: Connection, error: Exception) -> None: ...


async def guard(conn: Connection, id: str) -> bool:
    return False


async def middleware(conn: Any, event: str, payload: Any, next_handler: Any) -> Any:
    return await next_handler(conn, event, payload)


def everything(changed: Event[dict[str, int]]) -> EventRouter:
    """A router that declares something of every kind, and last an event called "taken"."""
    router = EventRouter(rooms=["extra:{id}"], rate_limit="5/s", errors=[Gone], middleware=[middleware])
    router.on("before", errors=[Gone], emits=[changed])(handler)
    router.on_connect(hook)
    router.on_error(on_error)
    router.room_guard("extra:{id}")(guard)
    router.on_room_join("extra:{id}")(guard)
    router.middleware(middleware)
    router.event(changed)
    router.on("taken")(handler)
    router.on("after")(handler)
    return router


def seen(app: SocketApp) -> dict[str, Any]:
    found = app.registry
    names = "events typed_events middleware guards on_connect on_error on_room_join hook_patterns wants_scope"
    return {
        **{name: (value.copy() if hasattr(value := getattr(found, name), "copy") else value) for name in names.split()},
        "rooms": found.rooms.rooms,
        "errors": dict(found.errors.by_code),
        "sends": dict(found.sends.by_event),
    }


async def test_a_router_that_cannot_be_included_leaves_nothing_and_can_be_included_elsewhere() -> None:
    app, changed = SocketApp(rooms=["r"], drain_window=0), Event("changed", dict[str, int])
    app.on("taken")(handler)
    router, before = everything(changed), seen(app)

    with pytest.raises(ConfigurationError, match="'taken' already has"):
        app.include_router(router)
    assert seen(app) == before
    with pytest.raises(RuntimeError, match="belongs to no app"):
        await changed.broadcast_all({"n": 1})

    router.on("later")(handler)
    assert "later" not in app.registry.events
    app.include_router(router, prefix="of.")
    assert set(app.registry.events) == {"taken", "of.before", "of.taken", "of.after", "of.later"}
    assert len(app.registry.on_connect) == len(app.registry.guards) == 1
    async with TestClient(app) as client, client.connect() as conn:
        await changed.broadcast_all({"n": 1})
        assert (await conn.receive())["event"] == "changed"


def test_what_does_not_fit_one_of_several_places_is_in_none() -> None:
    outer, inner = EventRouter(prefix="o."), EventRouter()
    one, other = SocketApp(), SocketApp()
    one.include_router(outer)
    other.include_router(outer)
    other.on("o.taken")(handler)
    with pytest.raises(ConfigurationError, match="already has"):
        outer.on("taken")(handler)
    assert "o.taken" not in one.registry.events

    inner.on("first")(handler)
    inner.on("taken")(handler)
    with pytest.raises(ConfigurationError, match="already has"):
        outer.include_router(inner)
    assert list(one.registry.events) == []
    assert list(other.registry.events) == ["o.taken"]
    assert not outer.includes(inner)

    third = SocketApp()
    third.include_router(outer)  # the router itself kept nothing either
    assert list(third.registry.events) == []


@pytest.mark.parametrize(
    "declare",
    [
        lambda router: router.on_connect(hook),
        lambda router: router.room_guard("x:{id}")(guard),
        lambda router: router.event("sent", dict[str, int]),
    ],
)
def test_a_hook_that_one_app_refuses_no_app_has(declare: Callable[[EventRouter], object]) -> None:
    router, one, other = EventRouter(), SocketApp(), SocketApp()
    one.include_router(router)
    other.include_router(router)
    declare(second := EventRouter())
    other.include_router(second)
    before = seen(one), seen(other)
    with pytest.raises(ConfigurationError):
        declare(router)
    assert (seen(one), seen(other)) == before
