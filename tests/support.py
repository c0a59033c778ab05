"""For end-to-end tests: real server processes on free ports of 127.0.0.1, and a small WebSocket client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import http.client
import itertools
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from tests.ports import free_port

__all__ = (
    "Client",
    "Reply",
    "Server",
    "client",
    "fetch",
    "free_port",
    "jwt",
    "refused",
    "running_with",
    "serving",
    "serving_app",
    "uvicorn_options",
)

ROOT = Path(__file__).resolve().parents[1]
uvicorn_options: list[str] = []
"""Further options for every uvicorn that a test starts: how tests run on our own protocol as well."""
START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0


@contextmanager
def running_with(*options: str) -> Iterator[None]:
    """Give `options` to every uvicorn that is started meanwhile."""
    uvicorn_options[:] = options
    try:
        yield
    finally:
        uvicorn_options.clear()


def jwt(secret: str, **claims: Any) -> str:
    """An HS256 token made without a JWT library; `exp` is in an hour unless given."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    body = {"sub": "ada", "exp": int(time.time()) + 3600, **claims}
    signed = ".".join(part(json.dumps(value).encode()) for value in ({"alg": "HS256", "typ": "JWT"}, body))
    return f"{signed}.{part(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


class Reply(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


class Server:
    """One server process. Its folder holds the sources it runs; its log is standard output and error together."""

    def __init__(
        self,
        folder: Path,
        sources: Mapping[str, str],
        command: Sequence[str],
        port: int,
        environment: Mapping[str, str] | None = None,
        *,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            (folder / name).write_text(source, encoding="utf-8")
        self.name = folder.name
        self.port = port
        self.trust: ssl.SSLContext | None = trust
        """What its certificate is checked with; None: it speaks plain HTTP."""
        self._is_told = False
        self._log = folder / "server.log"
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        variables |= environment or {}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT
            )

    @classmethod
    def start(
        cls,
        folder: Path,
        source: str,
        *,
        options: Sequence[str] = (),
        others: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        """Begin `uvicorn main:app`, with `source` as main.py and `others` as further files; does not wait for it."""
        port = free_port()
        command = ["uvicorn", "main:app", "--host", "127.0.0.1", "--port", str(port), *uvicorn_options, *options]
        return cls(folder, {"main.py": source, **(others or {})}, command, port, environment)

    @property
    def log(self) -> str:
        """What the process has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def url(self, path: str) -> str:
        """The WebSocket URL of `path`."""
        return f"{'wss' if self.trust else 'ws'}://127.0.0.1:{self.port}{path}"

    def get(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Reply:
        """Ask for an HTTP page."""
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self.trust)
            if self.trust
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        )
        try:
            connection.request(method, path, headers=dict(headers or {}))
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, fields, answer.read().decode())
        finally:
            connection.close()

    def wait(self) -> Server:
        """Return when it answers HTTP; fail with its log if it does not."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/")
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
            else:
                return self
        self.kill()
        raise AssertionError(f"the server did not answer; its log:\n{self.log}")

    async def logged(self, pattern: str, within: float = 5.0) -> re.Match[str]:
        """Wait until the log has a match for `pattern`."""
        deadline = time.monotonic() + within
        while True:
            if found := re.search(pattern, self.log):
                return found
            assert time.monotonic() < deadline, f"{pattern!r} is not in the log:\n{self.log}"
            await asyncio.sleep(0.02)

    def begin_stop(self) -> None:
        """Send SIGTERM, once: a second one would end it at once. Waits for nothing."""
        if not self._is_told and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self._is_told = True

    def stop(self) -> int:
        """End it with SIGTERM; its exit status. Fails if it does not end in time."""
        self.begin_stop()
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not end within {STOP_TIMEOUT} s; its log:\n{self.log}") from None

    def kill(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def assert_clean(self, expected: Iterable[str] = ()) -> None:
        """Fail if the log has a traceback or error other than those that end in one of `expected`."""
        tracebacks = len(re.findall(r'(?<!")Traceback \(most recent call last\)', self.log))  # not those in JSON
        wanted = sum(self.log.count(f"\n{line}\n") for line in expected)
        assert tracebacks == wanted, f"{tracebacks} tracebacks, {wanted} expected:\n{self.log}"
        for sign in ("was never awaited", "was never retrieved", "ASGI callable", "unclosed"):
            assert sign not in self.log, self.log


@contextmanager
def serving(*servers: Server, expected: Iterable[str] = ()) -> Iterator[None]:
    """Wait until all `servers` answer; afterwards stop them and look for tracebacks in their logs."""
    try:
        for server in servers:
            server.wait()
        yield
        for server in servers:
            server.begin_stop()  # all at once: each takes a moment
        for server in servers:
            server.stop()
            server.assert_clean(expected)
    finally:
        for server in servers:
            server.kill()


@contextmanager
def serving_app(source: str, folder: Path, *options: str) -> Iterator[Server]:
    """`socketspec serve` with the application of `source`, ready; see `serving`."""
    port = free_port()
    command = ["socketspec.cli.main", "serve", "main:app", "--port", str(port), *options]
    server = Server(folder, {"main.py": source}, command, port)
    with serving(server):
        yield server


class Client:
    """A WebSocket client that speaks envelopes in JSON."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._ids = itertools.count(1)

    async def send(self, event: str, payload: object = None, *, id: str | int | None = None) -> None:
        """Send one event."""
        envelope = {"event": event, "payload": payload or {}, **({} if id is None else {"id": id})}
        await self.connection.send(json.dumps(envelope))

    async def receive(self, within: float = 5.0) -> dict[str, Any]:
        """The next event."""
        async with asyncio.timeout(within):
            message: dict[str, Any] = json.loads(await self.connection.recv())
        return message

    async def call(self, event: str, payload: object = None) -> Any:
        """Send one event with an id; the payload of its ack. Fails if anything else comes first."""
        number = next(self._ids)
        await self.send(event, payload, id=number)
        reply = await self.receive()
        assert (reply["event"], reply.get("id")) == ("__ack__", number), reply
        return reply["payload"]

    async def error(self, within: float = 5.0) -> dict[str, Any]:
        """The payload of the next event, which must be an error."""
        message = await self.receive(within)
        assert message["event"] == "__error__", message
        payload: dict[str, Any] = message["payload"]
        return payload

    async def closed(self, within: float = 5.0) -> tuple[int, str]:
        """Wait for the close frame; its code and reason. Fails if an event comes first."""
        event: dict[str, Any] | None = None
        ended: ConnectionClosed | None = None
        try:
            event = await self.receive(within)
        except ConnectionClosed as error:
            ended = error
        assert ended is not None, f"not closed, but sent {event}"
        assert ended.rcvd is not None, "the connection ended without a close frame"
        return ended.rcvd.code, ended.rcvd.reason

    async def silence(self, seconds: float) -> None:
        """Fail if anything arrives in the next `seconds`."""
        try:
            event = await self.receive(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"unexpected: {event}")


@asynccontextmanager
async def client(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    origin: str | None = None,
    trust: ssl.SSLContext | None = None,
) -> AsyncIterator[Client]:
    """A connected client. `trust`: what the server's certificate is checked with, for wss."""
    async with connect(
        url,
        additional_headers=dict(headers or {}),
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        origin=None if origin is None else Origin(origin),
        proxy=None,
        ssl=trust,
        max_size=None,
        close_timeout=5,
    ) as connection:
        yield Client(connection)


async def refused(url: str, *, headers: Mapping[str, str] | None = None, origin: str | None = None) -> int:
    """The HTTP status with which a handshake is refused. Fails if it is accepted."""
    try:
        async with client(url, headers=headers, origin=origin):
            raise AssertionError(f"{url} was accepted")
    except InvalidStatus as error:
        return error.response.status_code


async def fetch(server: Server, path: str, headers: Mapping[str, str] | None = None) -> Reply:
    """`Server.get` without holding up the event loop."""
    return await asyncio.to_thread(server.get, path, headers)
