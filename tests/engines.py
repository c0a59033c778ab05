"""The one door through which tests outside `runtime` look into an app at work, or act as its adapter.

What they check is often what no user sees: a counter, a topic that is left, a task that has not ended. Each of these
belongs to a part of the engine, and is the same part that adapters read. The product hands the engine to nobody but
adapters, the app and the test client; `test_house` holds the tests to it, too: those of `runtime`, which are about the
engine, and those of `app`, whose attribute it is, name it themselves; all others come through here.
"""

from __future__ import annotations

from socketspec import SocketApp
from socketspec.runtime.engine import Engine

__all__ = ("Engine", "engine_of", "is_running", "running")


async def running(app: SocketApp) -> Engine:
    """The engine of `app`, started where it is not yet."""
    return await app.ensure_started()


def engine_of(app: SocketApp) -> Engine:
    """The engine of an app that is at work."""
    assert app.engine is not None
    return app.engine


def is_running(app: SocketApp) -> bool:
    """Whether the app has an engine."""
    return app.engine is not None
