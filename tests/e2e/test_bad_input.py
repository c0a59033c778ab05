"""Everything a client can send wrongly, over real sockets to a real uvicorn: the answers are those of docs/protocol.md.

After each: the server lives, another client is served as before, nothing was logged as a failure, memory is back.
"""

from __future__ import annotations

import gc
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgpack
import pytest

from tests.support_process import BINARY, TEXT, Closed, RawClient, ServerProcess, frame, serve

APP = """
from fastapi import FastAPI
from pydantic import BaseModel
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.security.ratelimit import RateLimit
from socketspec.connection.outbox import Backpressure

app = FastAPI()
reasons: dict[str, str] = {}


class Number(BaseModel):
    value: float = 0.0
    whole: int = 0


class Name(BaseModel):
    room: str


def build(path: str, **options):
    socket = SocketApp(namespace=path, health_url=None, **options)

    @socket.on("echo")
    async def echo(conn: Connection, payload: dict):
        return payload

    @socket.on("number")
    async def number(conn: Connection, payload: Number) -> Number:
        return payload

    @socket.on("join")
    async def join(conn: Connection, payload: Name):
        await socket.rooms.join(conn, payload.room)

    @socket.on("join_many")
    async def join_many(conn: Connection, payload: dict):
        for number in range(payload["first"], payload["last"]):
            await socket.rooms.join(conn, f"room:{number}")

    @socket.on("count")
    async def count(conn: Connection, payload: Name):
        return {"count": await socket.rooms.count(payload.room)}

    @socket.on("flood")
    async def flood(conn: Connection, payload: dict):
        for _ in range(payload["count"]):
            await conn.emit("data", {"text": "x" * 10_000})

    @socket.on("who")
    async def who(conn: Connection):
        engine = socket.engine
        return {"connections": len(engine.connections), "topics": len(engine.hub.topics), "reasons": reasons}

    @socket.on("whoami")
    async def whoami(conn: Connection):
        return {"id": conn.id}

    @socket.on_disconnect
    async def gone(conn, reason):
        reasons[conn.id] = reason
        while len(reasons) > 50:
            del reasons[next(iter(reasons))]

    mount(socket, app, path=path)


build("/ws")
build("/limited", rate_limit=RateLimit(10, 20, max_violations=50))
build("/many", max_rooms_per_connection=20_000)
build("/slow", backpressure=Backpressure(max_buffer=100_000, send_timeout=1.0))
"""

