"""Keeps this node's lease of each namespace, and notices when another node's has ended."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Final

from socketspec.cluster.commands.command import CommandRunner
from socketspec.cluster.presence.commands import PresenceCommands
from socketspec.cluster.presence.dead_nodes import DeadNodes
from socketspec.cluster.presence.repair import Repair
from socketspec.cluster.presence.space import Space
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError

__all__ = ("Leases",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

RETRY: Final = 0.5
"""Seconds between tries to renew a lease, at most."""
SOON: Final = 0.02
"""Seconds after the end of another node's lease at which we look."""


class Leases:
    """Renews leases. After each renewal it has the members of dead nodes removed, and what is unchecked repaired.

    Whoever waits for a lease waits `patience` seconds at most.
    """

    def __init__(
        self,
        runner: CommandRunner,
        commands: PresenceCommands,
        tasks: Tasks,
        dead_nodes: DeadNodes,
        repair: Repair,
        *,
        patience: float,
    ) -> None:
        self._runner = runner
        self._commands = commands
        self._tasks = tasks
        self._dead_nodes = dead_nodes
        self._repair = repair
        self._patience = patience
        self._lease = commands.lease
        # Each topic is compared with Redis three times while its keys last.
        self._period = commands.ttl / 3
        self._steps = math.ceil(commands.ttl / commands.lease)

    async def begin(self, space: Space) -> None:
        """Take the lease, and keep it until ``space.renewing`` is cancelled. Raises `BackendError`."""
        await self._renew(space)
        space.next_round = space.lease.clock() + self._period
        space.renewing = self._tasks.spawn(self._keep(space), name=f"presence of {space.name!r}")

    async def wait_for(self, space: Space, patience: float | None = None) -> None:
        """Return once the lease stands. After it ended others may have removed our members, so it is renewed first.

        Raises `BackendError` where Redis does not renew it, within `patience` seconds if that is given.
        """
        if space.lease.stands:
            return
        space.renewed.clear()
        space.renew_now.set()
        try:
            async with asyncio.timeout(self._patience if patience is None else patience):
                await space.renewed.wait()
        except TimeoutError:
            raise BackendError(
                f"Nobody can enter: this node's lease in {space.name!r} has ended, and Redis does not renew it."
            ) from None

    async def _keep(self, space: Space) -> None:
        """Renew the lease four times while it lasts, and as soon as another node's may have ended."""
        wait = self._lease / 4
        while True:
            try:
                async with asyncio.timeout(wait):
                    await space.renew_now.wait()
            except TimeoutError:
                pass
            space.renew_now.clear()
            try:
                soonest, ended = await self._renew(space)
            except Exception as error:
                _say_not_renewed(space, error)
                wait = self._lease / 8
                await asyncio.sleep(min(RETRY, wait))  # even where somebody wants it renewed now
                continue
            now, judges_from = space.lease.clock(), space.lease.judges_from
            wait = min(self._lease / 4, soonest + SOON)
            if now >= judges_from:
                for node in ended:
                    self._dead_nodes.remove(space, node)
            elif ended:
                wait = min(wait, judges_from - now)
            space.no_longer_uncertain()
            space.unchecked.update(space.next_turns(now, self._period, self._steps))
            self._repair.soon(space)

    async def _renew(self, space: Space) -> tuple[float, list[str]]:
        """Renew the lease, or begin one; seconds until the next lease of any node ends, and nodes whose has ended."""
        asked = space.lease.clock()  # before asking, so that the lease ends here no later than in Redis
        is_unbroken = space.is_begun and not space.is_troubled
        reply = await self._runner.run(self._commands.renew(space.name, space.node, begin=not space.is_begun))
        if reply[0] == 0:
            is_unbroken = False
            was_claimed = reply[1] == 1
            _say_lost(space, was_claimed=was_claimed)
            space.begin_again(was_claimed=was_claimed)
            reply = await self._runner.run(self._commands.renew(space.name, space.node, begin=True))
        _, soonest, server, server_ms, *ended = reply
        if space.is_troubled or (space.lease.server and server != space.lease.server):
            space.distrust()  # a server that took over may lack the newest writes of the old one
        space.lease.renewed(asked, server, server_ms, is_unbroken=is_unbroken)
        space.is_begun, space.is_troubled, space.over_since = True, False, None
        space.renewed.set()
        return soonest / 1000, await self._names(space, ended)

    async def _names(self, space: Space, ended: Sequence[bytes]) -> list[str]:
        """The names of nodes. What can be none is removed, as its place among the first is another's."""
        names: list[str] = []
        for name in ended:
            try:
                names.append(name.decode())
            except UnicodeDecodeError:
                self._commands.unreadable.value("lease", self._commands.leases_key(space.name), name)
                await self._runner.run(self._commands.forget_lease(space.name, name))
        return names


def _say_lost(space: Space, *, was_claimed: bool) -> None:
    if was_claimed:
        logger.warning(
            "Another node took this one for dead in %r: it did not renew its lease in time. "
            "Its members are entered anew, as far as there is still a place for them",
            space.name,
        )
    else:
        logger.warning("The lease of %r was lost; this node's members are entered anew", space.name)


def _say_not_renewed(space: Space, error: Exception) -> None:
    if not space.is_troubled:
        unforeseen = None if isinstance(error, BackendError) else error
        logger.warning("The lease of %r could not be renewed: %s", space.name, error, exc_info=unforeseen)
    space.is_troubled = True
