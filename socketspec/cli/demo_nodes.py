"""The nodes of ``socketspec demo --nodes N``: processes that are started, watched and ended together.

A node is this module run as ``python -m socketspec.cli.demo_nodes FD``: it serves the demo on the listening socket that
it inherits, until it is told to end or its parent is gone.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, Self

from socketspec.cli.output import FAILED, fail

__all__ = ("DemoNodes", "address_of")

START_TIMEOUT: Final = 45.0
POLL: Final = 0.1
ENDING: Final = 5.0
"""Seconds beyond the grace that a node gets before it is killed."""


def address_of(host: str, port: int) -> str:
    """``host:port``, for people and URLs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class DemoNodes:
    """One node process for each of `listeners`, on the backend `url`. They end with this context, or this process."""

    def __init__(self, host: str, listeners: Sequence[socket.socket], url: str, *, grace: int) -> None:
        self._host = host
        self._ports = [listener.getsockname()[1] for listener in listeners]
        self._grace = grace
        self.addresses: list[str] = [f"http://{address_of(host, port)}" for port in self._ports]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._reported: set[int] = set()
        self._handler: Any = None
        environment = {
            **os.environ,
            "SOCKETSPEC_BACKEND": url,
            "SOCKETSPEC_DEMO_PORTS": ",".join(map(str, self._ports)),
        }
        try:
            for listener in listeners:
                self._processes.append(_start(listener, grace, environment))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        # As Ctrl-C: the nodes end in order, and what they share after them.
        self._handler = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._handler)
        self._end()

    def wait_until_ready(self) -> bool:
        """Return when every node answers that it is; False, and it has been said why, where one does not."""
        deadline = time.monotonic() + START_TIMEOUT
        waiting = list(range(len(self._processes)))
        while waiting:
            if self._report_dead():
                return False
            if time.monotonic() > deadline:
                fail(f"{self._name(waiting[0])} was not ready within {START_TIMEOUT:g} s.")
                return False
            waiting = [index for index in waiting if not self._is_ready(self._ports[index])]
            time.sleep(POLL)
        return True

    def watch(self) -> int:
        """Say which node has died, until all have; then return the exit status."""
        while True:
            if self._report_dead() and len(self._reported) == len(self._processes):
                return fail("No node is left.", FAILED)
            time.sleep(POLL)

    def _report_dead(self) -> bool:
        """Say which nodes have died since it was asked last; whether there were any."""
        dead = [
            (index, status)
            for index, process in enumerate(self._processes)
            if index not in self._reported and (status := process.poll()) is not None
        ]
        for index, status in dead:
            self._reported.add(index)
            left = len(self._processes) - len(self._reported)
            others = f" The other {left} go on." if left > 1 else " The other one goes on." if left else ""
            fail(f"{self._name(index)} has died ({_how(status)}).{others}")
        return bool(dead)

    def _name(self, index: int) -> str:
        return f"Node {index + 1} ({self.addresses[index]}, pid {self._processes[index].pid})"

    def _is_ready(self, port: int) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - compared, not bound
        connection = http.client.HTTPConnection(host, port, timeout=2.0)
        try:
            connection.request("GET", "/socket-health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _end(self) -> None:
        """Ask all to end, wait, and kill those that do not. A second Ctrl-C kills at once."""
        try:
            for process in self._processes:
                if process.poll() is None:
                    process.terminate()
            deadline = time.monotonic() + self._grace + ENDING
            for process in self._processes:
                process.wait(max(deadline - time.monotonic(), 0.1))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _start(listener: socket.socket, grace: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # In a session of its own, so that Ctrl-C reaches the parent alone. Its input is a pipe that ends when we do.
    return subprocess.Popen(  # noqa: S603 - this very program
        [sys.executable, "-m", "socketspec.cli.demo_nodes", str(listener.fileno()), str(grace)],
        env=environment,
        pass_fds=[listener.fileno()],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _serve(fd: int, grace: int) -> None:
    import uvicorn

    from socketspec.cli.demo.app import app

    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    listener = socket.socket(fileno=fd)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace))
    server.run(sockets=[listener])


def _end_with_parent() -> None:
    # Not sys.stdin: its lock would be held by this thread when the interpreter ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
