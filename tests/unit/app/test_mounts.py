"""Where the apps of an application are found, and what is refused when one starts beside another."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Host, Mount

from socketspec import SocketApp
from socketspec.adapters.asgi import ASGIApp
from socketspec.adapters.fastapi import mount
from socketspec.app.mounts import bare, mounted
from socketspec.errors import ConfigurationError


def first() -> None: ...
def second() -> None: ...


def test_routers_prefixes_and_dependencies_are_those_of_the_route_that_clients_reach() -> None:
    socket, app, outer, inner = SocketApp(), FastAPI(), APIRouter(prefix="/outer"), APIRouter(prefix="/inner")
    mount(socket, inner, "/ws", dependencies=[Depends(second)])
    outer.include_router(inner, dependencies=[Depends(first)])
    app.include_router(outer, prefix="/v1")
    (found,) = mounted(app)
    assert (found.path, found.prefix) == ("/v1/outer/inner/ws", "/v1/outer/inner")
    assert (found.dependencies, found.passed_by, found.starts_with_it) == ((first, second), (), True)


def test_an_application_within_another_runs_none_of_its_dependencies() -> None:
    socket, app, below = SocketApp(), FastAPI(dependencies=[Depends(first)]), FastAPI()
    mount(socket, below)
    app.mount("/below", below)
    (found,) = mounted(CORSMiddleware(app))
    assert (found.path, found.passed_by, found.starts_with_it) == ("/below/ws", (first,), False)


def test_an_asgi_app_is_found_by_itself_in_a_mount_and_behind_a_host() -> None:
    served = ASGIApp(SocketApp())
    assert [each.path for each in mounted(served)] == ["/"]
    assert [each.path for each in mounted(Starlette(routes=[Mount("/x", app=served)]))] == ["/x/"]
    assert [each.path for each in mounted(Starlette(routes=[Host("a.test", app=served)]))] == ["/"]


def test_an_app_that_contains_itself_is_looked_into_a_bounded_time() -> None:
    app = Starlette()
    app.mount("/again", app)
    assert mounted(app) == ()


async def test_a_socket_mounted_as_it_is_ends_the_start_of_an_application_that_has_another_one_mounted() -> None:
    app, socket, other = FastAPI(), SocketApp(), SocketApp()
    mount(socket, app, "/right")
    app.mount("/wrong", other)
    assert bare(app) == (("/wrong", other),)
    with pytest.raises(ConfigurationError, match=r"mount\(socket, app, path='/wrong'\)"):
        async with app.router.lifespan_context(app):
            pass
