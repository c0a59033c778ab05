"""An event loop whose clock jumps from one timer to the next: what takes minutes in life takes no time in a test."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec

__all__ = ("Listening", "in_virtual_time", "listen", "now")

P = ParamSpec("P")

Listening = Callable[[asyncio.Protocol], asyncio.Transport]
"""A server in memory: takes a connection's protocol, and gives the transport. Raises `OSError` to refuse."""


TURN: Final = 1e-9
"""Seconds that a turn of the loop takes, as it does in life: who spins until time has gone by comes to an end."""


class _Jumping(selectors.DefaultSelector):
    """Where the loop would wait, time jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            assert timeout is not None, "everything waits for something that never comes"
            self.now += max(timeout, TURN)
        return events


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)
        self.listening: dict[tuple[str, int], Listening] = {}

    def time(self) -> float:
        return self._jumping.now

    async def create_connection(self, *args: Any, **_options: Any) -> Any:
        """Connect to what listens in memory: there is no network here."""
        make, host, port = args
        if (host, port) not in self.listening:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        protocol = make()
        transport = self.listening[host, port](protocol)
        protocol.connection_made(transport)
        return transport, protocol


def in_virtual_time(main: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a plain test of `main`: it runs in such a loop, which reports failing callbacks as errors."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        unhandled: list[dict[str, object]] = []
        with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
            runner.get_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
            runner.run(main(*args, **kwargs))
        assert not unhandled, f"the event loop met exceptions that nobody handled: {unhandled}"

    return run


def now() -> float:
    """Seconds of virtual time."""
    return asyncio.get_running_loop().time()


def listen(host: str, port: int, listening: Listening) -> None:
    """Have the running (virtual) loop connect to `listening` at this address."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _VirtualLoop)
    loop.listening[host, port] = listening
