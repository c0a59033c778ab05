"""What is measured, running: servers in processes of their own on one core, clients and publishers on another."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self, cast

from tests.benchmarks import native
from tests.benchmarks.load import cpu_seconds
from tests.benchmarks.sockets import Readers, client_frame, open_many

HERE: Final = Path(__file__).parent
ANSWER: Final = 120.0
"""Seconds an order may take."""


class Failed(RuntimeError):
    """A server did not do what was asked of it."""


class Target(NamedTuple):
    """One server that is measured."""

    key: str
    app: str
    label: str
    environment: str = ""
    """Which of `environments.PEERS` it runs in; the project's own by default."""
    ws: str = "auto"
    http: str = "auto"
    lifespan: str = "auto"
    path: str = "/ws"
    window: int = 0
    """Messages published at once at most, the next ones when all have arrived; 0: any number."""


def fast_http() -> str:
    """Our HTTP guard, where it is installed."""
    return (
        "socketspec.adapters.uvicorn.request_guard:GuardedH11Protocol"
        if find_spec("socketspec.adapters.uvicorn")
        else "h11"
    )


OURS: Final = Target(
    "socketspec", "socketspec", "SocketSpec", ws="socketspec.adapters.uvicorn:WebSocketProtocol", http=fast_http()
)
STOCK: Final = Target("socketspec-stock", "socketspec", "SocketSpec on stock uvicorn")
FASTAPI: Final = Target("fastapi", "fastapi", "FastAPI", ws="websockets-sansio")
FASTAPI_LEGACY: Final = Target("fastapi-websockets", "fastapi", "FastAPI, --ws websockets", ws="websockets")
SOCKETIO: Final = Target(
    "socketio", "socketio", "python-socketio", "socketio", path="/socket.io/?EIO=4&transport=websocket"
)
CHANNELS: Final = Target("channels", "channels", "channels_redis", "channels")
CHANX: Final = Target("chanx", "chanx", "chanx", "chanx", lifespan="off", window=50)
PUBLISHED: Final = Target("published", "socketspec", "socketspec 0.1 (published)", "published", window=200)
TARGETS: Final = (OURS, STOCK, FASTAPI, FASTAPI_LEGACY, SOCKETIO, CHANNELS, CHANX, PUBLISHED)


@dataclass(frozen=True)
class Platform:
    """How servers are run."""

    pythons: dict[str, str]
    """The interpreter of each environment; a target whose environment is missing here is left out."""
    loop: str = "asyncio"
    uvloop: str = ""
    """The folder uvloop is in, for those who do not have it."""

    def can_run(self, target: Target) -> bool:
        return not target.environment or target.environment in self.pythons

    def command(self, role: str, target: Target, url: str) -> list[str]:
        python = self.pythons.get(target.environment, sys.executable)
        command = [python, "-P", "-W", "ignore", str(HERE / "serve.py"), role, target.app]
        command += ["--url", url, "--loop", self.loop]
        if role == "server":
            command += ["--ws", target.ws, "--http", target.http, "--lifespan", target.lifespan]
        return command

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": self.uvloop}


class Process:
    """A child on a core of its own that takes orders as lines and answers each with a line of JSON."""

    def __init__(self, command: Sequence[str], core: int, environment: dict[str, str] | None = None) -> None:
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
        )
        self.pid: int = self._child.pid
        os.sched_setaffinity(self.pid, {core % (os.cpu_count() or 1)})
        try:
            self.greeting: str = self._line()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.communicate()

    def tell(self, order: str) -> None:
        """Give an order whose answer is fetched later."""
        cast("IO[str]", self._child.stdin).write(order + "\n")

    def answer(self) -> dict[str, Any]:
        """What the last order's answer is. Raises `Failed` after `ANSWER` seconds."""
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def _line(self) -> str:
        output = cast("IO[str]", self._child.stdout)
        if not select.select([output], [], [], ANSWER)[0]:
            raise Failed(f"{self._child.args!r} gave no answer within {ANSWER:.0f} seconds")
        line = output.readline()
        if not line:
            raise Failed(f"{self._child.args!r} ended")
        return line.strip()

    def cpu(self) -> float:
        """Seconds of CPU it has used."""
        return cpu_seconds(self.pid)

    def rss(self) -> int:
        """Bytes of resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> int:
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208 - one system call, nothing built of it


class Server(Process):
    """A target, running on core 0."""

    def __init__(self, target: Target, platform: Platform, url: str = "", *, send_buffer: int = 0) -> None:
        command = [*platform.command("server", target, url), "--send-buffer", str(send_buffer)]
        super().__init__(command, 0, platform.environment())
        self.target = target
        self.port: int = int(self.greeting)

    def order(self, do: str, **details: Any) -> None:
        self.tell(json.dumps({"do": do, **details}))

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        self.order(do, **details)
        return self.answer()

    def publish(self, count: int, size: int, *, paced: bool = False, rate: float = 0, rooms: int = 1) -> None:
        """Have it publish; to be followed by `answer`."""
        self.order("publish", count=count, size=size, paced=paced, rate=rate, rooms=rooms)

    def open(
        self, count: int, query: Callable[[int], str] = lambda index: "", *, receive_buffer: int = 0
    ) -> list[socket.socket]:
        """Open connections, and wait until the server has let all of them in."""
        before = self.ask("count")["joined"]
        separator = "&" if "?" in self.target.path else "?"

        def path(index: int) -> str:
            return f"{self.target.path}{separator}{query(index)}"

        clients = open_many(self.port, count, path, receive_buffer=receive_buffer).clients
        if self.target.app == "socketio":
            for client in clients:
                client.send(client_frame(b"40"))
        for _ in range(30_000):
            if self.ask("count")["joined"] >= before + count:
                return clients
            select.select([], [], [], 0.002)
        raise Failed(f"{self.target.label} let in only {self.ask('count')['joined'] - before} of {count} connections")


class Publisher(Process):
    """Publishes through Redis, on the load's core."""

    def __init__(self, target: Target, platform: Platform, url: str) -> None:
        super().__init__(platform.command("publisher", target, url), 1, platform.environment())

    def publish(self, count: int, size: int) -> None:
        """Publish as fast as it can; to be followed by `answer`."""
        order = {"do": "publish", "count": count, "size": size, "paced": False, "rate": 0, "rooms": 1}
        self.tell(json.dumps(order))


class Bare(Process):
    """The bare loop of ``send()``, on core 0; in Python where there is no C compiler."""

    def __init__(self, connections: int) -> None:
        program = native.bare_program()
        command = [str(program)] if program else [sys.executable, "-P", str(HERE / "bare.py")]
        super().__init__([*command, str(connections)], 0)
        self.readers = Readers(open_many(int(self.greeting), connections).clients)

    def close(self) -> None:
        if hasattr(self, "readers"):
            self.readers.close()
        super().close()


def frame_size(text: int) -> int:
    """Bytes of the frame with our message whose text has `text` bytes."""
    message = len('{"event":"tick","payload":{"text":""}}') + text
    return message + (2 if message < 126 else 4 if message < 65_536 else 10)
