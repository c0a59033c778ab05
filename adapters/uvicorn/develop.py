"""Serves an application to whoever writes it: what ``socketspec dev`` does.

A process watches the files, and another one serves, with everything that `serve` has; it ends at once and is started
anew when a file has changed. Both share the listening socket, so that clients which come meanwhile wait.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from uvicorn.supervisors.basereload import BaseReload

from socketspec.adapters.open_files import raise_limit
from socketspec.adapters.uvicorn.serve import (
    BACKLOG,
    Serving,
    WorkerServer,
    listening_socket,
    url_of,
    uvicorn_config,
)

__all__ = ("Developed", "develop")

logger: logging.Logger = logging.getLogger("uvicorn.error")

GRACE: Final = 1.0
"""Seconds that handlers and requests have to end when it stops or starts anew."""
MOST_FILES: Final = 20_000
"""Files that are watched; of more, the rest is not."""
_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})


Developed = tuple[Any, Callable[[str], None]]
"""The application that is served, and what is called with the server's URL when it serves."""


def develop(serving: Serving, load: Callable[[], Developed | None], folders: Sequence[Path]) -> None:
    """Serve what `load` returns until the process is told to stop, anew whenever a ``.py`` file of `folders` changes.

    `load` is called in the serving process, so it is pickled; None: it has said why there is nothing to serve, and a
    change is waited for. Raises `OSError` where it cannot listen. Logging is left as it is.
    """
    raise_limit()
    listener = listening_socket(serving.host, serving.port, BACKLOG)
    _Reload(uvicorn_config(serving), partial(_serve, serving, load), [listener], folders).run()


class _Reload(BaseReload):
    """Starts the serving process anew whenever a file has changed, come or gone."""

    def __init__(
        self, config: uvicorn.Config, target: Any, sockets: list[socket.socket], folders: Sequence[Path]
    ) -> None:
        super().__init__(config, target, sockets)
        self.reloader_name = "a look at the files"
        self._folders = folders
        self._seen = dict(_files(folders))  # before the process starts: what changes while it does counts

    def should_restart(self) -> list[Path] | None:
        """The files that changed since the last look; None: none did."""
        self.pause()
        now = dict(_files(self._folders))
        changed = [path for path in {**self._seen, **now} if self._seen.get(path) != now.get(path)]
        self._seen = now
        return changed[:3] or None


def _files(folders: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """Python's files with the time of their last change; not those of environments, or in hidden folders."""
    count = 0
    for folder in folders:
        for here, below, names in os.walk(folder):
            below[:] = [name for name in below if name not in _SKIPPED and not name.startswith(".")]
            if "pyvenv.cfg" in names:
                below.clear()
                continue
            for name in names:
                if not name.endswith(".py"):
                    continue
                count += 1
                if count > MOST_FILES:
                    return
                path = Path(here, name)
                try:
                    yield path, path.stat().st_mtime_ns
                except OSError:  # it has gone meanwhile
                    continue


class _Server(WorkerServer):
    """Says where everything is when it serves, and ends at once."""

    drain_within = (0.0, GRACE)

    def __init__(self, config: uvicorn.Config, greet: Callable[[], None]) -> None:
        super().__init__(config)
        self._greet = greet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._greet()


def _serve(serving: Serving, load: Callable[[], Developed | None], sockets: list[socket.socket]) -> None:
    """In the serving process: load the application and serve it."""
    _end_with_the_parent()
    developed = load()
    if developed is None:
        return
    application, greet = developed
    config = uvicorn_config(serving)
    config.app = cast("Any", application)
    config.timeout_graceful_shutdown = round(GRACE)
    server = _Server(config, partial(greet, url_of(serving, sockets[0])))
    try:
        server.run(sockets=sockets)
    except SystemExit:  # how uvicorn says that the application's start failed; the log has the reason
        return


def _end_with_the_parent() -> None:
    """Stop when the watching process has gone, in whatever way."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watches the parent process", daemon=True).start()
