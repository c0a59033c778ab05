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

@socket.on("fail")
async def fail(conn: Connection, payload: dict[str, Any]) -> None:
    raise ValueError(payload["text"])

@socket.on("log")
async def log(conn: Connection, payload: dict[str, Any]) -> dict[str, Any]:
    logging.getLogger("shop").warning("said %s", payload["text"])
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
    with serving(server, expected=[r"ValueError: x\r\nERROR:    forged \x1b[31m", r"ValueError: y\nERROR:    forged"]):
        async with client(server.url("/ws")) as conn:
            await conn.call("log", {"text": FORGED})
            await conn.send("fail", {"text": FORGED})
            assert (await conn.error())["code"] == "HANDLER_ERROR"
        assert server.get("/fail/y").status == 500
        await server.logged(r"said x\\r\\nERROR:    forged")
        await server.logged(r"ValueError: y\\n")
    assert not re.search(r"^ERROR: +forged", server.log, re.MULTILINE)
    assert "\x1b[31m" not in server.log
