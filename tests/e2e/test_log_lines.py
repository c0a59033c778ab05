"""The text log of `socketspec serve`: one line for each record, whatever clients and exceptions say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import Server, client, free_port, serving

SOURCE = """
import logging
from typing import Any
from fastapi import FastAPI
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
