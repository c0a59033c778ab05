"""One pub/sub connection to one server: an `asyncio.Protocol` over hiredis, for sharded channels.

redis-py's pub/sub reconnects without saying so, and costs fifteen times as much for each message. A `PubSubLink` lives
until it is lost, says why, and never comes back; `socketspec.cluster.pubsub.subscriber` makes the next one.

Answers come in the order of the commands: a queue of what is awaited tells an answer from what the server says unasked.
A link that can no longer match them is of no use and ends itself.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

import hiredis

from socketspec.cluster.options import Address
from socketspec.cluster.servers.connections import side_by_side, unix_problem
from socketspec.cluster.servers.login import Login
from socketspec.cluster.servers.shard import LinkOptions, explain
from socketspec.cluster.servers.trouble import MAX_CLIENTS, is_full, missing_command
from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.errors import BackendError

__all__ = ("Answer", "ChannelMessage", "PubSubLink", "Receive", "Spawn")

logger: logging.Logger = logging.getLogger("socketspec.cluster")

MAX_UNPARSED: Final = 64 * 2**20
"""Bytes of one incomplete message after which a link gives up; a frame of ours has at most 16 MiB."""

_MESSAGE: Final = b"smessage"
_SUBSCRIBE: Final = b"ssubscribe"
_UNSUBSCRIBE: Final = b"sunsubscribe"
_PONG: Final = b"pong"
_LOGIN: Final = b"login"
_NICE: Final = b"nice to have"

ChannelMessage = tuple[bytes, bytes]
"""A channel and what was published to it."""

Receive = Callable[[Sequence[ChannelMessage]], Awaitable[None] | None]
"""Takes what one read brought, in order. Must not block or raise.

Returns what to await before the connection is read any further, or None."""

Spawn = Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]
"""Starts a named task, which is cancelled when whoever handed this function out stops."""


class Answer(NamedTuple):
    """What became of a channel: confirmed, ended as asked, refused, or dropped by the server unasked."""

    what: Literal["confirmed", "ended", "refused", "dropped"]
    channel: bytes
    text: str = ""
    """The server's words where it refused."""


