"""A real uvicorn with our WebSocket protocol: a `SocketApp` on the fast path, and other routes of the application."""

from __future__ import annotations

import asyncio
import json
import socket
import zlib
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from socketspec.adapters.uvicorn.frame_connection import FrameConnection
from tests.support import Server, client, fetch, serving
from tests.support_process import Closed, RawClient, frame

PLAIN = ("--ws", "socketspec.adapters.uvicorn:WebSocketProtocol")
DEFLATE = ("--ws", "socketspec.adapters.uvicorn:DeflateWebSocketProtocol")

APP = """
import asyncio
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Header, HTTPException, WebSocket, WebSocketDisconnect, WebSocketException
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.session import SessionConfig

app = FastAPI()
socket = SocketApp(max_payload_size=1000, max_in_flight=2)
beating = SocketApp(
    namespace="/beating", health_url=None, session=SessionConfig(heartbeat_interval=0.2, heartbeat_timeout=0.3)
)
ended: dict[str, str] = {}
tasks: list[int] = []


@socket.on("join")
async def join(conn: Connection, payload: dict):
    await socket.rooms.join(conn, payload["room"])


@socket.on("say")
async def say(conn: Connection, payload: dict):
    for number in range(payload["count"]):
        await socket.rooms.broadcast(payload["room"], "said", {"n": number, "text": payload.get("text", "")})


@socket.on("wait")
async def wait(conn: Connection, payload: dict):
    await asyncio.sleep(payload["seconds"])
    return payload


@socket.on("count")
async def count(conn: Connection):
    return {"tasks": len(asyncio.all_tasks()), "connections": len(socket.engine.connections)}


@beating.on("slow", ordered=True)
async def slow(conn: Connection):
    await asyncio.sleep(0.15)
    return {}


@beating.on("whoami")
async def whoami(conn: Connection):
    return {"id": conn.id}


@beating.on_disconnect
async def gone(conn, reason):
    ended[conn.id] = reason
    print("ended", reason, flush=True)


mount(socket, app)
mount(beating, app, path="/beating")


@app.get("/items/{item}")
async def item(item: str):
    return {"item": item}


async def user(x_user: str = Header("nobody")):
    return x_user


@app.websocket("/echo/{name}")
async def echo(websocket: WebSocket, name: str, user: str = Depends(user)):
    await websocket.accept(subprotocol="b" if "b" in websocket.scope["subprotocols"] else None)
    await websocket.send_json([name, user, websocket.query_params.get("q")])
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                print("echo ended", message["code"], message.get("reason"), flush=True)
                return
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        pass


@app.websocket("/early")
async def early(websocket: WebSocket):
    await asyncio.sleep(0.2)
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close(4321, "enough")


@app.websocket("/impatient")
async def impatient(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text("waiting")
    for _ in range(3):
        try:
            await asyncio.wait_for(websocket.receive_text(), 0.05)
        except TimeoutError:
            continue
    await websocket.send_text("patient")
    await websocket.send_text(await websocket.receive_text())


@app.websocket("/closed")
async def closed(websocket: WebSocket):
    await websocket.close()


@app.websocket("/denied")
async def denied(websocket: WebSocket):
    raise WebSocketException(code=1008, reason="no")


@app.websocket("/splits")
async def splits(websocket: WebSocket):
    raise HTTPException(401, headers={"x-a": "b\\r\\nX-Evil: 1"})


@app.websocket("/splits-accept")
async def splits_accept(websocket: WebSocket):
    await websocket.accept(headers=[(b"x-a", b"b\\r\\nX-Evil: 1")])


class Swallow:
    # A middleware that keeps the accept for itself.

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def swallow(message):
            if message["type"] != "websocket.accept":
                await send(message)

        await self.app(scope, receive, swallow if scope["path"] == "/swallowed" else send)


app.add_middleware(Swallow)
mount(SocketApp(namespace="/swallowed", health_url=None), app, path="/swallowed")


class Dawdle:
    # A middleware that takes its time after the accept.

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def dawdle(message):
            await send(message)
            await asyncio.sleep(0.3)

        await self.app(scope, receive, dawdle if scope["path"] == "/dawdled" else send)


dawdled = SocketApp(namespace="/dawdled", health_url=None)
app.add_middleware(Dawdle)
mount(dawdled, app, path="/dawdled")


@dawdled.on("say")
async def heard(conn: Connection, payload: dict):
    print("dawdled heard", payload["n"], flush=True)
    return payload


@dawdled.on_disconnect
async def dawdled_gone(conn, reason):
    print("dawdled ended", reason, flush=True)


@app.websocket("/broken")
async def broken(websocket: WebSocket):
    await websocket.accept()
    raise RuntimeError("broken on purpose")


@app.websocket("/returns")
async def returns(websocket: WebSocket):
    await websocket.accept()


@app.websocket("/pours")
async def pours(websocket: WebSocket):
    await websocket.accept()
    sent = 0
    try:
        while True:
            await websocket.send_bytes(b"x" * 100_000)
            sent += 1
    except WebSocketDisconnect:
        print("poured", sent, flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("fast"), APP, options=PLAIN)
    failures = ["RuntimeError: broken on purpose"]
    failures += ["ValueError: A header or subprotocol of the application has a line end in it."]
    with serving(server, expected=failures):
        yield server


@pytest.fixture(scope="module")
def deflating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("deflate"), APP, options=DEFLATE)
    with serving(server):
        yield server


async def test_events_acks_rooms_and_errors_work_on_the_fast_path(server: Server) -> None:
    async with client(server.url("/ws")) as ada, client(server.url("/ws")) as bob:
        await ada.call("join", {"room": "fast"})
        await bob.call("join", {"room": "fast"})
        await bob.send("say", {"room": "fast", "count": 100}, id=1)
        assert [(await ada.receive())["payload"]["n"] for _ in range(100)] == list(range(100))
        assert [(await bob.receive())["event"] for _ in range(101)] == ["said"] * 100 + ["__ack__"]
        await ada.send("nothing")
        assert (await ada.error())["code"] == "UNKNOWN_EVENT"
        await ada.send("wait", {"text": "x" * 2000})
        assert (await ada.error())["code"] == "PAYLOAD_TOO_LARGE"
        assert (await ada.call("wait", {"seconds": 0}))["seconds"] == 0


async def test_messagepack_goes_the_fast_path_as_well(server: Server) -> None:
    async with (
        connect(server.url("/ws"), subprotocols=["socketspec.v1.msgpack"], proxy=None) as packed,  # type: ignore[list-item]  # a NewType of str
        client(server.url("/ws")) as ada,
    ):
        assert isinstance(await packed.recv(), bytes)  # __connect__
        await ada.call("join", {"room": "mixed"})
        await packed.send(b"\x83\xa5event\xa4join\xa7payload\x81\xa4room\xa5mixed\xa2id\x01")
        assert b"__ack__" in await packed.recv()
        await ada.send("say", {"room": "mixed", "count": 1})
        assert b"\xa5event\xa4said" in await packed.recv()
        assert (await ada.receive())["event"] == "said"


async def test_handlers_in_flight_are_bounded_and_reading_pauses_meanwhile(server: Server) -> None:
    async with client(server.url("/ws")) as ada:
        for number in range(20):
            await ada.send("wait", {"seconds": 0.01}, id=number)
        replies = [await ada.receive() for _ in range(20)]
        assert sorted(reply["id"] for reply in replies) == list(range(20))


async def test_an_idle_connection_has_no_task(server: Server) -> None:
    async with client(server.url("/ws")) as ada:
        before = await ada.call("count")
        idle = [await connect(server.url("/ws"), proxy=None) for _ in range(50)]
        after = await ada.call("count")
        assert after["connections"] == before["connections"] + 50
        assert after["tasks"] <= before["tasks"] + 2
        for each in idle:
            await each.close()
        async with asyncio.timeout(5):
            while (await ada.call("count"))["connections"] > before["connections"]:  # noqa: ASYNC110 # no event tells
                await asyncio.sleep(0.01)


async def test_heartbeats_are_ping_frames_and_a_client_that_answers_stays(server: Server) -> None:
    async with client(server.url("/beating"), subprotocols=["socketspec.v1.json"]) as ada:
        assert (await ada.receive())["payload"]["heartbeat"]["frames"] is True
        await ada.silence(1.0)  # the client library answers by itself, and no event is in between
        assert (await ada.call("whoami"))["id"]


async def test_a_client_whose_answers_are_not_read_yet_is_alive(server: Server) -> None:
    async with client(server.url("/beating")) as ada:
        for number in range(30):  # more than may be in flight: reading pauses, and pongs wait behind events
            await ada.send("slow", id=number)
        assert [(await ada.receive())["id"] for _ in range(30)] == list(range(30))
        assert (await ada.call("whoami"))["id"]


async def test_a_client_that_does_not_answer_pings_is_closed_with_4004(server: Server) -> None:
    with RawClient(server.port, "/beating") as silent:
        assert silent.closed().code == 4004
    await server.logged("ended heartbeat_timeout")


def test_any_frame_counts_as_life(server: Server) -> None:
    with RawClient(server.port, "/beating") as pinging:
        pinging.sock.settimeout(0.05)
        for _ in range(30):
            pinging.sock.sendall(frame(9, b"alive"))
            try:
                pinging.receive(0.05)
            except TimeoutError:
                continue
        assert pinging.ask("whoami")["id"]


def test_a_close_frame_is_answered_with_its_code(server: Server) -> None:
    with RawClient(server.port, "/ws") as leaving:
        leaving.sock.sendall(frame(8, (4999).to_bytes(2, "big") + b"bye"))
        closed = leaving.closed()
    assert closed.code == 4999


async def test_other_routes_have_parameters_dependencies_headers_and_subprotocols(server: Server) -> None:
    async with connect(
        server.url("/echo/x%20y?q=1"),
        additional_headers={"x-user": "ada"},
        subprotocols=["a", "b"],  # type: ignore[list-item]  # a NewType of str
        proxy=None,
    ) as websocket:
        assert websocket.subprotocol == "b"
        assert json.loads(await websocket.recv()) == ["x y", "ada", "1"]
        for message in ("text", b"bytes", "é" * 50_000, b"", ""):
            await websocket.send(message)
            assert await websocket.recv() == message
        await websocket.close(4000, "done")
    await server.logged("echo ended 4000 done")
    assert (await fetch(server, "/items/7")).json() == {"item": "7"}


async def test_a_route_that_takes_its_time_and_closes_has_its_code_and_reason(server: Server) -> None:
    async with connect(server.url("/early"), proxy=None) as websocket:
        await websocket.send("early")
        assert await websocket.recv() == "early"
        with pytest.raises(ConnectionClosed) as ended:
            await websocket.recv()
        assert ended.value.rcvd is not None
        assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (4321, "enough")


async def test_a_route_may_give_up_waiting_for_a_message_and_wait_again(server: Server) -> None:
    async with connect(server.url("/impatient"), proxy=None) as websocket:
        assert await websocket.recv() == "waiting"
        assert await websocket.recv() == "patient"
        await websocket.send("at last")
        assert await websocket.recv() == "at last"


@pytest.mark.parametrize("path", ["/closed", "/denied", "/nowhere"])
async def test_a_route_that_refuses_is_403_and_tcp_is_closed(server: Server, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(server.url(path), proxy=None)
    assert refused.value.response.status_code == 403


def asking(server: Server, path: str) -> socket.socket:
    """A connection that has asked for its upgrade."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    client.sendall(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    return client