MEMORY_SLACK = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def server(websocket_protocol: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(APP, tmp_path_factory.mktemp("bad_input")) as running:
        yield running


@pytest.fixture(scope="module")
def bystander(server: ServerProcess) -> Iterator[RawClient]:
    """A client that stays connected while others misbehave."""
    with RawClient(server.port, pongs=True) as client:  # uvicorn closes who leaves pings unanswered for 20 s
        for _ in range(200):
            client.ask("echo", {"warm": 1})
        yield client


@pytest.fixture(autouse=True)
def unharmed(server: ServerProcess, bystander: RawClient) -> Iterator[None]:
    """What must hold after every test of this file."""
    before, logged = server.memory, len(server.log)
    yield
    assert server.process.poll() is None
    assert bystander.ask("echo", {"still": "here"}) == {"still": "here"}
    wait_until(lambda: bystander.ask("who")["connections"] == 1)
    failures = server.log[logged:].count("Traceback")
    # uvicorn itself logs this one, before the application hears of it
    assert failures == server.log[logged:].count("Invalid UTF-8 sequence received from client"), server.log[logged:]
    gc.collect()
    assert server.memory < before + MEMORY_SLACK


@pytest.fixture
def client(server: ServerProcess) -> Iterator[RawClient]:
    with RawClient(server.port) as raw:
        yield raw


@pytest.fixture
def packed(server: ServerProcess) -> Iterator[RawClient]:
    with RawClient(server.port, subprotocols=["socketspec.v1.msgpack"]) as raw:
        assert unpack(raw.receive().data)["event"] == "__connect__"
        yield raw


def wait_until(condition: Any, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.02)


def unpack(data: bytes) -> Any:
    return msgpack.unpackb(data)


def error(message: dict[str, Any]) -> str:
    assert message["event"] == "__error__"
    payload = message["payload"]
    assert set(payload) == {"code", "event", "message", "request_id", "details"}
    return str(payload["code"])


def refused(client: RawClient, text: str | bytes) -> dict[str, Any]:
    """Send `text` and return the answer's payload; the connection must go on."""
    client.text(text)
    message = client.json()
    assert error(message)
    assert client.ask("echo", {"go": "on"}) == {"go": "on"}
    payload: dict[str, Any] = message["payload"]
    return payload


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        '{"event":"echo"',
        "[]",
        "null",
        '"echo"',
        "1",
        "{}",
        '{"payload":{}}',
        '{"event":1}',
        '{"event":null}',
        '{"event":["echo"]}',
        '{"event":""}',
        '{"event":"echo","payload":[]}',
        '{"event":"echo","payload":"x"}',
        '{"event":"echo","id":{}}',
        '{"event":"echo","id":1.5}',
        '{"event":"echo","id":true}',
        '{"event":"echo","room":"r"}',
        '{"event":"echo","event":"echo"}',
        '{"event":"echo","\\u0065vent":"join"}',
        '{"event":"echo","payload":{},"p\\u0061yload":{}}',
        '{"event":"echo","payload":{"x":NaN}}',
        '{"event":"number","payload":{"value":NaN}}',
        '{"event":"number","payload":{"value":Infinity}}',
        '{"event":"number","payload":{"value":1e400}}',
        '{"event":"echo","payload":{"x":-1e400}}',
        '{"event":"echo","payload":{"x":' + "9" * 5000 + "}}",
        '{"event":"echo","payload":{"x":' + str(2**70) + "}}",
        '{"event":"number","payload":{"whole":"x"}}',
        '{"event":"echo","payload":{"x":' + "[" * 70 + "]" * 70 + "}}",
        '{"event":"number","payload":{"x":' + "[" * 30_000 + "]" * 30_000 + "}}",
        '{"event":"echo","payload":' + '{"a":' * 10_000,
        '{"event":"echo","payload":{"x":"\\ud800"}}',
        "\ufeff{}",
    ],
    ids=lambda text: text[:40] + "…" * (len(text) > 40),
)
def test_what_is_no_message_is_answered_and_the_connection_goes_on(client: RawClient, text: str) -> None:
    assert refused(client, text)["code"] == "VALIDATION_ERROR"


def test_a_huge_integer_that_a_model_allows_arrives(client: RawClient) -> None:
    assert client.ask("number", {"whole": 2**70}) == {"value": 0.0, "whole": 2**70}


@pytest.mark.parametrize("event", ["nothing", "x" * 5000, "__ack__", "__error__", "__connect__", "__disconnect__"])
def test_an_unknown_or_reserved_event_is_answered(client: RawClient, event: str) -> None:
    payload = refused(client, f'{{"event":"{event}","id":5}}')
    assert payload["code"] == "UNKNOWN_EVENT"
    assert payload["event"] == event[:200]


def test_a_repeated_key_in_the_payload_is_no_error_and_the_last_one_counts(client: RawClient) -> None:
    client.text('{"event":"echo","payload":{"a":1,"a":2}}')
    assert client.json()["payload"] == {"a": 2}


def test_a_message_larger_than_the_limit_is_answered(client: RawClient) -> None:
    answer = refused(client, '{"event":"echo","payload":{"x":"' + "x" * 70_000 + '"}}')
    assert (answer["code"], answer["details"]) == ("PAYLOAD_TOO_LARGE", {"max_payload_size": 65536})
    assert refused(client, '{"event":"echo","payload":{"x":"' + "é" * 40_000 + '"}}')["code"] == "PAYLOAD_TOO_LARGE"


def test_a_large_message_in_fragments_is_answered_like_one_in_a_single_frame(client: RawClient) -> None:
    client.sock.sendall(frame(TEXT, b"x" * 30_000, fin=False))
    for _ in range(3):
        client.sock.sendall(frame(0, b"x" * 30_000, fin=False))
    client.sock.sendall(frame(0, b"", fin=True))
    assert error(client.json()) == "PAYLOAD_TOO_LARGE"
    client.sock.sendall(frame(TEXT, b'{"event":"echo",', fin=False) + frame(0, b'"payload":{"a":1}}'))
    assert client.json()["payload"] == {"a": 1}


