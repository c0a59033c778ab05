"""`socketspec check`: what it prints, what it finds, and its exit status."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from socketspec.cli.main import main

_numbers = itertools.count()


class Result(NamedTuple):
    """How the command ended."""

    status: int
    out: str
    err: str

    @property
    def found(self) -> list[tuple[str, str]]:
        """Of its JSON: the level and the code of each finding."""
        return [(each["level"], each["code"]) for each in self.json["findings"]]

    @property
    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.out)


Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """Check `target` of a module with this source, in which MODULE stands for its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])

    def run(source: str, target: str = "app", *options: str) -> Result:
        name = f"checked_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        status = main(["check", f"{name}:{target}", *options])
        said = capsys.readouterr()
        return Result(status, said.out.replace(name, "MODULE"), said.err.replace(name, "MODULE"))

    return run


START = """
from typing import Annotated
from fastapi import APIRouter, Depends, FastAPI, Header
from pydantic import BaseModel
from socketspec import Broadcasts, Connection, Room, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import EventError
from socketspec.protocol.publications import History

app = FastAPI()

async def signed_in(token: Annotated[str, Header()] = "") -> str:
    return token

async def session(user: Annotated[str, Depends(signed_in)]):
    yield user

"""

SHOP = """
class Order(BaseModel):
    id: int

class Placed(BaseModel):
    ok: bool

class SoldOut(EventError):
    code = "SOLD_OUT"

socket = SocketApp(
    rooms=[Room("orders:{id}", client_join=True, history=History(size=50), max_members=9), "lobby"],
    allowed_origins=["https://example.com"],
    dependencies=[Depends(signed_in)],
)

@socket.on("place", errors=[SoldOut], tags=["shop"])
async def place(conn: Connection, order: Order, db: Annotated[str, Depends(session)]) -> Placed: ...

@socket.room_guard("orders:{id}")
async def may_join(conn: Connection, id: int) -> bool: ...

@socket.on_room_join("orders:{id}")
async def joined(conn: Connection, id: int) -> None: ...

changed = socket.event("changed", Order, room="orders:{id}")
router = APIRouter(prefix="/api")
mount(socket, router, "/ws/{tenant}")
app.include_router(router, prefix="/v1", dependencies=[Depends(session)])
"""


def test_it_prints_what_is_registered_and_0_says_that_nothing_is_wrong(check: Check) -> None:
    result = check(START + SHOP)
    assert (result.status, result.err) == (0, "")
    assert "/v1/api/ws/{tenant}, after MODULE.session" in result.out
    assert "health /v1/api/socket-health" in result.out
    rows = [line.split() for line in result.out.splitlines()]
    assert [
        "place",
        "Order",
        "Placed",
        "MODULE.session,",
        "MODULE.signed_in",
        "SOLD_OUT",
        "shop",
        "MODULE.place",
    ] in rows
    assert "clients and the app, if MODULE.may_join lets them" in result.out
    assert ["changed", "Order", "orders:{id}"] in rows
    assert ["on_room_join", "MODULE.joined"] in rows
    assert result.out.endswith("Nothing looks wrong.\n")


@pytest.mark.parametrize("target", ["app", "socket"])
def test_a_module_may_have_routers_of_events_under_a_name(check: Check, target: str) -> None:
    routed = """
from socketspec import EventRouter
orders = EventRouter(prefix="orders.")

@orders.on("place")
async def place(conn: Connection) -> None: ...

socket = SocketApp()
socket.include_router(orders)
mount(socket, app)
"""
    result = check(START + routed, target, "--json")
    assert [event["event"] for event in result.json["apps"][0]["events"]] == ["orders.place"]
    assert "refused" not in {code for _, code in result.found}


def test_machines_get_the_same_as_json_and_the_same_each_time(check: Check) -> None:
    app = check(START + SHOP, "socket", "--json").json["apps"][0]
    assert app["mounted"][0]["dependencies"] == ["MODULE.session"]
    assert app["rooms"][0] == {
        "room": "orders:{id}",
        "variables": ["id"],
        "client_join": True,
        "guards": ["MODULE.may_join"],
        "guarded": True,
        "history": {"size": 50, "ttl": app["rooms"][0]["history"]["ttl"]},
        "max_members": 9,
        "description": "",
    }
    assert check(START + SHOP, "socket", "--json").json["apps"][0] == app


@pytest.mark.parametrize(
    ("declared", "code"),
    [
        ("socket = SocketApp(rooms=['a'])\n@socket.room_guard('b')\nasync def g(conn): ...\n", "refused"),
        ("socket = SocketApp(rooms=['a'])\n@socket.on_room_leave('b')\nasync def h(conn): ...\n", "refused"),
        (
            "socket = SocketApp(rooms=['a'])\n@socket.on('x', broadcasts=[Broadcasts('y', room='b')])\n"
            "async def x(conn): ...\n",
            "refused",
        ),
        ("socket = SocketApp()\n@socket.on('x')\nasync def x(conn, body: Depends(1)): ...\n", "refused"),
    ],
)
def test_what_the_start_would_refuse_is_an_error_without_a_start(check: Check, declared: str, code: str) -> None:
    result = check(START + declared + "mount(socket, app)\n", "app", "--json")
    assert result.status == 1
    assert ("error", code) in result.found


