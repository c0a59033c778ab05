"""How a link proves that it hears: a message of our own, published like any other, has to come back on it.

Silence alone says nothing: a connection into a black hole, to a frozen server or to one that is no primary any more is
silent as well. Time in which nothing could have been heard does not count against a link: neither while its reading
waits for deliveries, nor while the event loop was busy elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from socketspec.cluster.options import RedisOptions
from socketspec.cluster.pubsub.link import PubSubLink, Spawn
from socketspec.cluster.servers.backoff import Backoff
from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.errors import BackendError
from socketspec.telemetry.counters import Histogram

__all__ = ("HearingDeadline", "Liveness", "Probing")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

SECONDS_A_TURN: Final = 0.2
"""Seconds of one wait. One that took longer than twice that counts as twice: the event loop was busy, and could not
have heard."""
LATE: Final = 1.0
"""Seconds that a probe has for its way back, at least, however long publishing it took."""

_REFUSED: Final = "the subscription to the probe's channel was refused"
_SILENCE: Final = "what is published does not arrive on it: it leads to a dead or a wrong server"


class HearingDeadline:
    """A timeout of `seconds`, paused while nothing could have been heard."""

    def __init__(self, link: PubSubLink, news: asyncio.Event, seconds: float) -> None:
        self._link = link
        self._news = news
        self._left = seconds

    def at_least(self, seconds: float) -> None:
        """Extend it, so that at least `seconds` are left."""
        self._left = max(self._left, seconds)

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait until `is_true()`, which is asked again whenever something happens.

        No longer where time is up or the link is lost.
        """
        loop = asyncio.get_running_loop()
        while not is_true():
            if self._left <= 0 or self._link.closed.done():
                return
            self._news.clear()
            began, was_paused = loop.time(), self._link.is_paused
            try:
                async with asyncio.timeout(min(SECONDS_A_TURN, self._left)):
                    await self._news.wait()
            except TimeoutError:
                pass
            if not (was_paused or self._link.is_paused):
                self._left -= min(loop.time() - began, 2 * SECONDS_A_TURN)


class Probing(NamedTuple):
    """How links are probed."""

    publish: Callable[[bytes, bytes], Awaitable[Any]]
    """Sends a nonce to a channel, the way everything is published."""
    channel: Callable[[str], bytes]
    """The channel for a hash tag."""
    lag: Histogram
    """Seconds from publishing a nonce to hearing it."""


class _Publishing:
    """How far publishing a nonce has come."""

    def __init__(self) -> None:
        self.is_done = False
        self.trouble = ""


