"""An error of ours means the same wherever FastAPI runs the dependency that raises it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import (
    AuthError,
    CloseCode,
    EventError,
    PermissionDenied,
    RateLimited,
    RoomNotFound,
    SocketSpecError,
    TimedOut,
    ValidationFailed,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that it would like another HTTP client
    from starlette.testclient import TestClient, WebSocketDenialResponse


class SoldOut(EventError):
    """There is none left."""

    code = "SOLD_OUT"


ERRORS: list[tuple[EventError, int, int]] = [
    (PermissionDenied("For the staff."), 403, 403),
    (AuthError("Sign in."), 401, 401),
    (RateLimited("Slowly.", details={"retry_after": 1.2}), 429, 429),
    (RoomNotFound("There is none."), 404, 404),
    (ValidationFailed("It does not fit."), 403, 422),
    (TimedOut("Too slow."), 403, 504),
    (SoldOut(), 403, 400),
]
"""With the status at a handshake, and over HTTP."""


def applications(guard: Callable[[], None]) -> Iterator[tuple[str, FastAPI]]:
    for where in ("socket", "mount", "router", "included", "app"):
        declared: list[Any] = [Depends(guard)]
        of = {where: declared}
        socket = SocketApp(dependencies=of.get("socket", []), drain_window=0)
        app, router = FastAPI(dependencies=of.get("app", [])), APIRouter(dependencies=of.get("router", []))
        mount(socket, router, path="/ws", dependencies=of.get("mount", []))
        app.include_router(router, dependencies=of.get("included", []))
        yield where, app
    app = FastAPI(dependencies=[Depends(guard)])
    mount(SocketApp(drain_window=0), app, path="/ws")
    yield "app itself", app


@contextmanager
def client_of(app: FastAPI) -> Iterator[TestClient]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with TestClient(app, raise_server_exceptions=True) as client:
            yield client


def status_at_handshake(client: TestClient) -> int:
    """The status, or the close code where the client is accepted to be told more."""
    try:
        with client.websocket_connect("/ws") as accepted:
            told = accepted.receive()
            while told["type"] != "websocket.close":
                told = accepted.receive()
            return int(told["code"])
    except WebSocketDenialResponse as denied:
        return int(denied.status_code)
    except WebSocketDisconnect as closed:
        return 403 if closed.code == 1008 else int(closed.code)


@pytest.mark.parametrize(("error", "status", "over_http"), ERRORS, ids=lambda value: type(value).__name__)
def test_a_handshake_is_refused_alike_wherever_the_dependency_is_declared(
    error: EventError, status: int, over_http: int
) -> None:
    def guard() -> None:
        raise error

    for where, app in applications(guard):
        expected = status
        if isinstance(error, AuthError) and where in ("socket", "mount"):
            expected = CloseCode.AUTH_FAILED  # credentials are our own affair there: a browser would not see a status
        with client_of(app) as client:
            assert (where, status_at_handshake(client)) == (where, expected)


@pytest.mark.parametrize(("error", "status", "over_http"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_http_route_answers_with_the_status_for_it(error: EventError, status: int, over_http: int) -> None:
    def guard() -> None:
        raise error

    app = FastAPI()
    mount(SocketApp(drain_window=0), app, path="/ws")

    @app.get("/x", dependencies=[Depends(guard)])
    def x() -> int:
        return 1

    with client_of(app) as client:
        answer = client.get("/x")
    assert answer.status_code == over_http
    body = {"detail": error.message, "code": error.code}
    assert answer.json() == (body | {"details": error.details} if error.details else body)
    assert answer.headers.get("retry-after") == ("2" if over_http == 429 else None)
    assert answer.headers.get("www-authenticate") == ("Bearer" if over_http == 401 else None)


@pytest.mark.parametrize("of", [EventError, SocketSpecError, PermissionDenied])
@pytest.mark.parametrize("first", [False, True])
def test_a_handler_of_the_applications_own_answers(of: type[SocketSpecError], first: bool) -> None:
    app = FastAPI()

    async def own(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"own": str(error)}, 418)

    if first or of is SocketSpecError:
        app.add_exception_handler(of, own)
    mount(SocketApp(drain_window=0), app, path="/ws")
    if not first and of is not SocketSpecError:
        app.add_exception_handler(of, own)

    @app.get("/x")
    def x() -> int:
        raise PermissionDenied("For the staff.")

    with client_of(app) as client:
        answer = client.get("/x")
    assert (answer.status_code, answer.json()) == (418, {"own": "For the staff."})