def test_every_refusal_is_listed_not_only_the_first(check: Check) -> None:
    source = "socket = SocketApp(rooms=['a'])\n@socket.room_guard('b')\nasync def g(conn): ...\n"
    source += "@socket.room_guard('c')\nasync def h(conn): ...\nmount(socket, app)\n"
    assert check(START + source, "app", "--json").found.count(("error", "refused")) == 2


@pytest.mark.parametrize("wrapped", ["socket", "FastAPI(routes=[Mount('/x', app=socket)])"])
def test_a_socket_mounted_as_it_is_is_an_error_with_the_line_to_write(check: Check, wrapped: str) -> None:
    source = f"from starlette.routing import Mount\nsocket = SocketApp()\napp.mount('/ws', {wrapped})\n"
    result = check(START + source)
    assert result.status == 1
    path = "/ws" if wrapped == "socket" else "/ws/x"
    assert f"Write mount(socket, app, path='{path}')" in result.out


@pytest.mark.parametrize(
    ("declared", "code"),
    [
        ("socket = SocketApp()\nmount(socket, app)\n", "no_auth"),
        ("socket = SocketApp()\nmount(socket, app)\n", "any_origin"),
        ("socket = SocketApp(rooms=[Room('a', client_join=True)])\nmount(socket, app)\n", "open_room"),
        (
            "socket = SocketApp(rooms=[Room('a:{id}', client_join=True)])\n@socket.room_guard('a:1')\n"
            "async def g(conn): ...\nmount(socket, app)\n",
            "partly_guarded",
        ),
        ("socket = SocketApp(debug=True, docs=True)\nmount(socket, app)\n", "public_debug"),
        ("socket = SocketApp(debug=True)\nmount(socket, app)\n", "debug"),
        ("socket = SocketApp()\n", "not_mounted"),
        (
            "app = FastAPI(dependencies=[Depends(signed_in)])\nsub = FastAPI()\nsocket = SocketApp()\n"
            "mount(socket, sub)\napp.mount('/sub', sub)\n",
            "dependencies_not_run",
        ),
    ],
)
def test_what_is_seldom_meant_is_warned_of_and_fails_only_where_that_is_asked_for(
    check: Check, declared: str, code: str
) -> None:
    result = check(START + declared, "app", "--json")
    assert ("warning", code) in result.found
    assert result.status == 0
    assert check(START + declared, "app", "--strict").status == 1


@pytest.mark.parametrize(
    ("declared", "quiet"),
    [
        ("app = FastAPI(dependencies=[Depends(signed_in)])\nsocket = SocketApp()\nmount(socket, app)\n", "no_auth"),
        ("socket = SocketApp()\nmount(socket, app, dependencies=[Depends(signed_in)])\n", "no_auth"),
        ("socket = SocketApp(dependencies=[Depends(signed_in)])\nmount(socket, app)\n", "no_auth"),
        ("socket = SocketApp(rooms=[Room('a')])\nmount(socket, app)\n", "open_room"),
        ("socket = SocketApp(allowed_origins=['https://a.test'])\nmount(socket, app)\n", "any_origin"),
    ],
)
def test_what_is_guarded_is_not_warned_of(check: Check, declared: str, quiet: str) -> None:
    assert quiet not in [code for _, code in check(START + declared, "app", "--json").found]


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("ap", [], "has no 'ap'; it has MODULE:app"),
        ("number", [], "is of type int, not a SocketApp"),
        ("create", [], "write --factory MODULE:create"),
        ("app", ["--factory"], "leave --factory out"),
        ("needs", ["--factory"], "cannot be called without arguments"),
        ("later", ["--factory"], "is async"),
        ("app", [], "no SocketApp is mounted on 'MODULE:app'; write mount(socket, app)"),
    ],
)
def test_what_cannot_be_loaded_is_a_sentence_with_what_to_write(
    check: Check, target: str, options: list[str], said: str
) -> None:
    source = "from fastapi import FastAPI\napp = FastAPI()\nnumber = 1\n"
    source += "def create():\n    return app\ndef needs(x): ...\nasync def later(): ...\n"
    result = check(source, target, *options)
    assert (result.status, result.out) == (2, "")
    assert said in result.err


def test_a_factory_is_called_and_what_it_prints_is_not_in_the_json(check: Check) -> None:
    source = (
        START + "def create():\n    print('made')\n    socket = SocketApp()\n    mount(socket, app)\n    return app\n"
    )
    result = check(source, "create", "--factory", "--json")
    assert result.json["apps"][0]["mounted"][0]["path"] == "/ws"
    assert "made" in result.err


def test_a_module_that_fails_shows_its_own_traceback_only(check: Check) -> None:
    result = check("import json\n1 / 0\n")
    assert result.status == 2
    assert "ZeroDivisionError" in result.err
    assert "importlib" not in result.err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("sopt:app", "did you mean shop:app?"),
        ("shop.py:app", "write shop:app"),
        ("shop", "write shop:app"),
        ("inside:app", "write --app-dir src inside:app"),
        ("nowhere:app", "write --app-dir FOLDER"),
    ],
)
def test_a_module_that_is_not_there_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "shop.py").write_text("")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "inside.py").write_text("")
    assert main(["check", target]) == 2
    assert said in capsys.readouterr().err
