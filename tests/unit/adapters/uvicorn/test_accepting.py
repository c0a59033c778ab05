"""The accept loop on a real socket: when it pauses, what it says, and how much it takes at once."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from socketspec.adapters.open_files import (
    LEAST_RESERVE,
    MOST_RESERVE,
    UNLIMITED,
    connections_for,
    free_files,
    reserve_of,
)
from socketspec.adapters.uvicorn import accepting
from socketspec.adapters.uvicorn.accepting import Acceptor
from socketspec.adapters.uvicorn.gate import Gate


class Poor(socket.socket):
    """A listening socket of a process that may open no more files."""

    error: int | None = None
    tries = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.tries += 1
        if self.error is not None:
            raise OSError(self.error, "Too many open files")
        return super().accept()


class Server:
    """Counts what is accepted."""

    def __init__(self, listener: Poor, **options: Any) -> None:
        self.listener = listener
        self.made: set[asyncio.Protocol] = set()
        self.gate = Gate(1000, spare=10)
        self.gate.count(self.made)
        self.acceptor = Acceptor(listener, self.make, self.gate, **options)

    def make(self) -> asyncio.Protocol:
        protocol = asyncio.Protocol()
        self.made.add(protocol)
        return protocol


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[Server]:
    with Poor() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = Server(listener, **options)
        try:
            yield server
        finally:
            server.acceptor.close()
            await server.acceptor.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


def clients(stack: ExitStack, server: Server, count: int) -> None:
    for _ in range(count):
        stack.enter_context(socket.create_connection(server.listener.getsockname()))


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
async def test_where_accepting_fails_it_pauses_says_so_once_and_goes_on(
    error: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 0.05)
    with ExitStack() as stack:
        async with served() as server:
            server.listener.error = error
            clients(stack, server, 3)
            began = asyncio.get_running_loop().time()
            await until(lambda: server.listener.tries >= 4)
            assert asyncio.get_running_loop().time() - began > 0.1  # three pauses, or nearly
            assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1
            assert "Too many open files" in caplog.text
            assert "Traceback" not in caplog.text
            server.listener.error = None
            await until(lambda: len(server.made) == 3)


class Idle(asyncio.Protocol):
    """A connection that asks for nothing; one that is dropped gives its file back to the listener."""

    is_idle = True

    def __init__(self, listener: Poor) -> None:
        self.listener = listener
        self.is_dropped = False

    def drop(self) -> None:
        self.is_dropped = True
        self.listener.error = None


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_where_there_is_no_file_who_asks_for_nothing_makes_room_at_once(
    error: int, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as stack:
        async with served() as server:
            oldest, second = Idle(server.listener), Idle(server.listener)
            server.gate.came(oldest)
            server.gate.came(second)
            server.listener.error = error
            clients(stack, server, 1)
            await until(lambda: len(server.made) == 1)
            assert (oldest.is_dropped, second.is_dropped) == (True, False)
            assert "Too many open files" in caplog.text


async def test_an_error_that_more_files_would_not_help_against_closes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 0.02)
    with ExitStack() as stack:
        async with served() as server:
            idle = Idle(server.listener)
            server.gate.came(idle)
            server.listener.error = errno.EPERM
            clients(stack, server, 1)
            await until(lambda: server.listener.tries >= 3)
            assert not idle.is_dropped


async def test_no_more_are_accepted_in_a_second_than_there_may_be() -> None:
    with ExitStack() as stack:
        async with served(accepts_per_second=20.0) as server:
            clients(stack, server, 30)
            began = asyncio.get_running_loop().time()
            await until(lambda: len(server.made) >= 20)
            assert len(server.made) < 30
            await until(lambda: len(server.made) == 30)
            assert asyncio.get_running_loop().time() - began > 0.4


async def test_at_the_ceiling_it_waits_until_somebody_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "PAUSE", 0.02)
    with ExitStack() as stack:
        async with served() as server:
            server.gate.ceiling = 2
            clients(stack, server, 3)
            await until(lambda: len(server.made) == 2)
            await asyncio.sleep(0.1)
            assert len(server.made) == 2
            server.made.pop()
            await until(lambda: len(server.made) == 2)


async def test_a_silent_tls_handshake_makes_room_for_the_next_connection() -> None:
    with ExitStack() as stack:
        async with served(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as server:
            server.gate.ceiling = 2
            clients(stack, server, 1)
            first = stack.pop_all()
            clients(stack, server, 4)
            await until(lambda: server.gate.dropped == 3)
            first.close()


async def test_after_the_close_nobody_is_accepted_and_handshakes_are_broken_off() -> None:
    async with served(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as server:
        with socket.create_connection(server.listener.getsockname()) as silent:
            silent.setblocking(False)
            await until(lambda: server.listener.tries >= 2)
            server.acceptor.close()
            server.acceptor.close()
            await server.acceptor.wait_closed()
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(silent, 1), 5) == b""


@pytest.mark.parametrize("files", [0, 1, 2, 16, 50, 64, 1000, 4096, 65_536, UNLIMITED])
def test_of_any_number_of_files_some_are_kept_for_other_things_than_clients(files: int) -> None:
    reserve, connections = reserve_of(files), connections_for(files)
    assert connections >= 1
    assert reserve + connections == max(files, 1) or files == 0
    assert reserve <= MOST_RESERVE
    if files >= 2 * LEAST_RESERVE:
        assert reserve >= LEAST_RESERVE


def test_an_open_file_is_one_less() -> None:
    before = free_files()
    with socket.socket():
        assert free_files() == before - 1 or before == UNLIMITED
