"""Calls the hooks about a connection: one after the other, none stopped by another's failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.connection.connection import Connection
from socketspec.connection.gone import after_the_end, is_disconnect
from socketspec.declaration.registry import Hook
from socketspec.declaration.sending import Contracts
from socketspec.errors import BackendError
from socketspec.telemetry.context import Requests, current_request, log_context
from socketspec.telemetry.failure_watch import FailureWatch
from socketspec.text import get_logger

__all__ = ("HOOK_TIMEOUT", "Hooks")

logger: logging.Logger = get_logger("socketspec")

HOOK_TIMEOUT: Final = 30.0
"""Seconds a hook that cleans up after a connection may take."""


class Hooks:
    """Runs what the app registered with `on_connect`, `on_error` and their like."""

    def __init__(self, contracts: Contracts, requests: Requests, failures: FailureWatch) -> None:
        self._contracts = contracts
        self._requests = requests
        self._failures = failures

    async def failed(self, hooks: Sequence[Hook], conn: Connection, error: Exception) -> None:
        """Call the `on_error` hooks, as `run` does, for what a handler or another hook raised."""
        if not isinstance(error, BackendError):  # nothing is wrong with the code then
            self._failures.note(error)
        await self.run(hooks, conn, error)

    async def run(self, hooks: Sequence[Hook], conn: Connection, *arguments: Any) -> None:
        """Call hooks one after the other; one that fails is logged and does not stop the others. That a connection has
        gone is no failure.
        """
        if not hooks:
            return
        with self.log_context(conn), self._contracts.handling(None):  # contracts bind handlers: hooks may send anything
            for hook in hooks:
                try:
                    await unless_cancelled(hook(conn, *arguments))
                except BackendError as error:
                    logger.error("The hook %s failed: %s", getattr(hook, "__qualname__", hook), error)
                except Exception as error:
                    if is_disconnect(error):
                        continue
                    logger.exception("The hook %s failed", getattr(hook, "__qualname__", hook))
                    self._failures.note(error)

    async def run_final(self, hooks: Sequence[Hook], conn: Connection, *arguments: Any) -> None:
        """Like `run`, after the connection's end, and for at most `HOOK_TIMEOUT` seconds."""
        with self.log_context(conn), after_the_end():
            try:
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await self.run(hooks, conn, *arguments)
            except TimeoutError:
                logger.error("A hook took longer than %.0f s and was cancelled", HOOK_TIMEOUT)

    async def release(self, conn: Connection) -> None:
        """Close what the dependencies of an ended connection kept for it, once its handlers are through with that.

        Those have `HOOK_TIMEOUT` seconds, and so has the clean-up.
        """
        resources = conn.resources
        if resources is None:
            return
        with self.log_context(conn):
            try:
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await conn.in_flight.below(1)
            except TimeoutError:
                logger.error("A handler still runs %.0f s after its connection has ended", HOOK_TIMEOUT)
            try:
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await unless_cancelled(resources.close())
            except TimeoutError:
                logger.error("A clean-up of the connection's dependencies took longer than %.0f s", HOOK_TIMEOUT)
            except Exception as error:
                logger.exception("A clean-up of the connection's dependencies failed")
                self._failures.note(error)

    def log_context(self, conn: Connection) -> AbstractContextManager[None]:
        """Log records made inside carry the connection's id, and the request's if one of its requests is the cause."""
        found = current_request.get()
        if found is not None and found[0] == conn.id:
            return nullcontext()
        return log_context(conn.id, self._requests)
