"""Which channels this node hears, on which server, and whether it does: one `Lane` for each primary.

A channel is wanted from `subscribe` to `unsubscribe`; it is placed on the lane of the primary that `Topology` names,
and stands once that server has confirmed it. What loses its place (a slot that moved, a server that is gone) waits
until the servers have been looked up again, and is placed anew. A lane brings back by itself what stood on a lost link.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from socketspec.cluster.commands.command import PASSING_REFUSALS
from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.pubsub.link import Message
from socketspec.cluster.pubsub.subscriber import STABLE, Lane, Probing
from socketspec.cluster.servers.backoff import Backoff
from socketspec.cluster.servers.topology import ReplicaError, Topology
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.telemetry.counters import SECONDS, Histogram

__all__ = ("Subscriptions",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

OVERDUE: Final = 1.0
"""Seconds a wanted channel may be without its subscription before health says so."""
LOOK_EVERY: float = 4.0
"""Seconds after which the servers are looked up even though nothing seems wrong: a primary that was replaced behind a
partition still serves those who can reach it, and a replica whoever is connected to it, probes included."""
SWEEP: Final = 1000
"""Channels whose place is checked before the event loop gets its turn."""

_TRANSIENT: Final = (*PASSING_REFUSALS, "BUSY")


class _Channel:
    """A wanted channel."""

    __slots__ = ("claimed", "lane", "stood", "waiters")

    def __init__(self) -> None:
        self.lane: Lane | None = None
        self.stood = False
        """Whether it was confirmed before: then to stand again is to be restored."""
        self.claimed = False
        """Whether some caller was told that it stands, and so relies on it."""
        self.waiters: set[asyncio.Future[None]] = set()


class Subscriptions:
    """All sharded subscriptions of one node. Belongs to one event loop.

    `receive` gets what one read brought, in order; while what it returns is pending, that connection is not read.
    `probe` publishes a nonce to a channel the normal way, `probe_channel` names that channel by its hash tag.
    `restored` gets channels that stand again after they did not: what was published meanwhile was missed.
    """

    def __init__(
        self,
        topology: Topology,
        tasks: Tasks,
        *,
        receive: Callable[[Sequence[Message]], Awaitable[None] | None],
        probe: Callable[[bytes, bytes], Awaitable[Any]],
        probe_channel: Callable[[str], bytes],
        restored: Callable[[Sequence[bytes]], None],
        options: RedisOptions,
    ) -> None:
        self.losses: int = 0
        """How often a channel that stood was lost."""
        self.received: Callable[[Sequence[Message]], Awaitable[None] | None] = receive
        self._topology = topology
        self._tasks = tasks
        self.lag: Histogram = Histogram(SECONDS)
        """Seconds from publishing to hearing it, as the probes of each connection measure it."""
        self._probing = Probing(probe, probe_channel, self.lag)
        self._restored = restored
        self._options = options
        self._own: set[asyncio.Task[Any]] = set()
        self._is_running = False
        self._channels: dict[bytes, _Channel] = {}
        self._lanes: dict[Address, tuple[Lane, asyncio.Task[Any]]] = {}
        self._unplaced: dict[bytes, None] = {}
        self._waiting: OrderedDict[bytes, float] = OrderedDict()  # what does not stand, and since when; oldest first
        self._unrest = asyncio.Event()
        self._news = asyncio.Event()
        self._next_look: asyncio.Future[None] | None = None
        self._lookup_trouble = ""
        self._replica: Address | None = None  # by the last lookup

    async def start(self) -> None:
        """Connect to every primary and hear ourselves there. Raises `BackendError` after `command_timeout`."""
        self._is_running = True
        self._meet(self._topology.addresses())
        self._spawn(self._keep(), "subscriptions")
        try:
            async with asyncio.timeout(self._options.command_timeout):
                while not self.health()[0]:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            detail = self.health()[1]
            await self.stop()
            raise BackendError(f"Cannot hear what is published: {detail}") from None

    async def stop(self) -> None:
        """Close every connection and end every task. Whoever still waits in `subscribe` gets a `BackendError`."""
        self._is_running = False
        for lane, _ in self._lanes.values():
            lane.close()
        while self._own:
            for task in self._own:
                task.cancel()
            await asyncio.gather(*self._own, return_exceptions=True)
        for channel in list(self._channels):
            self._forget(channel, "The Redis backend was stopped.")
        self._lanes.clear()

    async def subscribe(self, channel: bytes) -> None:
        """Have `channel` delivered. Returns once the server has confirmed it: nothing published later is missed.

        Callers for the same channel share one subscription, and one `unsubscribe` ends it for all. Raises
        `BackendError` after `command_timeout`, or at once where the server refuses for good.
        """
        if not self._is_running:
            raise BackendError("The subscriptions are not started; start the SocketApp first.")
        entry = self._channels.get(channel)
        if entry is None:
            entry = self._channels[channel] = _Channel()
            self._waiting[channel] = asyncio.get_running_loop().time()
            self._place(channel, entry)
        if channel not in self._waiting:
            entry.claimed = True
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiters.add(waiter)
        try:
            async with asyncio.timeout(self._options.command_timeout):
                await waiter
            entry.claimed = True
        except TimeoutError:
            raise BackendError(
                f"The subscription to {channel.decode(errors='replace')!r} was not confirmed within "
                f"{self._options.command_timeout:g} s: {self.health()[1]}"
            ) from None
        finally:
            entry.waiters.discard(waiter)
            if not entry.claimed and not entry.waiters and self._channels.get(channel) is entry:
                self._forget(channel)

    def unsubscribe(self, channel: bytes) -> None:
        """Give `channel` up, for all who subscribed to it; nothing happens if nobody did."""
        self._forget(channel, "It was unsubscribed from meanwhile.")

    def health(self) -> tuple[bool, str]:
        """Whether this node hears everything it wants to, measured; and what is wrong, or how much it hears."""
        if not self._is_running:
            return False, "the subscriptions are not started"
        troubles = [lane.trouble for lane, _ in self._lanes.values() if lane.trouble]
        if not self._lanes:
            troubles.append("no server is known")
        # A failed lookup alone says nothing about a link, whose probes come back; from a replica they do as well.
        if self._lookup_trouble and (troubles or self._replica in self._lanes):
            troubles.append(f"looking up the servers failed: {self._lookup_trouble}")
        if self._waiting:
            waited = asyncio.get_running_loop().time() - next(iter(self._waiting.values()))
            if waited > OVERDUE:
                troubles.append(f"{len(self._waiting)} subscriptions are missing, one for {waited:.1f} s")
        if troubles:
            return False, "; ".join(troubles)
        return True, f"hears {len(self._channels)} channels on {len(self._lanes)} connections"

    # What lanes say

    def stand(self, channels: Sequence[bytes]) -> None:
        """These are confirmed."""
        restored: list[bytes] = []
        for channel in channels:
            self._waiting.pop(channel, None)
            entry = self._channels.get(channel)
            if entry is None:
                continue
            if entry.stood:
                restored.append(channel)
            entry.stood = True
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if restored:
            try:
                self._restored(restored)
            except Exception:
                logger.exception("Catching up with %d restored subscriptions failed", len(restored))

    def lost(self, lane: Lane, channels: Sequence[bytes]) -> None:
        """These stood on the lane's link, which broke."""
        for channel in channels:
            entry = self._channels.get(channel)
            if entry is not None and entry.lane is lane:
                self._miss(channel)

    def misplaced(self, channel: bytes, reason: str) -> None:
        """The server does not want this channel, or not any more."""
        entry = self._channels.get(channel)
        if entry is None:
            return
        self._displace(channel, entry)
        self.look()
        if reason and not reason.startswith(_TRANSIENT):
            logger.error("The subscription to %r was refused: %s", channel, reason)
            _fail(entry, f"The subscription was refused: {reason}")

    def proved(self) -> None:
        """A lane has heard itself."""
        self._news.set()

    def look(self) -> None:
        """Have the servers looked up and everything placed anew, soon."""
        self._unrest.set()

    async def looked(self) -> None:
        """Look, and wait until it is done, `connect_timeout` at most."""
        self._unrest.set()
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._next_look,), timeout=self._options.connect_timeout)

    # Places

    def _place(self, channel: bytes, entry: _Channel) -> None:
        address = self._topology.address_for(channel)
        found = None if address is None else self._lanes.get(address)
        if found is None:
            self._unplaced[channel] = None
            self.look()
            return
        entry.lane = found[0]
        if entry.lane.add(channel):
            self.stand((channel,))

    def _displace(self, channel: bytes, entry: _Channel) -> None:
        entry.lane = None
        self._unplaced[channel] = None
        self._miss(channel)

    def _miss(self, channel: bytes) -> None:
        if channel not in self._waiting:
            self.losses += 1
            self._waiting[channel] = asyncio.get_running_loop().time()

    def _forget(self, channel: bytes, reason: str = "") -> None:
        entry = self._channels.pop(channel, None)
        if entry is None:
            return
        self._waiting.pop(channel, None)
        self._unplaced.pop(channel, None)
        if entry.lane is not None:
            entry.lane.remove(channel)
        _fail(entry, reason)

    async def _keep(self) -> None:
        """Look the servers up whenever something is out of place, at most about once a second, and now and then."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while True:
            asked_at = loop.time()
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._unrest.wait()
            except TimeoutError:
                pass
            if loop.time() - asked_at > STABLE:
                backoff.reset()
            self._unrest.clear()
            looking, self._next_look = self._next_look, None
            try:
                await self._look_up()
            except Exception:
                logger.exception("Placing subscriptions met an error of our own; it is tried again")
                self.look()
            if looking is not None and not looking.done():
                looking.set_result(None)
            await asyncio.sleep(backoff.next())

    async def _look_up(self) -> None:
        trouble, replica = "", None
        try:
            async with asyncio.timeout(self._options.command_timeout):
                await self._topology.refresh()
        except ReplicaError as error:
            trouble, replica = str(error), error.address
            self.look()
        except TimeoutError:
            trouble = f"no answer within {self._options.command_timeout:g} s"
        except Exception as error:  # whatever a server or a name service comes up with: the next try is due anyway
            trouble = str(error) or repr(error)
        if trouble and trouble != self._lookup_trouble:
            logger.warning("Looking up the servers failed: %s", trouble)
        self._lookup_trouble, self._replica = trouble, replica
        self._meet(self._topology.addresses())
        await self._sweep()

    def _meet(self, addresses: Sequence[Address]) -> None:
        """Have a lane for each of `addresses` and no other. If none is known, the old ones are the best guess."""
        for address in set(self._lanes).difference(addresses) if addresses else ():
            lane, task = self._lanes.pop(address)
            logger.info("%s is no primary any more", address)
            for channel in lane.channels:
                entry = self._channels.get(channel)
                if entry is not None and entry.lane is lane:
                    self._displace(channel, entry)
            lane.close()
            task.cancel()
        for address in addresses:
            if address not in self._lanes:
                lane = Lane(address, self._topology, self, self._probing, self._options, self._spawn)
                self._lanes[address] = lane, self._spawn(lane.run(), f"subscriptions at {address}")
        self._news.set()

    async def _sweep(self) -> None:
        """Place what has no place, and move what should be elsewhere."""
        for channel in list(self._unplaced):
            self._unplaced.pop(channel, None)
            entry = self._channels.get(channel)
            if entry is not None and entry.lane is None:
                self._place(channel, entry)
        if len(self._lanes) < 2:
            return
        for number, (channel, entry) in enumerate(list(self._channels.items()), 1):
            if self._channels.get(channel) is entry and entry.lane is not None:
                address = self._topology.address_for(channel)
                if address is not None and address != entry.lane.address:
                    entry.lane.remove(channel)
                    self._displace(channel, entry)
                    self._unplaced.pop(channel, None)
                    self._place(channel, entry)
            if number % SWEEP == 0:
                await asyncio.sleep(0)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = self._tasks.spawn(coroutine, name=name)
        self._own.add(task)
        task.add_done_callback(self._own.discard)
        return task


def _fail(entry: _Channel, reason: str) -> None:
    for waiter in entry.waiters:
        if not waiter.done():
            waiter.set_exception(BackendError(reason))