class PubSubLink(asyncio.Protocol):
    """One connection from `open` to its loss. `closed` is done, with the reason, once nothing more will be heard.

    `receive` gets the messages, `answered` what one read said about channels, before the messages of the same read.
    """

    def __init__(
        self, address: Address, receive: Receive, answered: Callable[[Sequence[Answer]], None], spawn: Spawn
    ) -> None:
        self.address: Address = address
        self.pongs: int = 0
        """Answers to `ping` so far."""
        self.is_paused: bool = False
        """Whether it waits for deliveries before it reads on."""
        self.is_unreachable: bool = False
        """Whether the connection could not be made or broke, rather than being closed by whoever is there."""
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[str] = loop.create_future()
        self._receive = receive
        self._answered = answered
        self._spawn = spawn
        self._probe: bytes | None = None
        self._probed: Callable[[bytes], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = hiredis.Reader()
        self._awaited: deque[tuple[bytes, bytes]] = deque()
        self._answers: list[Answer] = []

    async def open(self, options: LinkOptions) -> None:
        """Connect and log in, within `options.connect_timeout`. Raises `BackendError`, with nothing left open."""
        limit = asyncio.get_running_loop().time() + options.connect_timeout
        try:
            login = await options.login()
            async with asyncio.timeout_at(limit):
                refusal = await self._connect(options, login)
        except TimeoutError:
            self.is_unreachable = True
            await self.end("it did not answer in time")
            raise BackendError(f"{self.address} did not answer within {options.connect_timeout:g} s.") from None
        except OSError as error:
            self.is_unreachable = True
            await self.end("it cannot be reached")
            if isinstance(error, ssl.SSLError):
                raise explain(self.address, error, options) from error
            problem = unix_problem(self.address, error) or error
            raise BackendError(f"{self.address} cannot be reached: {problem}") from error
        except BaseException:
            await self.end("the connection is not wanted any more")
            raise
        if refusal:
            await self.end(refusal)
            if is_full(refusal):
                raise BackendError(f"{self.address} {MAX_CLIENTS}.")
            raise BackendError(f"{self.address} did not take the connection: {refusal}")

    @property
    def outstanding(self) -> int:
        """How many commands have not been answered."""
        return len(self._awaited)

    def send(self, subscribe: Iterable[bytes], unsubscribe: Iterable[bytes]) -> None:
        """Ask for channels and give channels up: one command each, in one write. `answered` is told what came of it.

        The caller has at most one unanswered command for each channel, and keeps `outstanding` low.
        """
        # In a cluster the channels of one command must share a slot, and an error is about all of them: so one each.
        words: list[bytes] = []
        for channel in unsubscribe:
            words.append(_pack(b"SUNSUBSCRIBE", channel))
            self._awaited.append((_UNSUBSCRIBE, channel))
        for channel in subscribe:
            words.append(_pack(b"SSUBSCRIBE", channel))
            self._awaited.append((_SUBSCRIBE, channel))
        self._write(b"".join(words))

    def ping(self) -> None:
        """Ask for an answer: `pongs` counts it."""
        self._awaited.append((_PONG, b""))
        self._write(_pack(b"PING"))

    def hear_probes(self, channel: bytes, probed: Callable[[bytes], None]) -> None:
        """From now on give the messages of `channel`, and of no other, to `probed` instead of `receive`."""
        self._probe, self._probed = channel, probed

    def abort(self, reason: str) -> None:
        """Close the connection at once; nothing is heard from now on. The first reason counts."""
        if not self.closed.done():
            self.closed.set_result(reason)
        if not self._ready.done():
            self._ready.set_result(reason)
        if self._transport is not None:
            self._transport.abort()

    async def end(self, reason: str) -> None:
        """`abort`, and wait until the socket is closed."""
        self.abort(reason)
        if self._transport is not None:
            await self._gone

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.closed.done():
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_unreachable = self.is_unreachable or exc is not None
        self.abort("the server closed the connection" if exc is None else f"the connection broke: {exc}")
        if not self._gone.done():
            self._gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        if not self.is_paused:  # else it waits: with TLS, data that was decrypted already still comes in
            self._take()

    # What it makes of that

    async def _connect(self, options: LinkOptions, login: Login) -> str:
        """Connect and log in. Returns the server's refusal; empty where it let us in."""
        loop = asyncio.get_running_loop()
        if self.address.is_unix:
            await loop.create_unix_connection(lambda: self, self.address.host)
        else:
            host, port = self.address.host, self.address.port
            await loop.create_connection(lambda: self, host, port, ssl=options.ssl, **side_by_side(host))
        commands: list[bytes] = []
        if login.password:
            words = (login.username, login.password) if login.username else (login.password,)
            commands.append(_pack(b"AUTH", *(word.encode() for word in words)))
            self._awaited.append((_LOGIN, b""))
        if options.client_name:
            commands.append(_pack(b"CLIENT", b"SETNAME", options.client_name.encode()))
        commands.append(_pack(b"PING"))  # so that one answer is due: a frozen server accepts connections, too
        self._awaited.extend((_NICE, b"") for _ in range(len(commands) - len(self._awaited)))
        self._write(b"".join(commands))
        return await self._ready

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self.closed.done():
            self._transport.write(data)

    def _take(self) -> None:
        """Hand on everything that is complete."""
        messages: list[ChannelMessage] = []
        try:
            self._parse(messages)
        except (hiredis.HiredisError, LookupError, TypeError, ValueError) as error:
            self.abort(f"the server sent what is no answer: {error}")
        if self._parser.len() > MAX_UNPARSED:
            self.abort(f"a message of more than {MAX_UNPARSED >> 20} MiB came in; who else publishes to our channels?")
        if self._answers:
            answers, self._answers = self._answers, []
            self._tell(answers)
        if messages and not self.closed.done():
            self._hand_on(messages)

    def _parse(self, messages: list[ChannelMessage]) -> None:
        gets = self._parser.gets
        append = messages.append
        while (item := gets()) is not False:
            if type(item) is list and item[0] == _MESSAGE:
                _, channel, data = item
                if channel == self._probe and self._probed is not None:
                    self._probed(data)
                else:
                    append((channel, data))
            elif not self.closed.done():
                self._understand(item)

    def _understand(self, item: object) -> None:
        """Match an answer with the command it belongs to."""
        kind, channel = self._awaited[0] if self._awaited else (b"", b"")
        if isinstance(item, hiredis.ReplyError):
            self._refused(kind, channel, str(item))
        elif isinstance(item, list) and item[0] in (_SUBSCRIBE, _UNSUBSCRIBE):
            self._changed(item[0], item[1], is_asked=(kind, channel) == (item[0], item[1]))
        elif kind in (_LOGIN, _NICE):
            self._logged_in()
        elif kind == _PONG:  # a list, or a plain PONG while there is no subscription
            self._ponged()
        else:
            raise ValueError(f"{item!r:.100}, which nothing asked for")

    def _ponged(self) -> None:
        self._awaited.popleft()
        self.pongs += 1

    def _logged_in(self) -> None:
        """One answer more to what is said at first."""
        self._awaited.popleft()
        if not self._awaited and not self._ready.done():
            self._ready.set_result("")

    def _refused(self, kind: bytes, channel: bytes, text: str) -> None:
        if kind in (_NICE, _PONG) and (text.startswith("NOPERM") or missing_command(text)):
            # Its name is nice to have, and an error is a sign of life as well.
            self._logged_in() if kind == _NICE else self._ponged()
            return
        if self._awaited:
            self._awaited.popleft()
        if kind == _SUBSCRIBE:
            hint = missing_command(text)
            self._answers.append(Answer("refused", channel, f"{hint} ({text})" if hint else text))
        elif kind == _UNSUBSCRIBE:  # the server has forgotten it already
            self._answers.append(Answer("ended", channel, text))
        else:
            self.abort(text)

    def _changed(self, kind: bytes, channel: bytes, *, is_asked: bool) -> None:
        if is_asked:
            self._awaited.popleft()
            self._answers.append(Answer("confirmed" if kind == _SUBSCRIBE else "ended", channel))
        elif kind == _UNSUBSCRIBE:
            self._answers.append(Answer("dropped", channel))
        else:
            raise ValueError("a subscription that nothing asked for")

    def _tell(self, answers: Sequence[Answer]) -> None:
        try:
            self._answered(answers)
        except Exception as error:
            logger.exception("What %s said about channels could not be taken", self.address)
            self.abort(f"an error of our own: {error!r}")

    def _hand_on(self, messages: Sequence[ChannelMessage]) -> None:
        try:
            behind = self._receive(messages)
        except Exception:
            logger.exception("%d messages from %s could not be delivered", len(messages), self.address)
            return
        if behind is not None and self._transport is not None:
            self.is_paused = True
            self._transport.pause_reading()
            self._spawn(self._read_on_after(behind), f"read on from {self.address}")

    async def _read_on_after(self, behind: Awaitable[None]) -> None:
        try:
            await unless_cancelled(behind)
        except Exception:
            logger.exception("Waiting for deliveries of messages from %s failed", self.address)
        self.is_paused = False
        if self._transport is not None and not self.closed.done():
            self._transport.resume_reading()
            self._take()


def _pack(*words: bytes) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    parts.extend(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    return b"".join(parts)
