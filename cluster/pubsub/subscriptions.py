"""Which channels this node hears, on which server, and whether it does: one `Subscriber` for each primary.

A channel is wanted from `subscribe` to `unsubscribe`. It is placed with the subscriber of the primary that `Topology`
names, and stands once that server has confirmed it. A channel that loses its place (its slot has moved, its server is
gone) waits until the servers have been looked up again, and is placed anew. After the loss of a link a subscriber
brings its channels back by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from socketspec.cluster.commands.command import PASSING_REFUSALS
from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.pubsub.link import Receive
from socketspec.cluster.pubsub.liveness import Probing
from socketspec.cluster.pubsub.subscriber import STABLE, Subscriber
from socketspec.cluster.servers.backoff import Backoff
from socketspec.cluster.servers.shard import ReplicaError
from socketspec.cluster.servers.topology import Topology
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError
from socketspec.telemetry.counters import SECONDS, Histogram

__all__ = ("Subscriptions",)

logger: logging.Logger = logging.getLogger("socketspec.cluster")

OVERDUE: Final = 1.0
"""Seconds that a wanted channel may be without its subscription before health says so."""
REFRESH_EVERY: float = 4.0
"""Seconds after which the servers are looked up although nothing seems wrong: a primary that was replaced behind a
partition, or has become a replica, still serves whoever is connected to it, probes included."""
CHANNELS_A_TURN: Final = 1000
"""Channels whose place is checked before the event loop gets its turn."""

_TRANSIENT: Final = (*PASSING_REFUSALS, "BUSY")


class _Channel:
    """A wanted channel."""

    __slots__ = ("claimed", "stood", "subscriber", "waiters")

    def __init__(self) -> None:
        self.subscriber: Subscriber | None = None
        self.stood = False
        """Whether it was confirmed before: confirmed once more, it counts as restored."""
        self.claimed = False
        """Whether some caller was told that it stands, and so relies on it."""
        self.waiters: set[asyncio.Future[None]] = set()

    def let_go(self, error: str = "") -> None:
        """Have all who wait for it go on, or fail with `error`."""
        for waiter in self.waiters:
            if waiter.done():
                continue
            if error:
                waiter.set_exception(BackendError(error))
            else:
                waiter.set_result(None)


class Subscriptions:
    """All sharded subscriptions of one node. Belongs to one event loop.

    `receive` gets what one read brought, in order; while what it returns is pending, that connection is not read.
    `probe` publishes a nonce to a channel the normal way, `probe_channel` names that channel by its hash tag.
    `restored` gets channels that stand again after they did not: what was published meanwhile was missed.
    `linked` is called whenever the connection to some server comes to stand. It must not raise.
    """

    def __init__(
        self,
        topology: Topology,
        tasks: Tasks,
        *,
        receive: Receive,
        probe: Callable[[bytes, bytes], Awaitable[Any]],
        probe_channel: Callable[[str], bytes],
        restored: Callable[[Sequence[bytes]], None],
        linked: Callable[[], None] = lambda: None,
        options: RedisOptions,
    ) -> None:
        self.losses: int = 0
        """How often a channel that stood was lost."""
        self.lag: Histogram = Histogram(SECONDS)
        """Seconds from publishing to hearing it, as the probes of each connection measure it."""
        self._topology = topology
        self._tasks = tasks
        self._receive = receive
        self._probing = Probing(probe, probe_channel, self.lag)
        self._restored = restored
        self._linked = linked
        self._options = options
        self._own: set[asyncio.Task[Any]] = set()
        self._is_running = False
        self._now: Callable[[], float] = time.monotonic
        self._channels: dict[bytes, _Channel] = {}
        self._subscribers: dict[Address, tuple[Subscriber, asyncio.Task[Any]]] = {}
        self._unplaced: dict[bytes, None] = {}
        self._missing: OrderedDict[bytes, float] = OrderedDict()  # what does not stand, and since when; oldest first
        self._refresh_wanted = asyncio.Event()
        self._next_refresh: asyncio.Future[None] | None = None
        self._refresh_trouble = ""
        self._replica: Address | None = None  # by the last refresh
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Connect to every primary and hear ourselves there. Raises `BackendError` after `command_timeout`."""
        self._is_running = True
        self._now = asyncio.get_running_loop().time  # metrics are read in threads without an event loop, too
        self._follow(self._topology.addresses())
        self._spawn(self._keep_placed(), "subscriptions")
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
        for subscriber, _ in self._subscribers.values():
            subscriber.close()
        while self._own:
            for task in self._own:
                task.cancel()
            await asyncio.gather(*self._own, return_exceptions=True)
        for channel in list(self._channels):
            self._forget(channel, "The Redis backend was stopped.")
        self._subscribers.clear()

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
            self._missing[channel] = self._now()
            self._place(channel, entry)
        if channel not in self._missing:
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

    def stands(self, channel: bytes) -> bool:
        """Whether the server has confirmed `channel`, on a link that is up."""
        return channel in self._channels and channel not in self._missing

    def health(self) -> tuple[bool, str]:
        """Whether this node hears everything it wants to, measured; and what is wrong, or how much it hears."""
        if not self._is_running:
            return False, "the subscriptions are not started"
        troubles = [subscriber.trouble for subscriber, _ in self._subscribers.values() if subscriber.trouble]
        if not self._subscribers:
            troubles.append("no server is known")
        # A failed lookup alone is no trouble while probes come back. But they do so from a replica as well.
        if self._refresh_trouble and (troubles or self._replica in self._subscribers):
            troubles.append(f"looking up the servers failed: {self._refresh_trouble}")
        if self._missing:
            waited = self._now() - next(iter(self._missing.values()))
            if waited > OVERDUE:
                troubles.append(f"{len(self._missing)} subscriptions are missing, one for {waited:.1f} s")
        if troubles:
            return False, "; ".join(troubles)
        return True, f"hears {len(self._channels)} channels on {len(self._subscribers)} connections"

    # What subscribers say

    def confirmed(self, channels: Sequence[bytes]) -> None:
        """The server has confirmed these."""
        restored: list[bytes] = []
        for channel in channels:
            self._missing.pop(channel, None)
            entry = self._channels.get(channel)
            if entry is None:
                continue
            if entry.stood:
                restored.append(channel)
            entry.stood = True
            entry.let_go()
        if restored:
            try:
                self._restored(restored)
            except Exception:
                logger.exception("Catching up with %d restored subscriptions failed", len(restored))

    def linked(self) -> None:
        """A subscriber hears itself, perhaps at another server than the one before."""
        self._linked()

    def interrupted(self, subscriber: Subscriber, channels: Sequence[bytes]) -> None:
        """These stood on the subscriber's link, which broke."""
        for channel in channels:
            entry = self._channels.get(channel)
            if entry is not None and entry.subscriber is subscriber:
                self._miss(channel)

    def misplaced(self, channel: bytes, reason: str) -> None:
        """The server does not want this channel, or not any more."""
        entry = self._channels.get(channel)
        if entry is None:
            return
        self._displace(channel, entry)
        self.refresh_soon()
        if reason and not reason.startswith(_TRANSIENT):
            logger.error("The subscription to %r was refused: %s", channel, reason)
            entry.let_go(f"The subscription was refused: {reason}")

    def heard(self) -> None:
        """A probe has come back."""
        self._news.set()

    def refresh_soon(self) -> None:
        """Have the servers looked up and everything placed anew, soon."""
        self._refresh_wanted.set()

    async def refresh(self) -> None:
        """`refresh_soon`, and wait until it is done, `connect_timeout` at most."""
        self._refresh_wanted.set()
        if self._next_refresh is None:
            self._next_refresh = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._next_refresh,), timeout=self._options.connect_timeout)

    # Places

    def _place(self, channel: bytes, entry: _Channel) -> None:
        address = self._topology.address_for(channel)
        found = None if address is None else self._subscribers.get(address)
        if found is None:
            self._unplaced[channel] = None
            self.refresh_soon()
            return
        entry.subscriber = found[0]
        if entry.subscriber.add(channel):
            self.confirmed((channel,))

    def _displace(self, channel: bytes, entry: _Channel) -> None:
        entry.subscriber = None
        self._unplaced[channel] = None
        self._miss(channel)

    def _miss(self, channel: bytes) -> None:
        if channel not in self._missing:
            self.losses += 1
            self._missing[channel] = self._now()

    def _forget(self, channel: bytes, reason: str = "It is not wanted any more.") -> None:
        entry = self._channels.pop(channel, None)
        if entry is None:
            return
        self._missing.pop(channel, None)
        self._unplaced.pop(channel, None)
        if entry.subscriber is not None:
            entry.subscriber.remove(channel)
        entry.let_go(reason)

    async def _keep_placed(self) -> None:
        """Refresh whenever something is out of place, at most about once a second, and now and then."""
        loop = asyncio.get_running_loop()
        backoff = Backoff()
        while True:
            asked_at = loop.time()
            try:
                async with asyncio.timeout(REFRESH_EVERY):
                    await self._refresh_wanted.wait()
            except TimeoutError:
                pass
            is_routine = not self._refresh_wanted.is_set()
            if loop.time() - asked_at > STABLE:
                backoff.reset()
            self._refresh_wanted.clear()
            refreshed, self._next_refresh = self._next_refresh, None
            try:
                await self._look_up(routine=is_routine)
                await self._place_all()
            except Exception:
                logger.exception("Placing subscriptions met an error of our own; it is tried again")
                self.refresh_soon()
            if refreshed is not None and not refreshed.done():
                refreshed.set_result(None)
            await asyncio.sleep(backoff.next())

    async def _look_up(self, *, routine: bool) -> None:
        """Look up the servers, and have a subscriber for each primary."""
        trouble, replica = "", None
        try:
            async with asyncio.timeout(self._options.command_timeout):
                await self._topology.refresh(routine=routine)
        except ReplicaError as error:
            trouble, replica = str(error), error.address
            self.refresh_soon()
        except TimeoutError:
            trouble = f"no answer within {self._options.command_timeout:g} s"
        except Exception as error:  # whatever a server or a name service comes up with: the next try is due anyway
            trouble = str(error) or repr(error)
        if trouble and trouble != self._refresh_trouble:
            logger.warning("Looking up the servers failed: %s", trouble)
        self._refresh_trouble, self._replica = trouble, replica
        self._follow(self._topology.addresses())

    def _follow(self, addresses: Sequence[Address]) -> None:
        """Have a subscriber at each of `addresses` and no other. If none is known, the old ones are the best guess."""
        for address in set(self._subscribers).difference(addresses) if addresses else ():
            self._drop(address)
        for address in addresses:
            if address not in self._subscribers:
                subscriber = Subscriber(
                    address, self._topology, self._receive, self, self._probing, self._options, self._spawn
                )
                self._subscribers[address] = subscriber, self._spawn(subscriber.run(), f"subscriptions at {address}")
        self._news.set()

    def _drop(self, address: Address) -> None:
        logger.info("%s is no primary any more", address)
        subscriber, task = self._subscribers.pop(address)
        for channel in subscriber.channels:
            entry = self._channels.get(channel)
            if entry is not None and entry.subscriber is subscriber:
                self._displace(channel, entry)
        subscriber.close()
        task.cancel()

    async def _place_all(self) -> None:
        """Place what has no place, and move what should be elsewhere."""
        for channel in list(self._unplaced):
            self._unplaced.pop(channel, None)
            entry = self._channels.get(channel)
            if entry is not None and entry.subscriber is None:
                self._place(channel, entry)
        if len(self._subscribers) < 2:
            return
        for number, (channel, entry) in enumerate(list(self._channels.items()), 1):
            if self._channels.get(channel) is entry:
                self._move_if_misplaced(channel, entry)
            if number % CHANNELS_A_TURN == 0:
                await asyncio.sleep(0)

    def _move_if_misplaced(self, channel: bytes, entry: _Channel) -> None:
        address = self._topology.address_for(channel)
        if entry.subscriber is None or address in (None, entry.subscriber.address):
            return
        entry.subscriber.remove(channel)
        self._displace(channel, entry)
        self._unplaced.pop(channel, None)
        self._place(channel, entry)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = self._tasks.spawn(coroutine, name=name)
        self._own.add(task)
        task.add_done_callback(self._own.discard)
        return task
