"""Token buckets that all nodes share, with a local bucket in front so that a flood costs Redis nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from socketspec.backend.protocols import Limits
from socketspec.backend.rate_buckets import TokenBucket
from socketspec.cluster.commands.command import Command, CommandRunner, Script
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.errors import BackendError

__all__ = ("RedisLimits",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

AWAY_SECONDS: Final = 1.0
"""Seconds between two questions to Redis after a failure, until it answers."""

_TAKE: Final = Script("take")


class _Local:
    """What one node knows of a shared bucket. It holds at most what the bucket would if only this node took from it."""

    __slots__ = ("bucket", "owed", "until")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.bucket = TokenBucket(rate, capacity, now)
        self.owed = 0
        """Tokens that were taken here and then refused by Redis."""
        self.until = now
        """When Redis will have a token again, as it said itself."""

    def take(self, now: float) -> float:
        if now < self.until:
            return self.until - now
        if self.owed:
            self.owed -= 1
            return 0.0
        return self.bucket.take(now)

    def refused(self, until: float) -> None:
        self.owed += 1
        self.until = max(self.until, until)

    def is_as_new(self, now: float) -> bool:
        return now >= self.until and self.bucket.is_full(now)


class RedisLimits(Limits):
    """Token buckets in Redis. It is not asked about what this node's own bucket refuses, nor where it refused just now.

    While Redis is away, or does not answer within `patience` seconds, the node's own bucket decides: a limit then holds
    for each node by itself, and is never lifted. Remembers at most `max_keys` buckets. `clock` is monotonic, seconds.
    """

    def __init__(
        self,
        runner: CommandRunner,
        keys: Keys,
        *,
        clock: Callable[[], float] = time.monotonic,
        patience: float = 1.0,
        max_keys: int = 100_000,
        unreadable: Unreadable | None = None,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._clock = clock
        self._patience = patience
        self._max_keys = max_keys
        self._unreadable = unreadable or Unreadable()
        self._locals: OrderedDict[str, _Local] = OrderedDict()  # least recently used first
        self._is_away = False
        self._ask_again_at = 0.0

    async def take(self, key: str, *, rate: float, capacity: float) -> float:
        """Take one token; 0.0, or the seconds until there may be one: later, if other nodes take it first.

        Does not raise while Redis is away.
        """
        now = self._clock()
        name = f"{float(rate)!r}/{float(capacity)!r}/{key}"  # another limit of the same key is another bucket
        local = self._local(name, rate, capacity, now)
        wait = local.take(now)
        if wait > 0 or (self._is_away and now < self._ask_again_at):
            return wait
        self._ask_again_at = now + AWAY_SECONDS  # others do not ask meanwhile: this call finds out whether it is back
        wait = await self._ask(_TAKE.command((self._keys.bucket(name),), rate, capacity))
        if wait > 0:
            local.refused(self._clock() + wait)
        return wait

    async def _ask(self, command: Command) -> float:
        try:
            async with asyncio.timeout(self._patience):
                wait = self._parse(await self._runner.run(command), command.keys[0])
        except (BackendError, TimeoutError) as error:
            self._ask_again_at = self._clock() + AWAY_SECONDS
            if not self._is_away:
                self._is_away = True
                reason = str(error) or f"no answer within {self._patience} s"
                logger.warning("Rate limits hold for this node alone while Redis is away: %s", reason)
            return 0.0  # the local bucket has allowed it
        if self._is_away:
            self._is_away = False
            logger.info("Rate limits are shared between nodes again")
        return wait

    def _parse(self, reply: Any, where: bytes) -> float:
        """The seconds to wait. Raises `BackendError` for a reply that is none."""
        wait: Any = reply
        try:
            if isinstance(reply, list):
                (wait,) = reply
                self._unreadable.value("bucket", where)
            return float(wait)
        except (TypeError, ValueError):
            raise BackendError(f"Redis answered a limit with {reply!r:.200}; is a proxy in between?") from None

    def _local(self, name: str, rate: float, capacity: float, now: float) -> _Local:
        self._drop_old(now)
        local = self._locals.get(name)
        if local is not None:
            self._locals.move_to_end(name)
            return local
        if len(self._locals) >= self._max_keys:
            self._locals.popitem(last=False)
        local = self._locals[name] = _Local(rate, capacity, now)
        return local

    def _drop_old(self, now: float) -> None:
        # A call adds one at most and drops up to two: the table shrinks faster than it can grow.
        for _ in range(2):
            name = next(iter(self._locals), None)
            if name is None or not self._locals[name].is_as_new(now):
                return
            del self._locals[name]
