"""What a handler sets on its connection: kept for that connection, or refused with what to write."""

from __future__ import annotations

from typing import Any

import pytest

from socketspec import Connection, Identity, SocketApp
from socketspec.connection.states import State
from socketspec.testing import TestClient


@pytest.mark.parametrize("state", State)
def test_nothing_is_kept_on_what_all_connections_share(state: State) -> None:
    name = "user"
    with pytest.raises(AttributeError, match=r"conn\.metadata\['user'\] = …"):
        setattr(state, name, "ada")
    assert not hasattr(state, "user")
    assert State(state.value) is state


@pytest.mark.parametrize("name", ["identity", "session", "state", "metadata"])
async def test_what_the_app_goes_by_is_not_replaced(name: str) -> None:
    app = SocketApp(drain_window=0)
    async with TestClient(app) as client, client.connect(identity=Identity(user_id="ada")) as conn:
        before: Any = getattr(conn.connection, name)
        with pytest.raises(AttributeError, match=rf"conn\.{name} cannot be set.*conn\.metadata\["):
            setattr(conn.connection, name, before)
        assert getattr(conn.connection, name) is before


async def test_metadata_is_each_connections_own() -> None:
    app = SocketApp(drain_window=0)

    @app.on("set")
    async def keep(conn: Connection) -> None:
        conn.metadata["user"] = conn.identity.user_id

    @app.on("get")
    async def kept(conn: Connection) -> dict[str, Any]:
        return dict(conn.metadata)

    async with (
        TestClient(app) as client,
        client.connect(identity=Identity(user_id="ada")) as ada,
        client.connect(identity=Identity(user_id="eve")) as eve,
    ):
        await ada.request("set")
        assert await ada.request("get") == {"user": "ada"}
        assert await eve.request("get") == {}