class Liveness:
    """Probes one link, from its opening to its end.

    Args:
        tag: gives a hash tag whose slot the link's server owns. Raises `BackendError` or `LookupError`.
        ask: called with a channel that probes begin or cease to use, so that it is subscribed to or given up.
        is_confirmed: whether the server has confirmed a channel.
        refresh_soon: has the servers looked up again.
        proved: is called whenever a probe has come back.
        after: why the link before this one was lost, for `trouble`.
    """

    def __init__(
        self,
        link: PubSubLink,
        probing: Probing,
        options: RedisOptions,
        spawn: Spawn,
        *,
        tag: Callable[[], str],
        ask: Callable[[bytes], None],
        is_confirmed: Callable[[bytes], bool],
        refresh_soon: Callable[[], None],
        proved: Callable[[], None],
        after: str = "",
    ) -> None:
        self.channel: bytes | None = None
        """What probes are published to; None where the server would not have it."""
        self.heard_at: float | None = None
        """When the last probe came back."""
        self._link = link
        self._probing = probing
        self._interval = options.probe_interval
        self._timeout = options.probe_timeout
        self._spawn = spawn
        self._tag = tag
        self._ask = ask
        self._is_confirmed = is_confirmed
        self._refresh_soon = refresh_soon
        self._proved = proved
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._refusal = ""
        self._nonce: bytes | None = None
        self._published_at = 0.0
        self._trouble = "connected, but has not heard itself yet" + (f" ({after})" if after else "")
        link.closed.add_done_callback(lambda _: self._news.set())

    @property
    def trouble(self) -> str:
        """Why the link may not hear; empty if it does."""
        if self._trouble or self.heard_at is None:
            return self._trouble
        silent = self._loop.time() - self.heard_at
        if silent <= self._interval + self._timeout:
            return ""
        why = ", waiting for deliveries that are behind" if self._link.is_paused else ""
        return f"has not heard itself for {silent:.1f} s{why}"

    # What the link says

    def answered(self) -> None:
        """The server has said something about channels."""
        self._news.set()

    def refused(self, reason: str) -> None:
        """The server does not want `channel`, or not any more."""
        self.channel, self._refusal = None, reason or "its slot has moved"
        self._refresh_soon()

    def _probed(self, nonce: bytes) -> None:
        if nonce == self._nonce:
            self._nonce = None
            self.heard_at = self._loop.time()
            self._probing.lag.observe(self.heard_at - self._published_at)
            self._news.set()

    # Probing

    def choose_channel(self) -> None:
        """Choose the channel that probes are published to: after a resharding it may have to be another one."""
        try:
            channel = self._probing.channel(self._tag())
        except (BackendError, LookupError, ValueError) as error:
            self.refused(str(error))
            return
        if channel != self.channel:
            before, self.channel = self.channel, channel
            if before is not None:
                self._ask(before)
            self._link.hear_probes(channel, self._probed)
            self._ask(channel)

    async def watch(self) -> str:
        """Probe until the link is lost or fails a probe. Returns why. Call `choose_channel` before."""
        while True:
            reason = await self._probe()
            if reason:
                return reason
            await asyncio.wait((self._link.closed,), timeout=self._interval)
            if self._link.closed.done():
                return self._link.closed.result()
            self.choose_channel()

    async def _probe(self) -> str:
        """One probe. Returns why the link must go; empty where it may stay."""
        link = self._link
        deadline = HearingDeadline(link, self._news, self._timeout)
        pongs = link.pongs
        link.ping()
        trouble = await self._round_trip(deadline)
        if trouble:
            # Where only our publishing fails, the link may be good: to replace it would lose messages for nothing.
            await deadline.until(lambda: link.pongs > pongs)
        if link.closed.done():
            return link.closed.result()
        if trouble and link.pongs == pongs:
            return f"it did not answer for {self._timeout:g} s"
        if trouble == _SILENCE:
            return trouble
        if trouble:
            self._refresh_soon()
            if trouble != self._trouble:
                logger.warning("Cannot tell whether %s still hears: %s", link.address, trouble)
        self._trouble = trouble
        if not trouble:
            self._proved()
        return ""

    async def _round_trip(self, deadline: HearingDeadline) -> str:
        """Publish a nonce and hear it; what went wrong, if anything did."""
        channel = self.channel
        if channel is not None:
            await deadline.until(lambda: self._is_confirmed(channel) or self.channel != channel)
        if channel is None or self.channel != channel:
            return f"{_REFUSED}: {self._refusal}"
        if not self._is_confirmed(channel):
            return "the probe's subscription was not confirmed"
        nonce = self._nonce = secrets.token_hex(8).encode()
        self._published_at = self._loop.time()
        publishing = _Publishing()
        task = self._spawn(self._publish(channel, nonce, publishing), f"probe of {self._link.address}")
        try:
            await deadline.until(lambda: self._nonce is None or publishing.is_done)
            if publishing.is_done:
                deadline.at_least(min(LATE, self._timeout))
                await deadline.until(lambda: self._nonce is None or self.channel != channel)
            if self._nonce is None:
                return ""
            if not publishing.is_done:
                return publishing.trouble or f"publishing takes more than {self._timeout:g} s"
            return _SILENCE if self.channel == channel else f"{_REFUSED}: {self._refusal}"
        finally:
            self._nonce = None
            task.cancel()

    async def _publish(self, channel: bytes, nonce: bytes, publishing: _Publishing) -> None:
        """Publish the nonce until it succeeds: only then does silence say something about the link."""
        backoff = Backoff()
        while not publishing.is_done:
            try:
                await unless_cancelled(self._probing.publish(channel, nonce))
                publishing.is_done = True
                self._news.set()
            except Exception as error:
                publishing.trouble = str(error) or repr(error)
                await asyncio.sleep(backoff.next())
