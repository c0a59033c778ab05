"""The text log of `socketspec serve`: one line for each record, whatever clients and exceptions say."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.support import Server, client, free_port, serving

SOURCE = """
import logging
from typing import Any
from fastapi import FastAPI, Request
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount

app = FastAPI()
socket = SocketApp()
mount(socket, app, "/ws")

# A logger with a handler of its own, which is the first to write out what an exception says.
audit = logging.getLogger("shop.orders")
audit.addHandler(logging.FileHandler("orders.log"))

@socket.on("fail")
async def fail(conn: Connection, payload: dict[str, Any]) -> None:
    raise ValueError(payload["text"])

@socket.on("log")
async def log(conn: Connection, payload: dict[str, Any]) -> dict[str, Any]:
    logging.getLogger("shop").warning("said %s", payload["text"])
    logging.getLogger("shop.access").warning(f"came {payload['text']}")
    logging.getLogger("shop.access").warning("came %s", ValueError(payload["text"]))
    logging.getLogger("shop").warning("%d of them", payload["text"])
    try:
        raise ValueError(payload["text"])
    except ValueError:
        audit.exception("no order")
    return {}

@app.post("/body")
async def body(request: Request) -> int:
    return len(await request.body())

@app.post("/broken-body")
async def broken_body(request: Request) -> int:
    try:
        return len(await request.body())
    finally:
        raise ValueError("a fault of the application's")

@app.middleware("http")
async def passing(request: Request, call_next: Any) -> Any:
    return await call_next(request)

@app.get("/fail/{text}")
async def broken(text: str) -> None:
    raise ValueError(text + "\\nERROR:    forged")
"""
FORGED = "x\r\nERROR:    forged \x1b[31m"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    port = free_port()
    command = ["socketspec.cli.main", "serve", "main:app", "--port", str(port)]
    return Server(tmp_path / "served", {"main.py": SOURCE}, command, port)


async def test_no_line_is_forged(server: Server) -> None:
    expected = [r"ValueError: x\r\nERROR:    forged \x1b[31m", r"ValueError: y\nERROR:    forged"]
    with serving(server, expected=expected):
        async with client(server.url("/ws")) as conn:
            await conn.call("log", {"text": FORGED})
            await conn.send("fail", {"text": FORGED})
            assert (await conn.error())["code"] == "HANDLER_ERROR"
        assert server.get("/fail/y").status == 500
        await server.logged(r"said x\\r\\nERROR:    forged")
        await server.logged(r"ValueError: y\\n")
        assert server.log.count(r"came x\r\nERROR") >= 2
        assert server.log.count(r"ValueError: x\r\nERROR") == 2, "of the handler, and of the one with its own handler"
    assert not re.search(r"^ERROR: +forged", server.log, re.MULTILINE)
    assert "\x1b[31m" not in server.log


def leave_within_a_body(server: Server, target: str) -> None:
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as leaving:
        leaving.sendall(head.encode() + b"begun")


async def test_a_client_that_leaves_within_a_body_is_one_line_and_no_error(server: Server) -> None:
    with serving(server):
        for _ in range(5):
            leave_within_a_body(server, "/body?token=SECRET")
        await server.logged(r"(?s)(The client left before its request was complete: POST /body\n.*){5}")
    assert "ERROR" not in server.log
    assert "SECRET" not in server.log


async def test_what_the_application_does_wrong_when_a_client_leaves_is_an_error_as_ever(server: Server) -> None:
    with serving(server, expected=["ValueError: a fault of the application's"] * 2):
        leave_within_a_body(server, "/broken-body")
        await server.logged("ValueError: a fault of the application's")
