"""The subscriptions at one primary: keeps a link to it up, and asks it for channels."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol

from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.pubsub.link import Answer, PubSubLink, Receive, Spawn
from socketspec.cluster.pubsub.liveness import Liveness, Probing
from socketspec.cluster.servers.backoff import QUICK, Backoff
from socketspec.cluster.servers.topology import Topology
from socketspec.errors import BackendError

__all__ = ("STABLE", "Subscriber", "SubscriberEvents")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

MAX_OUTSTANDING: Final = 500
"""Channels asked for or given up without an answer; the rest wait their turn."""
STABLE: Final = 2.0
"""Seconds without trouble after which the next trouble is met without a pause again."""


class SubscriberEvents(Protocol):
    """What a subscriber tells its owner. No call may block or raise."""

    def confirmed(self, channels: Sequence[bytes]) -> None:
        """The server has confirmed these: from now on what is published to them is heard."""
        ...

    def linked(self) -> None:
        """A link has come to stand, whether or not there is any channel to have on it."""
        ...

    def interrupted(self, subscriber: Subscriber, channels: Sequence[bytes]) -> None:
        """These were confirmed, and the link broke. The subscriber asks for them again by itself."""
        ...

    def misplaced(self, channel: bytes, reason: str) -> None:
        """The server does not want this channel, or not any more. The subscriber has forgotten it."""
        ...

    def heard(self) -> None:
        """A probe has come back."""
        ...

    def refresh_soon(self) -> None:
        """Have the servers looked up again."""
        ...

    async def refresh(self) -> None:
        """`refresh_soon`, and wait until it is done, or for a while."""
        ...


class _ChannelState(Enum):
    """What the server holds of a channel, or was asked to. A channel without one is unknown to it."""

    ASKED = 1
    CONFIRMED = 2
    LEAVING = 3


class Subscriber:
    """One primary's link and channels. `run` keeps the link up until it is cancelled.

    `receive` gets what one read brought; see `Receive`.
    """

    def __init__(
        self,
        address: Address,
        topology: Topology,
        receive: Receive,
        events: SubscriberEvents,
        probing: Probing,
        options: RedisOptions,
        spawn: Spawn,
    ) -> None:
        self.address: Address = address
        self.channels: dict[bytes, None] = {}
        """Those it is to have, confirmed or not."""
        self._topology = topology
        self._receive = receive
        self._events = events
        self._probing = probing
        self._options = options
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._link: PubSubLink | None = None
        self._liveness: Liveness | None = None
        self._states: dict[bytes, _ChannelState] = {}
        self._changed: OrderedDict[bytes, None] = OrderedDict()
        self._is_flushing = False
        self._deaf_since: float | None = self._loop.time()
        """Since when no link has heard itself; None while one does."""
        self._is_unreachable = False
        """Whether it was the network that failed the last link, as far as one can tell."""
        self._lost_at: float | None = None
        """When the last link was lost; None before the first."""
        self._failure = ""
        """Why the last link was lost; empty once the next one has heard itself."""

    # Channels

    def add(self, channel: bytes) -> bool:
        """Ask for `channel`; whether it is confirmed already."""
        self.channels[channel] = None
        self._touch(channel)
        return self._is_confirmed(channel)

    def remove(self, channel: bytes) -> None:
        """Give `channel` up."""
        if channel in self.channels:
            del self.channels[channel]
            self._touch(channel)

    def _is_confirmed(self, channel: bytes) -> bool:
        return self._states.get(channel) is _ChannelState.CONFIRMED

    def _is_wanted(self, channel: bytes) -> bool:
        return channel in self.channels or (self._liveness is not None and channel == self._liveness.channel)

    def _touch(self, channel: bytes) -> None:
        """Have the server told soon whether `channel` is wanted."""
        if self._link is not None:
            self._changed[channel] = None
            if not self._is_flushing:
                self._is_flushing = True
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what has changed, as far as the server has kept up."""
        self._is_flushing = False
        link = self._link
        if link is None or link.closed.done():
            return
        room = MAX_OUTSTANDING - link.outstanding
        subscribe: list[bytes] = []
        unsubscribe: list[bytes] = []
        while self._changed and len(subscribe) + len(unsubscribe) < room:
            channel, _ = self._changed.popitem(last=False)
            state = self._states.get(channel)
            # a channel that was asked for or given up is looked at again when the answer has come
            if state is None and self._is_wanted(channel):
                self._states[channel] = _ChannelState.ASKED
                subscribe.append(channel)
            elif state is _ChannelState.CONFIRMED and not self._is_wanted(channel):
                self._states[channel] = _ChannelState.LEAVING
                unsubscribe.append(channel)
        link.send(subscribe, unsubscribe)

    def _answered(self, answers: Sequence[Answer]) -> None:
        """Take what one read of the link said about channels."""
        confirmed: list[bytes] = []
        for what, channel, text in answers:
            if what == "confirmed":
                self._states[channel] = _ChannelState.CONFIRMED
                if channel in self.channels:
                    confirmed.append(channel)
            else:
                self._states.pop(channel, None)
                if what != "ended":
                    self._taken_back(channel, text)
            self._changed[channel] = None
        if self._liveness is not None:
            self._liveness.answered()
        if confirmed:
            self._events.confirmed(confirmed)
        self._flush()

    def _taken_back(self, channel: bytes, reason: str) -> None:
        if self._liveness is not None and channel == self._liveness.channel:
            self._liveness.refused(reason)
        elif channel in self.channels:
            del self.channels[channel]
            self._events.misplaced(channel, reason)

    # Life

    async def run(self) -> None:
        """Connect, and connect again whenever the link is lost."""
        backoff, quick_backoff = Backoff(), Backoff(QUICK)
        while True:
            opened_at = self._loop.time()
            reason = await self._live()
            heard_at = None if self._liveness is None else self._liveness.heard_at
            self._link_ended(reason)
            if heard_at is not None and heard_at - opened_at > STABLE:
                backoff.reset()
                quick_backoff.reset()
            if self._is_unreachable:  # nobody has answered: the network may be back any moment
                self._events.refresh_soon()
                await asyncio.sleep(quick_backoff.next())
                continue
            await self._events.refresh()
            await asyncio.sleep(backoff.next())

    def close(self) -> None:
        """Hear nothing any more. The owner cancels the task of `run`."""
        self.channels.clear()
        if self._link is not None:
            self._link.abort("it is not needed any more")

    async def _live(self) -> str:
        """Connect, and stay until the link is lost. Returns why."""
        link = PubSubLink(self.address, self._receive, self._answered, self._spawn)
        is_there = False
        try:
            if self._lost_at is not None:
                await self._topology.confirm(self.address, self._lost_at)
            is_there = True
            await link.open(self._topology.link)
            self._link, self._liveness = link, self._watched(link)
            self._liveness.choose_channel()  # before the others, which would delay the first probe
            for channel in self.channels:
                self._touch(channel)
            return await self._liveness.watch()
        except BackendError as error:
            return str(error)
        except Exception as error:
            logger.exception("The subscription connection to %s met an error of our own", self.address)
            return repr(error)
        finally:
            self._link = None
            self._is_unreachable = link.is_unreachable or not is_there
            await link.end("it was given up")

    def _watched(self, link: PubSubLink) -> Liveness:
        return Liveness(
            link,
            self._probing,
            self._options,
            self._spawn,
            tag=lambda: self._topology.tag_for(self.address),
            ask=self._touch,
            is_confirmed=self._is_confirmed,
            refresh_soon=self._events.refresh_soon,
            proved=self._proved,
            after=self._failure,
        )

    def _proved(self) -> None:
        """A probe has come back."""
        if self._deaf_since is not None:
            waited = self._loop.time() - self._deaf_since
            self._deaf_since, self._failure = None, ""
            logger.info("Subscriptions at %s: connected and heard after %.1f s", self.address, waited)
            self._events.linked()
        self._events.heard()

    def _link_ended(self, reason: str) -> None:
        if reason != self._failure:
            logger.warning("No subscription connection to %s: %s", self.address, reason)
        self._lost_at = self._loop.time()
        if self._deaf_since is None:
            self._deaf_since = self._lost_at
        self._failure = reason
        confirmed = filter(self._is_confirmed, self._states)
        interrupted = [channel for channel in confirmed if channel in self.channels]
        self._liveness = None
        self._states.clear()
        self._changed.clear()
        self._events.interrupted(self, interrupted)

    # Health

    @property
    def trouble(self) -> str:
        """Why this subscriber may not hear; empty if it does."""
        if self._link is None or self._liveness is None:
            return f"{self.address}: {self._failure or 'not connected yet'}"
        trouble = self._liveness.trouble
        return f"{self.address}: {trouble}" if trouble else ""