@pytest.mark.parametrize("fragments", [1, 40])
def test_a_message_larger_than_the_server_reads_closes_with_1009(client: RawClient, fragments: int) -> None:
    piece = b"x" * (20 * 1024 * 1024 // fragments)
    with suppress(ConnectionError):  # it closes before it has read everything
        for number in range(fragments):
            client.sock.sendall(frame(0 if number else TEXT, piece, fin=number == fragments - 1))
    assert client.closed().code in (1009, 1006)  # a reset can overtake the close frame on the way


def test_a_frame_announced_larger_than_the_server_reads_closes_with_1009_at_once(client: RawClient) -> None:
    client.sock.sendall(frame(TEXT, b"x" * (16 * 1024 * 1024 + 1))[:100])
    assert client.closed().code == 1009


def test_text_that_is_not_utf8_closes_with_1007(client: RawClient) -> None:
    client.text(b'{"event":"\xff"}')
    assert client.closed().code == 1007


def test_a_binary_frame_on_a_json_connection_closes_with_1003(client: RawClient) -> None:
    client.binary(b'{"event":"echo"}')
    assert error(client.json()) == "VALIDATION_ERROR"
    assert client.closed().code == 1003


def test_an_empty_binary_frame_on_a_json_connection_closes_with_1003(client: RawClient) -> None:
    client.binary(b"")
    assert error(client.json()) == "VALIDATION_ERROR"
    assert client.closed().code == 1003


def test_a_text_frame_on_a_messagepack_connection_closes_with_1003(packed: RawClient) -> None:
    packed.text('{"event":"echo"}')
    answer = packed.receive()
    assert answer.opcode == BINARY
    assert error(unpack(answer.data)) == "VALIDATION_ERROR"
    assert packed.closed().code == 1003


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * 60_000,
        msgpack.packb({"event": "number"}) + b"\0",
        b"\x82\xa5event\xa4echo\xa7payload\x81\xa1x" + b"\x91" * 250 + b"\x90",
        b"\x82\xa5event\xa6number\xa7payload\x81\xa5value\xcb\x7f\xf0" + bytes(6),
        b"\x82\xa5event\xa6number\xa5event\xa4echo",
        b"\xdd\xff\xff\xff\xff",
        b"\x81\xa5event\xc7\x00\x01",
    ],
    ids=lambda data: data[:12].hex(),
)
def test_broken_messagepack_is_answered_and_the_connection_goes_on(packed: RawClient, data: bytes) -> None:
    packed.binary(data)
    assert error(unpack(packed.receive().data)) == "VALIDATION_ERROR"
    packed.binary(msgpack.packb({"event": "echo", "payload": {"a": 1}}))
    assert unpack(packed.receive().data)["payload"] == {"a": 1}


@pytest.mark.parametrize(
    "raw",
    [b"\x81\x05hello", b"\xf1\x80\0\0\0\0", b"\x83\x80\0\0\0\0", b"\x89\xfe\x00\x7e" + bytes(130), b"\x80\x80\0\0\0\0"],
    ids=["unmasked", "reserved bits", "reserved opcode", "long ping", "continues nothing"],
)
def test_broken_frames_close_with_1002(client: RawClient, raw: bytes) -> None:
    client.sock.sendall(raw)
    assert client.closed().code == 1002


# Floods


def pump(client: RawClient, chunk: bytes, times: int, seconds: float) -> tuple[int, int]:
    """Send `chunk` again and again, reading what comes meanwhile; the bytes sent and received."""
    client.sock.setblocking(False)
    sent = received = 0
    view, offset = memoryview(chunk), 0
    deadline = time.monotonic() + seconds
    while times and time.monotonic() < deadline:
        readable, writable, _ = select.select([client.sock], [client.sock], [], 0.2)
        try:
            if readable:
                data = client.sock.recv(1 << 20)
                if not data:
                    break
                received += len(data)
            if writable:
                count = client.sock.send(view[offset:])
                sent += count
                offset = (offset + count) % len(chunk)
                times -= offset == 0
        except BlockingIOError:
            continue
        except ConnectionError:
            break
    return sent, received


class Watch:
    """Measures another client's round trips, and the server's memory, in a thread."""

    def __init__(self, server: ServerProcess) -> None:
        self.slowest = 0.0
        self.asked = 0
        self.peak = 0
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        with RawClient(self._server.port) as client:
            while not self._done.is_set():
                start = time.monotonic()
                client.ask("echo", {"n": 1})
                self.slowest = max(self.slowest, time.monotonic() - start)
                self.asked += 1
                self.peak = max(self.peak, self._server.memory)
                self._done.wait(0.01)


