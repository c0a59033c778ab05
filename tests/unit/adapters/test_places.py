"""What could refuse every client at the place where an app is mounted is found before the first of them comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, Depends, FastAPI, Path, Request
from starlette.requests import HTTPConnection

from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.app.mounts import mounted
from socketspec.cli.checks.findings import findings
from socketspec.errors import ConfigurationError
from socketspec.testing import TestClient


def of_requests(request: Request) -> None: ...
def of_a_body(token: Annotated[str, Body()]) -> None: ...
def of_both(connection: HTTPConnection, token: Annotated[str | None, Body()] = None) -> None: ...
def nested(checked: Annotated[None, Depends(of_requests)]) -> None: ...
def perhaps(request: Request = None) -> None: ...  # type: ignore[assignment] # as many write it
def of_tenant(tenant: Annotated[str, Path()]) -> str:
    return tenant


def app_with(dependency: Callable[..., Any]) -> FastAPI:
    app = FastAPI(dependencies=[Depends(dependency)])
    mount(SocketApp(), app)
    return app


def router_with(dependency: Callable[..., Any]) -> FastAPI:
    app, router = FastAPI(), APIRouter()
    mount(SocketApp(), router, "/live/{room}")
    app.include_router(router, dependencies=[Depends(dependency)])
    return app


def own_with(dependency: Callable[..., Any]) -> FastAPI:
    app, socket = FastAPI(), SocketApp()

    @socket.on("event")
    async def event(conn: Connection, checked: Annotated[Any, Depends(dependency)]) -> None: ...

    mount(socket, app, "/{other}")
    return app


REFUSED = [
    (app_with, of_requests, "of_requests runs at the handshake of /ws and takes a Request.*HTTPConnection"),
    (router_with, of_requests, "of_requests runs at the handshake of /live/{room} and takes a Request"),
    (app_with, nested, "of_requests runs at the handshake of /ws"),
    (router_with, of_a_body, "of_a_body .* reads 'token' from a body"),
    (app_with, of_tenant, "of_tenant .* asks for the path variable 'tenant'.*path='/ws/{tenant}'"),
    (own_with, of_tenant, r"of_tenant asks for the path variable 'tenant', .* mounted at \(/{other}\)"),
]


@pytest.mark.parametrize(("make", "dependency", "message"), REFUSED)
async def test_what_would_refuse_every_client_refuses_the_start(make: Any, dependency: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        async with TestClient(make(dependency)):
            raise AssertionError("it has started")


@pytest.mark.parametrize(("make", "dependency", "message"), REFUSED)
def test_and_the_check_finds_it(make: Any, dependency: Any, message: str) -> None:
    (place,) = mounted(make(dependency))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(
            [found.message for found in findings("app", place.socket, [place]) if found.level == "error"]
        )


@pytest.mark.parametrize("make", [app_with, router_with])
@pytest.mark.parametrize("dependency", [of_both, perhaps])
async def test_what_may_be_missing_is_no_fault(make: Any, dependency: Any) -> None:
    async with TestClient(make(dependency)):
        pass


async def test_a_variable_of_one_of_its_paths_is_no_fault() -> None:
    app, socket = FastAPI(), SocketApp()

    @socket.on("event")
    async def event(conn: Connection, tenant: Annotated[str, Depends(of_tenant)]) -> dict[str, str]:
        return {"tenant": tenant}

    mount(socket, app, "/ws")
    mount(socket, app, "/ws/{tenant:path}")
    async with TestClient(app) as client, client.connect("/ws/acme") as conn:
        assert await conn.request("event") == {"tenant": "acme"}
