"""The subscriptions at one primary: keeps a `Link` to it up, asks it for channels, and proves that it hears.

A link counts as good only while a message of our own, published like any other, comes back on it. Silence alone says
nothing: a connection into a black hole, to a frozen server or to one that is no primary any more is silent as well.
Time in which nobody could have heard does not count against the link: neither while reading waits for deliveries, nor
while the event loop was busy elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.pubsub.link import Answer, Link, Message, Spawn
from socketspec.cluster.pubsub.liveness import Patience
from socketspec.cluster.servers.backoff import Backoff
from socketspec.cluster.servers.topology import Topology
from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.errors import BackendError
from socketspec.telemetry.counters import Histogram

__all__ = ("Lane", "Owner", "Probing")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

MAX_OUTSTANDING: Final = 500
"""Channels asked for or given up without an answer; the rest wait their turn."""
STABLE: Final = 2.0
"""Seconds after which trouble counts as new, and is met without delay again."""
LATE: Final = 1.0
"""Seconds a probe has for its way back, even where publishing it took all the time there was."""


class Owner(Protocol):
    """Whom a lane tells what became of channels. No call may block or raise."""

    def received(self, messages: Sequence[Message], /) -> Awaitable[None] | None:
        """See `Listener.received`."""
        ...

    def stand(self, channels: Sequence[bytes]) -> None:
        """These are confirmed from now on."""
        ...

    def lost(self, lane: Lane, channels: Sequence[bytes]) -> None:
        """These stood, and the link broke. The lane asks for them again by itself."""
        ...

    def misplaced(self, channel: bytes, reason: str) -> None:
        """The server does not want this channel (any more). The lane has forgotten it."""
        ...

    def proved(self) -> None:
        """The lane has heard itself."""
        ...

    def look(self) -> None:
        """Have the servers looked up again."""
        ...

    async def looked(self) -> None:
        """`look`, and wait until it is done, or for a while."""
        ...


class Probing(NamedTuple):
    """How a lane hears itself."""

    publish: Callable[[bytes, bytes], Awaitable[Any]]
    """Sends a nonce to a channel, the way everything is published."""
    channel: Callable[[str], bytes]
    """The channel for a hash tag."""
    lag: Histogram
    """Seconds from publishing a nonce to hearing it."""


class _State(Enum):
    """What the server holds of a channel, or was asked to. A channel without one is unknown to it."""

    ASKED = 1
    STANDING = 2
    LEAVING = 3


class _Publishing:
    """How far publishing a nonce has come."""

    def __init__(self) -> None:
        self.is_done = False
        self.trouble = ""


class Lane:
    """One primary's link and channels. `run` is its life; it ends by cancellation only."""

    def __init__(
        self, address: Address, topology: Topology, owner: Owner, probing: Probing, options: RedisOptions, spawn: Spawn
    ) -> None:
        self.address = address
        self.channels: dict[bytes, None] = {}
        """Those it is to have, standing or not."""
        self._topology = topology
        self._owner = owner
        self._probing = probing
        self._options = options
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._states: dict[bytes, _State] = {}
        self._changed: OrderedDict[bytes, None] = OrderedDict()
        self._is_flushing = False
        self._probe: bytes | None = None
        self._refusal = ""
        self._nonce: bytes | None = None
        self._published_at = 0.0
        self._news = asyncio.Event()
        self._heard_at: float | None = None
        self._lost_at = self._loop.time()
        self._loss = ""
        """Why the last link went; empty once another has been proved."""
        self._trouble = "not connected yet"

    # Channels

    def add(self, channel: bytes) -> bool:
        """Ask for `channel`; whether it stands already."""
        self.channels[channel] = None
        self._touch(channel)
        return self._states.get(channel) is _State.STANDING

    def remove(self, channel: bytes) -> None:
        """Give `channel` up."""
        if channel in self.channels:
            del self.channels[channel]
            self._touch(channel)

    def stands(self, channel: bytes) -> bool:
        """Whether the server has confirmed it and not taken it back."""
        return self._states.get(channel) is _State.STANDING

    def _touch(self, channel: bytes) -> None:
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
            # a channel on its way in or out is looked at again when the answer is here
            if state is None and self._is_wanted(channel):
                self._states[channel] = _State.ASKED
                subscribe.append(channel)
            elif state is _State.STANDING and not self._is_wanted(channel):
                self._states[channel] = _State.LEAVING
                unsubscribe.append(channel)
        link.send(subscribe, unsubscribe)

    def _is_wanted(self, channel: bytes) -> bool:
        return channel in self.channels or channel == self._probe

    # What the link says

    def received(self, messages: Sequence[Message]) -> Awaitable[None] | None:
        return self._owner.received(messages)

    def probed(self, nonce: bytes) -> None:
        if nonce == self._nonce:
            self._nonce = None
            self._probing.lag.observe(self._loop.time() - self._published_at)
            self._heard_at = self._loop.time()
            self._news.set()

    def answered(self, answers: Sequence[Answer]) -> None:
        standing: list[bytes] = []
        for what, channel, text in answers:
            if what == "stands":
                self._states[channel] = _State.STANDING
                if channel in self.channels:
                    standing.append(channel)
            else:
                self._states.pop(channel, None)
                if what != "ended" and channel == self._probe:
                    self._probe, self._refusal = None, text or "its slot has moved"
                    self._owner.look()
                elif what != "ended" and channel in self.channels:
                    del self.channels[channel]
                    self._owner.misplaced(channel, text)
            self._changed[channel] = None
        self._news.set()
        if standing:
            self._owner.stand(standing)
        self._flush()

    # Life

    async def run(self) -> None:
        """Connect, live, and connect again, for ever."""
        backoff = Backoff()
        while True:
            opened_at = self._loop.time()
            reason = await self._live()
            self._lose(reason)
            if self._heard_at is not None and self._heard_at - opened_at > STABLE:
                backoff.reset()
            self._heard_at = None
            await self._owner.looked()
            await asyncio.sleep(backoff.next())

    def close(self) -> None:
        """Hear nothing any more. The task of `run` is the owner's to cancel."""
        self.channels.clear()
        if self._link is not None:
            self._link.abort("it is not needed any more")

    async def _live(self) -> str:
        """One link's life; why it ended."""
        link = Link(self.address, self, self._spawn)
        try:
            await link.open(self._topology.link)
            self._link = link
            link.closed.add_done_callback(lambda _: self._news.set())
            return await self._watch(link)
        except BackendError as error:
            return str(error)
        except Exception as error:
            logger.exception("The subscription connection to %s met an error of our own", self.address)
            return repr(error)
        finally:
            self._link = None
            await link.end("it was given up")

    def _lose(self, reason: str) -> None:
        if reason != self._loss:
            logger.warning("No subscription connection to %s: %s", self.address, reason)
        if self._heard_at is not None:
            self._lost_at = self._loop.time()
        self._loss = self._trouble = reason
        stood = [channel for channel, state in self._states.items() if state is _State.STANDING]
        self._states.clear()
        self._changed.clear()
        self._probe = self._nonce = None
        self._owner.lost(self, [channel for channel in stood if channel in self.channels])

    # Liveness

    async def _watch(self, link: Link) -> str:
        """Probe `link` until it is lost or fails; why."""
        self._trouble = "connected, but has not heard itself yet" + (f" ({self._loss})" if self._loss else "")
        is_proved = False
        self._listen_for_probe(link)
        for channel in self.channels:
            self._touch(channel)
        while True:
            reason = await self._try_out(link)
            if reason:
                return reason
            if not is_proved and not self._trouble:
                is_proved, self._loss = True, ""
                waited = self._loop.time() - self._lost_at
                logger.info("Subscriptions at %s: connected and heard after %.1f s", self.address, waited)
            await asyncio.wait((link.closed,), timeout=self._options.probe_interval)
            if link.closed.done():
                return link.closed.result()
            self._listen_for_probe(link)

    def _listen_for_probe(self, link: Link) -> None:
        """Have the probe's channel, which another slot may have to carry after a resharding."""
        try:
            channel = self._probing.channel(self._topology.tag_for(self.address))
        except (BackendError, LookupError, ValueError) as error:
            self._probe, self._refusal = None, str(error)
            self._owner.look()
            return
        if channel != self._probe:
            before, self._probe = self._probe, channel
            if before is not None:
                self._touch(before)
            link.probe = channel
            self._touch(channel)

    async def _try_out(self, link: Link) -> str:
        """One probe. Returns why the link must go; empty where it may stay."""
        patience = Patience(link, self._news, self._options.probe_timeout)
        pongs = link.pongs
        link.ping()
        trouble = await self._round_trip(link, patience)
        if trouble:
            # Where our publishing is what fails, the link may be good, and replacing it would only lose messages.
            await patience.until(lambda: link.pongs > pongs)
        if link.closed.done():
            return link.closed.result()
        if trouble and link.pongs == pongs:
            return f"it did not answer for {self._options.probe_timeout:g} s"
        if trouble == _SILENCE:
            return trouble
        if trouble:
            self._owner.look()
            if trouble != self._trouble:
                logger.warning("Cannot tell whether %s still hears: %s", self.address, trouble)
        self._trouble = trouble
        if not trouble:
            self._owner.proved()
        return ""

    async def _round_trip(self, link: Link, patience: Patience) -> str:
        """Publish a nonce and hear it; what went wrong, if anything did."""
        channel = self._probe
        if channel is not None:
            await patience.until(lambda: self.stands(channel) or self._probe != channel)
        if channel is None or self._probe != channel:
            return f"{_REFUSED}: {self._refusal}"
        if not self.stands(channel):
            return "the probe's subscription was not confirmed"
        nonce = self._nonce = secrets.token_hex(8).encode()
        self._published_at = self._loop.time()
        publishing = _Publishing()
        task = self._spawn(self._publish(channel, nonce, publishing), f"probe of {self.address}")
        try:
            await patience.until(lambda: self._nonce is None or publishing.is_done)
            if publishing.is_done:
                patience.at_least(min(LATE, self._options.probe_timeout))
                await patience.until(lambda: self._nonce is None or self._probe != channel)
            if self._nonce is None:
                return ""
            if not publishing.is_done:
                return publishing.trouble or f"publishing takes more than {self._options.probe_timeout:g} s"
            return _SILENCE if self._probe == channel else f"{_REFUSED}: {self._refusal}"
        finally:
            self._nonce = None
            task.cancel()

    async def _publish(self, channel: bytes, nonce: bytes, publishing: _Publishing) -> None:
        """Publish the nonce, again and again where it fails: only then does silence say something about the link."""
        backoff = Backoff()
        while not publishing.is_done:
            try:
                await unless_cancelled(self._probing.publish(channel, nonce))
                publishing.is_done = True
                self._news.set()
            except Exception as error:
                publishing.trouble = str(error) or repr(error)
                await asyncio.sleep(backoff.next())

    # Health

    @property
    def trouble(self) -> str:
        """Why this lane may not hear; empty if it does."""
        if self._link is None or self._trouble:
            return f"{self.address}: {self._trouble}"
        heard_at = self._lost_at if self._heard_at is None else self._heard_at
        silent = self._loop.time() - heard_at
        if silent <= self._options.probe_interval + self._options.probe_timeout:
            return ""
        why = ", waiting for deliveries that are behind" if self._link.is_paused else ""
        return f"{self.address}: has not heard itself for {silent:.1f} s{why}"


_REFUSED: Final = "the subscription to the probe's channel was refused"
_SILENCE: Final = "what is published does not arrive on it: it leads to a dead or a wrong server"