TINY = frame(TEXT, b"{}")


def test_a_million_tiny_messages_close_a_rate_limited_connection(server: ServerProcess) -> None:
    with RawClient(server.port, "/limited") as client, Watch(server) as watch:
        client.sock.sendall(TINY * 5)
        for _ in range(5):
            assert error(client.json()) == "VALIDATION_ERROR"
        client.sock.settimeout(10)
        with suppress(ConnectionError):  # closed in the middle of it, as it should be
            for _ in range(100):
                client.sock.sendall(TINY * 10_000)
        ended = client.closed()
        assert ended.code in (4007, 1006)  # a reset can overtake the close frame on the way
    assert watch.asked
    with RawClient(server.port, "/limited") as client:
        client.sock.sendall(TINY * 200)
        codes, ended = drained(client)
        assert (ended.code, ended.reason) == (4007, "rate_limited")
        assert set(codes) == {"VALIDATION_ERROR", "RATE_LIMIT_ERROR"}
        assert codes.count("RATE_LIMIT_ERROR") <= 55


def drained(client: RawClient) -> tuple[list[str], Closed]:
    """The error codes received until the server closed, and how it did."""
    codes = []
    while True:
        try:
            codes.append(error(client.json()))
        except Closed as closed:
            return codes, closed


@pytest.mark.slow
def test_a_flood_of_tiny_messages_without_a_limit_costs_neither_memory_nor_the_others(server: ServerProcess) -> None:
    before = server.memory
    with Watch(server) as watch, RawClient(server.port) as client:
        sent, received = pump(client, TINY * 10_000, 100, seconds=8)
    print(f"{sent / len(TINY):,.0f} messages, slowest round trip {watch.slowest * 1000:.0f} ms")  # noqa: T201 - figures
    assert sent > 100_000
    assert received > 0
    assert watch.asked > 5
    assert watch.slowest < 4, "half of the flood's time"
    assert watch.peak < before + MEMORY_SLACK


# Rooms


@pytest.mark.parametrize("room", ["a\nb", "\x00", "a\x1b[31m", "r" * 10_240, "", "é" * 150, "a\u202eb"])
def test_a_room_name_that_cannot_be_one_is_refused(client: RawClient, room: str) -> None:
    answer = client.ask("join", {"room": room})
    assert (answer["code"], answer["details"]) == ("VALIDATION_ERROR", {"reason": "room_name"})
    assert len(answer["message"]) < 600
    assert "\n" not in answer["message"]


def test_the_thousand_and_first_room_is_refused(client: RawClient) -> None:
    assert client.ask("join_many", {"first": 0, "last": 1000}) == {}
    answer = client.ask("join_many", {"first": 1000, "last": 10_000})
    assert answer["code"] == "PERMISSION_ERROR"
    assert answer["details"] == {"reason": "too_many_rooms", "limit": 1000}
    assert client.ask("count", {"room": "room:999"}) == {"count": 1}


def test_ten_thousand_rooms_are_joined_where_allowed_and_left_behind_empty(server: ServerProcess) -> None:
    with RawClient(server.port, "/many") as other:
        empty = other.ask("who")["topics"]
        with RawClient(server.port, "/many") as client:
            assert client.ask("join_many", {"first": 0, "last": 10_000}) == {}
            assert other.ask("who")["topics"] == empty + 10_000
            assert other.ask("count", {"room": "room:9999"}) == {"count": 1}
        wait_until(lambda: other.ask("who")["topics"] == empty)
        assert all(other.ask("count", {"room": f"room:{n}"}) == {"count": 0} for n in (0, 5000, 9999))


# A client that never reads


def test_a_client_that_never_reads_is_dropped_as_a_slow_consumer(server: ServerProcess) -> None:
    before = server.memory
    with RawClient(server.port, "/slow") as other, RawClient(server.port, "/slow", receive_buffer=4096) as client:
        id = client.ask("whoami")["id"]
        client.send("flood", {"count": 10_000})  # 100 MB
        wait_until(lambda: other.ask("who")["reasons"].get(id) == "slow_consumer")
        assert other.ask("who")["connections"] == 1
        assert server.memory < before + MEMORY_SLACK
        client.sock.shutdown(socket.SHUT_RDWR)
