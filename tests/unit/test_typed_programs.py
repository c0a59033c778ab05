"""Type checkers take programs that use typed events and errors rightly, and find each mistake in the others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

GOOD = """
from pydantic import BaseModel
from datetime import timedelta
from typing import Any
from socketspec import Connection, Depends, Event, EventRouter, Room, SocketApp
from socketspec.cluster import AsyncPublisher, Publisher
from socketspec.errors import EventError
from socketspec.testing import SyncTestClient, SyncTestConnection, TestClient, TestConnection

class Order(BaseModel):
    id: int

class SoldOutDetails(BaseModel):
    item: str

class SoldOut(EventError):
    code = "SOLD_OUT"
    details: SoldOutDetails

shared = Event("order_seen", Order, room="orders:{id}")
socket = SocketApp(events=[shared])
order_changed: Event[Order] = socket.event("order_changed", Order, room="orders:{id}")

@socket.on("buy", emits=[order_changed], errors=[SoldOut], response_model=Order)
async def buy(conn: Connection, payload: Order) -> Order:
    await order_changed.broadcast(payload, id=payload.id, exclude=conn)
    await order_changed.emit(conn, payload)
    await shared.send("ada", payload)
    item: str = SoldOut(details=SoldOutDetails(item="tea")).details.item
    raise SoldOut(item, details={"item": "tea"})

async def audit(conn: Connection, event: str, payload: Any, next_handler: Any) -> Any:
    return await next_handler(conn, event, payload)

async def staff() -> None: ...

router = EventRouter(
    prefix="orders.", tags=["orders"], dependencies=[Depends(staff)], rate_limit="5/s", middleware=[audit],
    errors=[SoldOut], rooms=[Room("orders:{id}")], timeout=timedelta(seconds=5),
)
routed: Event[Order] = router.event("order_routed", Order, room="orders:{id}")

@router.on("place", rate_limit="2/s", timeout=5, middleware=[audit])
async def place(conn: Connection, payload: Order) -> Order:
    await routed.broadcast(payload, id=payload.id)
    return payload

@router.on_room_join("orders:{id}")
async def joined(conn: Connection, id: int) -> None: ...

socket.include_router(router, prefix="v1.", dependencies=[Depends(staff)])

def work(publisher: Publisher) -> int:
    return publisher.event(shared).broadcast(Order(id=1), id=1).nodes

async def work_async(publisher: AsyncPublisher) -> int:
    return (await publisher.event("order_seen", Order, room="orders:{id}").broadcast(Order(id=1), id="1")).nodes

async def test_it() -> None:
    async with TestClient(socket) as client, client.connect(format="json") as conn:
        entered: TestClient = client
        opened: TestConnection = conn
        reply: Order = await conn.request("buy", Order(id=1), Order)
        named: Order = await conn.request("buy", model=Order, timeout=1)
        as_dict: dict[str, object] = await conn.request("buy", {"id": reply.id})
        message: dict[str, object] = await conn.receive()
        short: dict[str, object] = await conn.receive(0.5)
        order: Order = await conn.receive(Order, timeout=1)
        seen: Order = await conn.expect("order_seen", Order)
        payload: dict[str, object] = await conn.expect("order_seen", timeout=1)
        awaited: TestConnection = await client.connect("/ws")

def test_it_plainly() -> None:
    with TestClient(socket) as client, client.connect() as conn:
        entered: SyncTestClient = client
        opened: SyncTestConnection = conn
        reply: Order = conn.request("buy", Order(id=1), Order)
        seen: Order = conn.expect("order_seen", Order)
        number: int = client.call(len, "5")
"""

BAD = [
    "await order_changed.broadcast(SoldOutDetails(item='x'), id=1)",
    "await order_changed.broadcast({'id': 1}, id=1)",
    "await order_changed.broadcast(id=1)",
    "await order_changed.broadcast(Order(id=1), id=None)",
    "await order_changed.broadcast(Order(id=1), id=1.5)",
    "await order_changed.emit('ada', Order(id=1))",
    "await order_changed.send('ada', 5)",
    "await shared.broadcast_all(SoldOutDetails(item='x'))",
    "publisher.event(shared).broadcast(SoldOutDetails(item='x'), id=1)",
    "publisher.event('x', Order).send('ada', 5)",
    "await routed.broadcast(SoldOutDetails(item='x'), id=1)",
    "socket.include_router(socket)",
    "EventRouter(prefix=5)",
    "router.on('x', timeout='5')",
    "x: Event[SoldOutDetails] = socket.event('x', Order)",
    "number: int = SoldOut(details=None).details.item",
    "text: str = await (await TestClient(socket).connect()).request('buy', None, Order)",
    "word: str = await (await TestClient(socket).connect()).expect('order_seen', Order)",
    "await TestClient(socket).connect(format='xml')",
]


@pytest.mark.slow
@pytest.mark.timeout(240)  # two type checkers, each of which reads all of Pydantic
def test_mypy_and_pyright_take_the_good_and_find_every_mistake(tmp_path: Path) -> None:
    lines = [*GOOD.splitlines(), "async def bad(publisher: Publisher) -> None:", *(f"    {line}" for line in BAD)]
    first = len(lines) - len(BAD) + 1
    program = tmp_path / "program.py"
    program.write_text("\n".join(lines) + "\n")
    expected = set(range(first, len(lines) + 1))
    checker = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path), str(program)]
    mypy = subprocess.run(checker, cwd=ROOT, capture_output=True, text=True)
    found = {int(line) for line in re.findall(r"program\.py:(\d+): error", mypy.stdout)}
    assert found == expected, mypy.stdout
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    checker = [
        sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path),
    ]  # fmt: skip
    pyright = subprocess.run(checker, cwd=tmp_path, capture_output=True, text=True)
    report = json.loads(pyright.stdout)
    found = {item["range"]["start"]["line"] + 1 for item in report["generalDiagnostics"] if item["severity"] == "error"}
    assert found == expected, pyright.stdout
