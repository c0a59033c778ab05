"""Guards of FastAPI's applications and routers before sockets, on real servers: with and without a hand-over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from websockets.exceptions import InvalidStatus

from tests.support import Server, client, serving

GUARDED = """
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, WebSocketException
from fastapi.requests import HTTPConnection

from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount


def keyed(connection: HTTPConnection, key: str | None = None):
    if key == "policy":
        raise WebSocketException(1008)
    if key is None:
        raise HTTPException(401, "Sign in.")


async def opened(tenant: str):
    print(f"open {tenant}")
    try:
        yield tenant
    finally:
        print(f"close {tenant}")


def make(namespace, **options):
    socket = SocketApp(namespace=namespace, **options)

    @socket.on("where")
    async def where(conn: Connection) -> dict:
        return {"tenant": conn.path_params["tenant"]}

    @socket.on_disconnect
    async def bye(conn: Connection, reason: str) -> None:
        print(f"bye {conn.path_params['tenant']}")

    return socket


app = FastAPI()
router = APIRouter(dependencies=[Depends(keyed)])
mount(make("/routed"), router, path="/routed/{tenant}")
app.include_router(router, dependencies=[Depends(opened)])
mount(make("/mounted"), app, path="/mounted/{tenant}", dependencies=[Depends(keyed), Depends(opened)])
mount(make("/declared", dependencies=[Depends(keyed), Depends(opened)]), app, path="/declared/{tenant}")
"""


@pytest.fixture(scope="module")
def server(websocket_protocol: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server.start(tmp_path_factory.mktemp("guarded"), GUARDED)
    try:
        started.wait()
        yield started  # its log is not looked at: stock uvicorn calls every refusal with an HTTP answer an error
    finally:
        started.stop()


@pytest.mark.parametrize("place", ["routed", "mounted", "declared"])
async def test_a_client_is_refused_with_the_guards_status_and_let_in_with_the_key(server: Server, place: str) -> None:
    for query, status in (("", 401), ("?key=policy", 403)):
        with pytest.raises(InvalidStatus) as refused:
            async with client(server.url(f"/{place}/{place}-nobody{query}")):
                pass
        assert refused.value.response.status_code == status
    async with client(server.url(f"/{place}/{place}-acme?key=k")) as ada:
        assert await ada.call("where") == {"tenant": f"{place}-acme"}
        assert f"close {place}-acme" not in server.log, "while it is connected"
    await server.logged(f"close {place}-acme\n")
    assert server.log.index(f"bye {place}-acme") < server.log.index(f"close {place}-acme")


@pytest.mark.usefixtures("websocket_protocol")
async def test_a_stop_closes_what_guards_opened(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = Server.start(tmp_path_factory.mktemp("stopped"), GUARDED)
    places = ("routed", "mounted", "declared")
    with serving(server):
        async with (
            client(server.url("/routed/routed-acme?key=k")),
            client(server.url("/mounted/mounted-acme?key=k")),
            client(server.url("/declared/declared-acme?key=k")),
        ):
            server.stop()
        for place in places:
            assert f"close {place}-acme" in server.log
