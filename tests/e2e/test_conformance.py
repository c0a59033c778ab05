"""The Autobahn cases, run by kosoku against real uvicorn processes with the WebSocket classes of this package.

All 517 of them, large and compressed messages included, take minutes: they run where SOCKETSPEC_ALL_CASES is 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import kosoku
import pytest

from tests.support_process import ServerProcess, serve

ALL = os.environ.get("SOCKETSPEC_ALL_CASES") == "1"
PLAIN = "socketspec.adapters.uvicorn:WebSocketProtocol"
DEFLATE = "socketspec.adapters.uvicorn:DeflateWebSocketProtocol"
SLOW_CASES = ("9.*", "12.*", "13.*")
"""Large messages (9) and many compressed ones (12 and 13)."""
AT_ONCE = 4
"""Cases run side by side: most of them wait for a timeout."""
NO_PINGS = ("--ws-ping-interval", "0")
"""A case that gets a ping takes it for the end, and the long ones last more than the 20 s to the first."""
PASSES = {"OK", "NON-STRICT", "INFORMATIONAL"}

# The cases leave files of their own open.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*autobahntestsuite:ResourceWarning")

APPS = {
    "handed over": """
class Echo:
    def __init__(self, hand_over):
        self.line = hand_over(self)
        self.line.go_on()

    def received(self, data):
        is_binary = isinstance(data, bytes)
        self.line.write(self.line.encode(data if is_binary else data.encode(), binary=is_binary))

    def full(self):
        self.line.hold()

    def writable(self):
        self.line.go_on()

    def heard(self):
        pass

    def stalled(self):
        pass

    def shutting_down(self):
        self.line.close(1012, "")

    def lost(self, code, reason):
        pass


async def app(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    Echo(scope["extensions"]["socketspec.handover"])
""",
    "FastAPI": """
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


@app.websocket("/")
async def echo(websocket: WebSocket):
    await websocket.accept()
    try:
        while (message := await websocket.receive())["type"] == "websocket.receive":
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        pass
""",
    "ASGI": """
async def app(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        try:
            await send({**message, "type": "websocket.send"})
        except OSError:
            break
""",
}


@pytest.fixture(params=[PLAIN, DEFLATE], ids=["plain", "deflate"])
def protocol(request: pytest.FixtureRequest) -> str:
    """The WebSocket class that the server uses."""
    name: str = request.param
    return name


@pytest.fixture(params=list(APPS))
def server(request: pytest.FixtureRequest, protocol: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that sends every message back, and is to do so without an error in its log."""
    options = ("--ws", protocol, "--lifespan", "off", "--no-access-log", *NO_PINGS)
    with serve(APPS[request.param], tmp_path, *options) as running:
        yield running
        assert running.process.poll() is None, running.log
    assert "Traceback" not in running.log, running.log
    assert "ERROR" not in running.log, running.log


async def run(server: ServerProcess, include: Sequence[str] | None, exclude: Sequence[str] | None) -> int:
    """How many of these cases were run. Raises `AssertionError` with the ones that did not pass."""
    try:
        results = await kosoku.run_fuzzingclient(
            f"127.0.0.1:{server.port}", include and list(include), exclude and list(exclude), concurrency=AT_ONCE
        )
    except kosoku.FailureError as failure:
        raise AssertionError(str(failure)) from None
    # It takes a case that the server does not implement for none that failed.
    others = [case.case_id for case in results if case.behavior.value not in PASSES]
    assert not others, f"not carried out: {others}"
    return len(results)


@pytest.mark.parametrize("protocol", [PLAIN], ids=["plain"], indirect=True)
async def test_all_cases_but_large_and_compressed_messages_pass(server: ServerProcess) -> None:
    assert await run(server, None, SLOW_CASES) == 247


@pytest.mark.parametrize("protocol", [DEFLATE], ids=["deflate"], indirect=True)
@pytest.mark.parametrize("server", ["handed over", "FastAPI"], indirect=True)
async def test_some_cases_with_large_and_with_compressed_messages_pass(server: ServerProcess) -> None:
    some = ("9.1.3", "9.3.2", "9.5.4", "12.1.2", "12.1.9", "12.3.5", "13.3.4", "13.5.7")
    assert await run(server, some, None) == len(some)


@pytest.mark.skipif(not ALL, reason="all 517 cases, which take minutes: SOCKETSPEC_ALL_CASES=1")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("protocol", [DEFLATE], ids=["deflate"], indirect=True)
async def test_all_517_cases_pass(server: ServerProcess) -> None:
    assert await run(server, None, None) == 517