def answer_to_an_upgrade(server: Server, path: str) -> bytes:
    """Everything the server sends until it closes."""
    with asking(server, path) as client:
        answer = b""
        while data := client.recv(4096):
            answer += data
        return answer


@pytest.mark.parametrize("path", ["/splits", "/splits-accept"])
def test_a_header_cannot_end_the_head_of_an_answer(server: Server, path: str) -> None:
    answer = answer_to_an_upgrade(server, path)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"X-Evil" not in answer


def test_a_connection_whose_accept_was_kept_back_is_closed(server: Server) -> None:
    assert answer_to_an_upgrade(server, "/swallowed") == b""


async def test_what_comes_before_the_hand_over_is_handled_in_order(server: Server) -> None:
    async with client(server.url("/dawdled")) as ada:
        for number in range(3):
            await ada.send("say", {"n": number}, id=number)
        assert [(await ada.receive())["payload"]["n"] for _ in range(3)] == [0, 1, 2]
        assert (await ada.call("say", {"n": 3}))["n"] == 3


async def test_a_client_that_leaves_before_the_hand_over_is_seen_to_leave(server: Server) -> None:
    async with connect(server.url("/dawdled"), proxy=None) as websocket:
        await websocket.close(4001, "changed my mind")
    await server.logged(r"dawdled ended client:4001")
    with asking(server, "/dawdled") as client:
        assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
    await server.logged(r"dawdled ended connection_lost")


