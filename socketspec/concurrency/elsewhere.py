"""What code is told that calls a running app from outside its event loop."""

from __future__ import annotations

from typing import Final

__all__ = ("ELSEWHERE",)

ELSEWHERE: Final = (
    "This SocketApp runs in another event loop. From `def` code and other threads call socket.sync, as in "
    "socket.sync.rooms.broadcast(…); other processes, such as a Celery worker, send with a Publisher. A coroutine gets "
    "there with asyncio.run_coroutine_threadsafe(coroutine, loop), where loop is the app's."
)
