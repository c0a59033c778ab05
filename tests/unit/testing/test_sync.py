"""The test client in plain `def` tests."""

from __future__ import annotations

import threading

import pytest
from fastapi import FastAPI

from socketspec import SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.testing import EventFailed, TestClient, Unexpected
from tests.unit.testing.apps import ADA, Order, Receipt, shop


def test_a_plain_test_does_all_that_an_async_one_does() -> None:
    socket = shop()
    with TestClient(socket) as client:
        with client.connect(identity=ADA, format="json") as conn:
            assert conn.identity == ADA
            assert conn.id == conn.connection.id
            conn.request("watch")
            assert conn.request("order", Order(item="tea"), Receipt).number == 1
            assert conn.request("whoami") == {"user": "ada"}
            assert conn.expect("ordered", Order).item == "tea"
            with pytest.raises(EventFailed) as failed:
                conn.request("order", {"item": "gold"})
            assert failed.value.code == "SOLD_OUT"
            with pytest.raises(ZeroDivisionError):
                conn.request("divide")
            conn.assert_nothing()
            socket.sync.rooms.broadcast("orders", "ordered", Order(item="milk"))
            assert conn.receive(Order).item == "milk"
            client.call(socket.rooms.broadcast, "orders", "ordered", Order(item="salt"))
            assert conn.expect("ordered")["item"] == "salt"
            conn.drop()
            assert conn.is_closed
            assert conn.reconnect()["session_resumed"]
            conn.send("slow")
            client.settle()
            assert conn.receive_event("done")["event"] == "done"
            client.advance(5)
            conn.send_raw("no json")
            with pytest.raises(Unexpected, match="VALIDATION_ERROR"):
                conn.assert_nothing()
            assert conn.receive(timeout=0)["event"] == "__error__"
        assert conn.is_closed
        assert client.call(lambda: 5) == 5
    assert "socketspec test client" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(RuntimeError, match="within its `with` block"):
        client.settle()


def test_an_application_and_its_routes() -> None:
    app = FastAPI()
    socket = shop()
    mount(socket, app)

    @app.get("/health")
    def health() -> dict[str, bool]:
        socket.sync.rooms.broadcast("orders", "ordered", Order(item="from a def route"))
        return {"ok": True}

    with TestClient(app) as client, client.connect(identity=ADA) as conn:
        conn.request("watch")
        assert client.http.get("/health").json() == {"ok": True}
        assert conn.expect("ordered", Order).item == "from a def route"


async def test_in_an_async_test_it_says_what_to_write() -> None:
    with pytest.raises(RuntimeError, match="write `async with TestClient"):
        TestClient(SocketApp()).__enter__()


def test_an_app_that_cannot_start_leaves_no_thread() -> None:
    with pytest.raises(ValueError, match="found no SocketApp"), TestClient(FastAPI()):
        pass
    assert "socketspec test client" not in {thread.name for thread in threading.enumerate()}