async def test_a_route_that_fails_closes_with_1011_and_is_logged(server: Server) -> None:
    async with connect(server.url("/broken"), proxy=None) as websocket:
        with pytest.raises(ConnectionClosed) as ended:
            await websocket.recv()
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1011
    await server.logged("broken on purpose")


async def test_a_route_that_returns_closes_with_1000(server: Server) -> None:
    async with connect(server.url("/returns"), proxy=None) as websocket:
        with pytest.raises(ConnectionClosed) as ended:
            await websocket.recv()
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1000


async def test_a_route_that_pours_waits_for_its_client(server: Server) -> None:
    websocket = await connect(server.url("/pours"), proxy=None, max_size=None)
    await websocket.recv()
    await asyncio.sleep(0.5)  # time in which it could send gigabytes
    websocket.transport.abort()
    poured = await server.logged(r"poured (\d+)")
    assert int(poured[1]) < 200


def test_a_token_in_the_query_is_not_logged(server: Server) -> None:
    with RawClient(server.port, "/ws?token=SECRET123") as ada:
        ada.ask("count")
    assert "SECRET123" not in server.log
    assert '"WebSocket /ws" [accepted]' in server.log


async def test_compression_is_off_unless_asked_for(server: Server, deflating: Server) -> None:
    async with connect(server.url("/ws"), proxy=None) as plain, connect(deflating.url("/ws"), proxy=None) as packed:
        assert plain.response is not None
        assert packed.response is not None
        assert "Sec-WebSocket-Extensions" not in plain.response.headers
        assert "server_no_context_takeover" in packed.response.headers["Sec-WebSocket-Extensions"]


