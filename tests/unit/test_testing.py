"""`TestClient`: the whole stack but the network."""

from __future__ import annotations

import asyncio
import datetime

import pytest
from pydantic import BaseModel

from socketspec import Broadcasts, Connection, Emits, Identity, SocketApp
from socketspec.security.auth import APIKeyAuth
from socketspec.testing import ConnectionClosed, TestClient


class Stamp(BaseModel):
    at: datetime.datetime


NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


def echo_app() -> SocketApp:
    socket = SocketApp()

    @socket.on("echo")
    async def echo(conn: Connection, payload: Stamp) -> Stamp:
        await conn.emit("echoed", payload)
        return payload

    return socket


@pytest.mark.parametrize("subprotocols", [[], ["socketspec.v1.json"], ["socketspec.v1.msgpack"]])
async def test_models_pass_through_the_codec_both_ways(subprotocols: list[str]) -> None:
    async with TestClient(echo_app()) as client:
        conn = await client.connect(subprotocols=subprotocols)
        await conn.send("echo", Stamp(at=NOON), id="a")
        assert (await conn.receive_event("echoed"))["payload"] == {"at": "2026-01-01T12:00:00Z"}
        assert await conn.receive() == {"event": "__ack__", "payload": {"at": "2026-01-01T12:00:00Z"}, "id": "a"}


async def test_what_cannot_be_encoded_fails_in_the_test_as_in_production() -> None:
    socket = SocketApp()

    @socket.on("bad")
    async def bad(conn: Connection) -> None:
        with pytest.raises(TypeError, match="Cannot send this payload"):
            await conn.emit("x", {"object": object()})

    async with TestClient(socket) as client:
        conn = await client.connect()
        await conn.send("bad", id=1)
        assert (await conn.receive())["event"] == "__ack__"


async def test_nothing_within_the_timeout_is_a_timeout_error() -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        with pytest.raises(TimeoutError):
            await conn.receive(timeout=0.01)


async def test_a_refused_client_gets_its_error_and_then_the_close() -> None:
    socket = SocketApp(auth=APIKeyAuth(valid_keys={"k": Identity(user_id="ada")}))
    async with TestClient(socket) as client:
        conn = await client.connect()
        assert (await conn.receive())["payload"]["code"] == "AUTH_ERROR"
        with pytest.raises(ConnectionClosed) as closed:
            await conn.receive()
        assert closed.value.code == 4001
        accepted = await client.connect(headers={"x-api-key": "k"})
        assert accepted.identity.user_id == "ada"
        assert accepted.id == accepted.connection.id


@pytest.mark.parametrize("strict", [True, False])
async def test_undeclared_emits_and_broadcasts_fail_in_strict_mode_only_and_misfits_always(strict: bool) -> None:
    socket = SocketApp()

    @socket.on("emit", emits=[Emits("stamp", model=Stamp)])
    async def emit(conn: Connection) -> None:
        await conn.emit("other")

    @socket.on("shape", emits=[Emits("stamp", model=Stamp)])
    async def shape(conn: Connection) -> None:
        await conn.emit("stamp", {"at": "never"})

    @socket.on("broadcast", broadcasts=[Broadcasts("said", room="chat:{room}")])
    async def broadcast(conn: Connection) -> None:
        await socket.rooms.broadcast("elsewhere", "said")

    async with TestClient(socket, strict=strict) as client:
        conn = await client.connect()
        for event in ("emit", "shape", "broadcast"):
            await conn.send(event, id=event)
            answer = await conn.receive_event("__error__" if strict or event == "shape" else "__ack__")
            assert answer["id"] == event


async def test_frames_can_be_sent_as_they_are() -> None:
    async with TestClient(SocketApp()) as client:
        conn = await client.connect()
        await conn.send_raw("not json")
        assert (await conn.receive())["payload"]["code"] == "VALIDATION_ERROR"
        await conn.send_raw(b"\x00")
        assert (await conn.receive())["payload"]["code"] == "VALIDATION_ERROR"
        with pytest.raises(ConnectionClosed, match="1003"):
            await conn.receive()


async def test_ordered_events_run_one_after_the_other_and_others_side_by_side() -> None:
    socket = SocketApp()
    gates: dict[int, asyncio.Event] = {number: asyncio.Event() for number in (1, 2)}

    @socket.on("ordered", ordered=True)
    async def ordered(conn: Connection, payload: dict[str, int]) -> None:
        await gates[payload["n"]].wait()

    @socket.on("free")
    async def free(conn: Connection, payload: dict[str, int]) -> None:
        await gates[payload["n"]].wait()

    async with TestClient(socket) as client:
        for event, first in (("ordered", 1), ("free", 2)):
            conn = await client.connect()
            for number in (1, 2):
                gates[number].clear()
                await conn.send(event, {"n": number}, id=number)
            gates[2].set()
            if first == 2:
                assert (await conn.receive())["id"] == 2
            gates[1].set()
            assert (await conn.receive())["id"] == 1
            if first == 1:
                assert (await conn.receive())["id"] == 2


async def test_what_was_broadcast_is_there_to_be_received_without_waiting() -> None:
    socket = SocketApp()
    async with TestClient(socket) as client:
        conn = await client.connect()
        await socket.rooms.broadcast_all("said")
        assert (await conn.receive(timeout=0))["event"] == "said"
