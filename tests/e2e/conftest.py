"""What the end-to-end tests share: both WebSocket protocols that a uvicorn can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import running_with

PROTOCOLS = {"stock": (), "ours": ("--ws", "socketspec.adapters.uvicorn:WebSocketProtocol")}
"""The options that give a uvicorn each of them."""


@pytest.fixture(scope="module", params=PROTOCOLS)
def websocket_protocol(request: pytest.FixtureRequest) -> Iterator[str]:
    """Has every uvicorn that is started run each WebSocket protocol in turn; its name.

    Fixtures that start servers for a whole module ask for it; tests are `asgi_only` where only "stock" can pass.
    """
    name: str = request.param
    with running_with(*PROTOCOLS[name]):
        yield name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is true of one of the protocols alone."""
    out = [item for item in items if item.get_closest_marker("asgi_only") and _protocol(item) == "ours"]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def _protocol(item: pytest.Item) -> str:
    return str(item.callspec.params.get("websocket_protocol")) if hasattr(item, "callspec") else ""