async def test_a_broadcast_reaches_clients_with_and_without_compression(deflating: Server) -> None:
    text = "ha " * 5000
    async with (
        client(deflating.url("/ws")) as packed,
        connect(deflating.url("/ws"), compression=None, proxy=None, max_size=None) as plain,
    ):
        await packed.call("join", {"room": "r"})
        await plain.send('{"event":"join","payload":{"room":"r"},"id":1}')
        assert "__ack__" in str(await plain.recv())
        await packed.send("say", {"room": "r", "count": 3, "text": text[:900]})
        for number in range(3):
            expected = {"n": number, "text": text[:900]}
            assert (await packed.receive())["payload"] == expected
            assert json.loads(await plain.recv())["payload"] == expected


def test_a_bomb_is_refused_by_its_inflated_size(deflating: Server) -> None:
    compressor = zlib.compressobj(9, wbits=-15)
    bomb = compressor.compress(b"0" * 200_000_000) + compressor.flush(zlib.Z_SYNC_FLUSH)
    with socket.create_connection(("127.0.0.1", deflating.port), timeout=5) as bomber:
        bomber.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += bomber.recv(4096)
        data = frame(1, bomb)
        bomber.sendall(bytes((data[0] | 0x40,)) + data[1:])
        answer = bomber.recv(4096)
    assert answer[:1] == b"\x88"
    assert int.from_bytes(answer[2:4], "big") == 1009


def test_what_the_client_breaks_is_answered_with_its_code(server: Server) -> None:
    for sent, code in (
        (b"\x81\x01x", 1002),
        (frame(1, b"\xff"), 1007),
        (b"\x81\xff" + b"\x00" * 2 + b"\x7f" * 6, 1009),
    ):
        with RawClient(server.port, "/ws") as rude:
            rude.sock.sendall(sent)
            with pytest.raises(Closed) as closed:
                rude.receive()
            assert closed.value.code == code


async def test_small_messages_are_sent_at_once_whoever_made_the_listening_socket() -> None:
    made: asyncio.Queue[bool] = asyncio.Queue()

    class Looking(FrameConnection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted = transport.get_extra_info("socket")
            made.put_nowait(bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            self.abort()

    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))  # as uvicorn makes it; asyncio leaves Nagle's algorithm on there
    async with await loop.create_server(lambda: Looking(loop, max_size=0), sock=listener) as listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        assert await made.get()
        writer.close()
        await reader.read()
