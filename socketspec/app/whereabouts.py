"""Where an app may be called: in the process and the event loop that its engine runs in, while that runs."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from socketspec.concurrency.elsewhere import ELSEWHERE
from socketspec.runtime.engine import Engine

__all__ = ("FORKED", "engine_here")

FORKED: Final = (
    "This process was forked while the SocketApp was running, and cannot go on as a second node. Fork before the app "
    "starts, start the process with the method 'spawn', or send with a Publisher."
)


def engine_here(engine: Engine | None) -> Engine | None:
    """The app's `engine`; None while there is none, and where its event loop has ended without `stop`.

    Raises `RuntimeError` while another event loop runs it.
    """
    if engine is None:
        return None
    if engine.pid != os.getpid() and engine.loop.is_running():
        raise RuntimeError(FORKED)
    if engine.loop is asyncio.get_running_loop():
        return engine
    if engine.loop.is_running():
        raise RuntimeError(ELSEWHERE)
    return None
