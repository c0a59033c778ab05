"""Runs an ASGI application with everything that SocketSpec adds to uvicorn: what ``socketspec serve`` does.

That is the fast WebSocket protocol, the guard before it, a log without secrets, and a stop that drains first. It may be
any ASGI application, with or without a `SocketApp` mounted on it.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Literal, NamedTuple, cast

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.server import ServerState
from uvicorn.supervisors import Multiprocess, multiprocess

from socketspec.adapters.open_files import connections_for, free_files, raise_limit, reserve_of
from socketspec.adapters.uvicorn.accepting import Acceptor
from socketspec.adapters.uvicorn.gate import Gate, GatedState
from socketspec.adapters.uvicorn.per_address import PerAddress
from socketspec.adapters.uvicorn.redact import RedactQuery
from socketspec.adapters.uvicorn.request_guard import GuardedH11Protocol
from socketspec.runtime import engines
from socketspec.text import OneLine

__all__ = (
    "DrainingServer",
    "Serving",
    "WorkerServer",
    "listening_socket",
    "serve",
    "set_up_logging",
    "url_of",
    "uvicorn_config",
)

logger: logging.Logger = logging.getLogger("uvicorn.error")

BACKLOG: Final = 4096
"""Connections that the kernel may keep until they are accepted."""
USER_TIMEOUT: Final = 15_000
"""Milliseconds that a peer may acknowledge nothing of what is sent to it."""
SIGNAL_CHECK: Final = 0.1
"""Seconds between looks whether a second signal has come during the drain."""
LAST_GRACE: Final = 2.0
"""Seconds that threads and tasks which do not end by themselves have, once everything else has ended."""
OTHERS_GRACE: Final = 10
"""Seconds that requests, and connections of other applications, have to end after the drain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How to serve an application; the defaults are those of ``socketspec serve``."""

    app: str
    """``module:attribute``."""
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    deflate: bool = False
    """Whether messages are compressed for clients that offer it."""
    root_path: str = ""
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = True
    proxy_headers: bool = True
    forwarded_allow_ips: str | None = None
    """Addresses of proxies whose ``X-Forwarded-*`` headers are believed; None: 127.0.0.1."""
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    max_connections: int | None = None
    """WebSocket connections of one process; None: as many as its open files allow, with a reserve for all else."""
    max_connections_per_address: int | None = None
    """WebSocket connections that clients of one address (IPv6: /64) may have with one process; None: no limit."""
    accepts_per_second: float | None = None
    """Connections that one process accepts in a second; None: as they come."""


class Limits(NamedTuple):
    """What one server process may use up; see `Serving`."""

    max_connections: int | None = None
    accepts_per_second: float | None = None
    max_connections_per_address: int | None = None


BELIEVES_ALL: Final = (
    "--forwarded-allow-ips '*' takes a client's word for its address: --max-connections-per-address can be got round "
    "where a proxy adds to X-Forwarded-For instead of replacing it: name the addresses of your proxies."
)


class DrainingServer(uvicorn.Server):
    """A uvicorn that lets every `SocketApp` drain before it stops listening.

    Meanwhile the health page answers that the node is not ready. A second signal ends everything at once. A listening
    socket that it is given is accepted on by an `Acceptor`, with the limits of `config`.
    """

    drain_within: tuple[float | None, float | None] = (None, None)
    """Seconds of the drain's window, and of grace after it; None: as each app says."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        files = free_files()
        allowed = connections_for(files)
        limits = config.limits if isinstance(config, _Config) else Limits()
        most = min(allowed, limits.max_connections or allowed)
        if limits.max_connections and most < limits.max_connections:
            logger.warning(
                "Open files suffice for %d connections, not for %d: allow more (ulimit -n, LimitNOFILE)",
                most,
                limits.max_connections,
            )
        self.gate: Gate = Gate(most, spare=max(1, reserve_of(files) // 2))
        if isinstance(config, _Config):
            config.gate = self.gate
        self._accepts_per_second = limits.accepts_per_second
        self.server_state: ServerState = GatedState(self.gate)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept."""
        if sockets is None:
            await super().startup()
            return
        await super().startup(sockets=[])
        engines.gated_by(self.gate)
        if not self.should_exit:
            _keep_what_is_there()
            self.servers.extend(cast("Any", [self._acceptor(listener) for listener in sockets]))  # has what it calls

    def _acceptor(self, listener: socket.socket) -> Acceptor:
        return Acceptor(
            listener,
            self._protocol,
            self.gate,
            tls=self.config.ssl,
            handshake_timeout=GuardedH11Protocol.handshake_timeout,
            accepts_per_second=self._accepts_per_second,
        )

    def _protocol(self) -> asyncio.Protocol:
        make = cast("type[GuardedH11Protocol]", self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signals that ask the process to end."""
        # uvicorn's own method would raise the signal again at the end. Not so here: an orderly stop is no failure.
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then do what uvicorn does. A second signal breaks off either."""
        ending = asyncio.create_task(self._end(sockets), name="drain and shut down")
        while not ending.done() and not self.force_exit:
            await asyncio.wait((ending,), timeout=SIGNAL_CHECK)
        if not ending.done():
            ending.cancel()
            await asyncio.wait((ending,), timeout=LAST_GRACE)
            self._give_up()
        elif ending.exception() is not None:
            logger.error("Shutting down failed", exc_info=ending.exception())
        _exit_process_soon()

    async def _end(self, sockets: list[socket.socket] | None) -> None:
        try:
            await engines.drain(*self.drain_within)
        except Exception:
            logger.exception("Draining failed")
        await super().shutdown(sockets)
        engines.gated_by(None)

    def _give_up(self) -> None:
        logger.warning("Told twice to stop: ending at once")
        # What is cut off now is cancelled when the event loop ends, and would say so with tracebacks of its own.
        logger.setLevel(logging.CRITICAL)
        for server in self.servers:
            server.close()


def _keep_what_is_there() -> None:
    """Let the garbage collector look only at what comes from now on.

    A client that sends many small objects makes it run again and again. Each time it would go through everything that
    was imported as well, which takes a tenth of a second, in which nobody is served.
    """
    gc.collect()
    gc.freeze()


def _exit_process_soon() -> None:
    """End the process after `LAST_GRACE` seconds: Python would wait for threads and tasks that never end."""

    def end() -> None:
        logger.critical("Ending the process, although something of the application does not end")
        logging.shutdown()
        os._exit(0)

    watchdog = threading.Timer(LAST_GRACE, end)
    watchdog.daemon = True  # if everything ends by itself, so does this thread
    watchdog.start()


class WorkerServer(DrainingServer):
    """One of several processes. At Ctrl-C it gets a SIGINT directly, and then a SIGTERM from the supervisor."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT or not self.should_exit:
            super().handle_exit(sig, frame)


class _Worker(multiprocess.Process):
    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = WorkerServer(self.config)
        return self._server


class _Supervisor(Multiprocess):
    """Starts the workers, and hands signals on."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)

    def _signalled(self, sig: int, frame: FrameType | None) -> None:
        # Once uvicorn waits for the workers to end, it no longer looks at its queue of signals.
        if not self.should_exit.is_set():
            self.signal_queue.append(sig)
            return
        for worker in self.processes:
            if worker.pid is not None and worker.exitcode is None:
                os.kill(worker.pid, signal.SIGINT)


@contextmanager
def _draining_workers() -> Iterator[None]:
    """Let uvicorn's supervisor make `_Worker`s: it looks the class up in its module, and offers no other way."""
    original = multiprocess.Process
    multiprocess.Process = _Worker  # type: ignore[misc] # a class, taken for a type by the checker
    try:
        yield
    finally:
        multiprocess.Process = original  # type: ignore[misc] # as above


def set_up_logging(serving: Serving) -> None:
    """Make the whole process log as `serving` says, warnings included.

    To be called before the application is imported: what that logs is then formatted, too, and if it sets up logging
    by itself, its set-up comes later and so prevails.
    """
    uvicorn_config(serving).configure_logging()


def serve(serving: Serving) -> bool:
    """Serve until the process is told to stop. Returns whether it had started. Raises `OSError` where it cannot listen.

    Logging is left as it is: see `set_up_logging`.
    """
    raise_limit()  # workers inherit it
    listener = listening_socket(serving.host, serving.port, BACKLOG)
    try:
        config = uvicorn_config(serving)
        _wake_loggers()
        logger.info("Serving %s on %s (Ctrl-C to drain and stop)", serving.app, url_of(serving, listener))
        if serving.proxy_headers and serving.max_connections_per_address is not None and _believes_all(serving):
            logger.warning(BELIEVES_ALL)
        if serving.workers > 1:
            with _draining_workers():
                supervisor = _Supervisor(config, sockets=[listener])
                supervisor.run()
            return all(worker.exitcode != STARTUP_FAILURE for worker in supervisor.processes)
        server = DrainingServer(config)
        try:
            server.run(sockets=[listener])
        except SystemExit:  # how uvicorn says that the application's start failed
            return False
        return server.started
    finally:
        listener.close()


def listening_socket(host: str, port: int, backlog: int) -> socket.socket:
    """A listening TCP socket; ``"::"`` listens on IPv4 as well. Raises `OSError` where the address cannot be had.

    Connections inherit `USER_TIMEOUT`, where the platform has it: a peer that acknowledges nothing, or lets no byte be
    sent, is dropped after so many milliseconds, whatever waits for it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_dual = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((host, port), family=family, backlog=backlog, dualstack_ipv6=is_dual)
    option: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None:
        listener.setsockopt(socket.IPPROTO_TCP, option, USER_TIMEOUT)
    return listener


class _Config(uvicorn.Config):
    """Captures warnings when it sets up logging. In workers, uvicorn does that before they import the application."""

    limits: Limits = Limits()
    gate: Gate | None = None
    """That of the server with this configuration."""

    def configure_logging(self) -> None:
        super().configure_logging()
        if self.log_config is not None:
            logging.captureWarnings(True)

    def load(self) -> None:
        super().load()
        _wake_loggers()
        most = self.limits.max_connections_per_address
        if most is not None:
            outermost: Any = self.loaded_app
            if isinstance(outermost, ProxyHeadersMiddleware):  # it finds out the address
                outermost.app = cast("Any", PerAddress(outermost.app, most, self._refused))
            else:
                self.loaded_app = cast("Any", PerAddress(outermost, most, self._refused))

    def _refused(self) -> None:
        if self.gate is not None:
            self.gate.address_refused += 1


def _wake_loggers() -> None:
    """Enable our loggers again: where the application sets up logging, all existing loggers are disabled by default."""
    for name, found in logging.root.manager.loggerDict.items():
        if isinstance(found, logging.Logger) and name.partition(".")[0] in ("socketspec", "uvicorn"):
            found.disabled = False


def uvicorn_config(serving: Serving) -> uvicorn.Config:
    """uvicorn's configuration for `serving`."""
    protocol = "DeflateWebSocketProtocol" if serving.deflate else "WebSocketProtocol"
    config = _Config(
        serving.app,
        host=serving.host,
        port=serving.port,
        workers=serving.workers,
        ws=f"socketspec.adapters.uvicorn:{protocol}",
        http=GuardedH11Protocol,
        backlog=BACKLOG,
        root_path=serving.root_path,
        log_level=serving.log_level,
        log_config=None,
        access_log=serving.access_log,
        proxy_headers=serving.proxy_headers,
        forwarded_allow_ips=serving.forwarded_allow_ips,
        ssl_certfile=serving.ssl_certfile,
        ssl_keyfile=serving.ssl_keyfile,
        timeout_graceful_shutdown=OTHERS_GRACE,
    )
    config.log_config = _logging(serving)
    config.limits = Limits(serving.max_connections, serving.accepts_per_second, serving.max_connections_per_address)
    return config


def _logging(serving: Serving) -> dict[str, Any]:
    """uvicorn's handlers for everything that logs, with a filter that removes queries, where tokens are."""
    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"redact": {"()": RedactQuery}, "one_line": {"()": OneLine}}
    for handler in config["handlers"].values():
        # The first one writes out tracebacks that somebody else has a say in, the second cleans what is written.
        handler["filters"] = ["redact"] if serving.log_format == "json" else ["one_line", "redact"]
    if serving.log_format == "json":
        config["formatters"] = {name: {"()": "socketspec.logs.JsonFormatter"} for name in config["formatters"]}
    config["root"] = {"handlers": ["default"], "level": serving.log_level.upper()}
    # Our loggers have a handler of their own: an application that sets up the root logger anew does not silence them.
    config["loggers"]["socketspec"] = {**config["root"], "propagate": False}
    return config


def _believes_all(serving: Serving) -> bool:
    allowed = serving.forwarded_allow_ips
    trusted = os.environ.get("FORWARDED_ALLOW_IPS", "") if allowed is None else allowed  # as uvicorn has it
    return "*" in (part.strip() for part in trusted.split(","))


def url_of(serving: Serving, listener: socket.socket) -> str:
    """The address that `listener` listens on, as a URL."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if serving.ssl_certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
