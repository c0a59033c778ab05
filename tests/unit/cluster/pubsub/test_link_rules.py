"""One pub/sub connection: logging in, matching answers with commands, handing messages on, and why it ends."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest

from socketspec.cluster.options import Address
from socketspec.cluster.pubsub.link import Answer, PubSubLink
from socketspec.cluster.servers.shard import LinkOptions
from socketspec.errors import BackendError
from tests.played_redis import PlayedServer, resp
from tests.virtual_time import in_virtual_time, listen, now
from tests.watching import turns

PLAIN = LinkOptions(connect_timeout=3.0)
MESSAGE = resp(b"smessage", b"room", b"hello")


class Ear:
    """Keeps what a link tells, in order; `behind` is what to await before reading on."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.behind: Awaitable[None] | None = None
        self.on_answered: Callable[[], None] = lambda: None
        self.on_received: Callable[[], None] = lambda: None

    def received(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[None] | None:
        self.told.append(list(messages))
        self.on_received()
        return self.behind

    def probed(self, nonce: bytes) -> None:
        self.told.append(nonce)

    def answered(self, answers: Sequence[Answer]) -> None:
        self.told += answers
        self.on_answered()


class Rig:
    """A link, its server and its listener."""

    def __init__(self) -> None:
        self.server = PlayedServer("a")
        listen(*self.server.address, self.server.accept)
        self.ear = Ear()
        self.link = PubSubLink(self.server.address, self.ear.received, self.ear.answered, self.spawn)
        self.spawned: list[asyncio.Task[Any]] = []

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        self.spawned.append(asyncio.get_running_loop().create_task(coroutine, name=name))
        return self.spawned[-1]

    @classmethod
    async def opened(cls, options: LinkOptions = PLAIN) -> Rig:
        rig = cls()
        await rig.link.open(options)
        return rig

    async def says(self, *parts: bytes) -> None:
        """Have all of `parts` arrive in one read."""
        self.server.link.say(*parts)
        await asyncio.sleep(0.001)

    def asks(self, *channels: bytes, gives_up: Sequence[bytes] = ()) -> None:
        """Ask for channels, without an answer for now."""
        self.server.mute |= {*channels, *gives_up}
        self.link.send(channels, gives_up)


# Opening


@pytest.mark.parametrize(
    ("options", "commands"),
    [
        (LinkOptions(), []),
        (LinkOptions(password="p"), [(b"AUTH", b"p")]),
        (LinkOptions(username="u", password="p\xe9"), [(b"AUTH", b"u", b"p\xc3\xa9")]),
        (LinkOptions(username="u"), []),
        (LinkOptions(client_name="n"), [(b"CLIENT", b"SETNAME", b"n")]),
        (LinkOptions(password="p", client_name="n"), [(b"AUTH", b"p"), (b"CLIENT", b"SETNAME", b"n")]),
    ],
)
@in_virtual_time
async def test_a_link_logs_in_says_its_name_and_asks_for_a_sign_of_life(
    options: LinkOptions, commands: list[tuple[bytes, ...]]
) -> None:
    rig = await Rig.opened(options)
    assert rig.server.commands == [*commands, (b"PING",)]
    assert rig.link.outstanding == 0
    assert rig.link.pongs == 0  # that one was for opening
    assert not rig.link.closed.done()


@in_virtual_time
async def test_a_link_uses_the_encryption_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context()
    loop = asyncio.get_running_loop()
    asked: list[Any] = []
    connect: Callable[..., Awaitable[Any]] = loop.create_connection

    async def note(*args: Any, **options: Any) -> Any:
        asked.append(options["ssl"])
        return await connect(*args, **options)

    monkeypatch.setattr(loop, "create_connection", note)
    await Rig.opened(LinkOptions(ssl=context))
    await Rig.opened()
    assert asked == [context, None]


@in_virtual_time
async def test_opening_is_not_over_before_the_last_answer() -> None:
    rig = Rig()
    rig.server.mute.add(b"PING")
    opening = asyncio.create_task(rig.link.open(LinkOptions(password="p", client_name="n")))
    await asyncio.sleep(1)
    assert not opening.done()
    await rig.says(b"+PONG\r\n")
    await opening


@pytest.mark.parametrize("command", [b"AUTH", b"CLIENT", b"PING"])
@in_virtual_time
async def test_a_refused_login_is_an_error_with_the_servers_words_and_nothing_stays_open(command: bytes) -> None:
    rig = Rig()
    rig.server.refusals = {command: "NO you may not", b"p": "NO you may not", b"n": "NO you may not"}
    if command == b"CLIENT":
        del rig.server.refusals[b"p"]
    with pytest.raises(BackendError, match=r"^a:6379 did not take the connection: NO you may not$"):
        await rig.link.open(LinkOptions(password="p", client_name="n"))
    assert not rig.server.links
    assert rig.link.closed.result() == "NO you may not"


@in_virtual_time
async def test_a_server_that_cannot_be_reached_is_an_error_that_names_it() -> None:
    rig = Rig()
    rig.server.is_down = True
    with pytest.raises(BackendError, match=r"^a:6379 cannot be reached: connection refused$"):
        await rig.link.open(PLAIN)
    assert rig.link.closed.result() == "it cannot be reached"


@in_virtual_time
async def test_a_server_that_does_not_answer_is_an_error_in_time_and_nothing_stays_open() -> None:
    rig = Rig()
    rig.server.mute.add(b"PING")
    began = now()
    with pytest.raises(BackendError, match=r"^a:6379 did not answer within 2\.5 s\.$"):
        await rig.link.open(LinkOptions(connect_timeout=2.5))
    assert now() - began == pytest.approx(2.5, abs=0.01)
    assert not rig.server.links
    assert rig.link.closed.result() == "it did not answer in time"


@in_virtual_time
async def test_a_server_that_hangs_up_while_it_is_opened_is_an_error_at_once() -> None:
    rig = Rig()
    rig.server.mute.add(b"PING")
    opening = asyncio.create_task(rig.link.open(PLAIN))
    await asyncio.sleep(1)
    rig.server.cut()
    with pytest.raises(BackendError, match="did not take the connection: the server closed the connection"):
        await opening
    assert now() < 1.1


@in_virtual_time
async def test_opening_that_is_cancelled_leaves_nothing_open() -> None:
    rig = Rig()
    rig.server.mute.add(b"PING")
    opening = asyncio.create_task(rig.link.open(PLAIN))
    await asyncio.sleep(1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not rig.server.links
    assert rig.link.closed.result() == "the connection is not wanted any more"


# Commands and answers


@in_virtual_time
async def test_channels_are_given_up_and_asked_for_one_command_each_in_one_write() -> None:
    rig = await Rig.opened()
    rig.server.commands.clear()
    rig.asks(b"c", b"d", gives_up=(b"a", b"b"))
    assert rig.server.commands == [
        (b"SUNSUBSCRIBE", b"a"),
        (b"SUNSUBSCRIBE", b"b"),
        (b"SSUBSCRIBE", b"c"),
        (b"SSUBSCRIBE", b"d"),
    ]
    assert rig.link.outstanding == 4


@in_virtual_time
async def test_answers_are_told_together_in_the_servers_order_and_before_messages() -> None:
    rig = await Rig.opened()
    rig.asks(b"c", b"d", gives_up=(b"a",))
    await rig.says(
        MESSAGE,
        resp(b"sunsubscribe", b"a", 0),
        resp(b"ssubscribe", b"c", 1),
        b"-NOPERM no\r\n",
    )
    assert rig.ear.told == [
        Answer("ended", b"a"),
        Answer("confirmed", b"c"),
        Answer("refused", b"d", "NOPERM no"),
        [(b"room", b"hello")],
    ]
    assert rig.link.outstanding == 0


@in_virtual_time
async def test_a_refusal_to_give_up_says_that_it_ended() -> None:
    rig = await Rig.opened()
    rig.asks(gives_up=(b"a",))
    await rig.says(b"-MOVED 1 b:6379\r\n")
    assert rig.ear.told == [Answer("ended", b"a", "MOVED 1 b:6379")]
    assert rig.link.outstanding == 0


@in_virtual_time
async def test_a_channel_that_the_server_ends_unasked_is_dropped_and_answers_still_match() -> None:
    rig = await Rig.opened()
    rig.asks(b"c", gives_up=(b"a",))
    await rig.says(resp(b"sunsubscribe", b"b", 0), resp(b"sunsubscribe", b"a", 0), resp(b"ssubscribe", b"c", 1))
    assert rig.ear.told == [Answer("dropped", b"b"), Answer("ended", b"a"), Answer("confirmed", b"c")]
    await rig.says(resp(b"sunsubscribe", b"c", 0))
    assert rig.ear.told[-1] == Answer("dropped", b"c")


@in_virtual_time
async def test_pongs_are_counted_in_either_form_and_only_where_they_were_asked_for() -> None:
    rig = await Rig.opened()
    rig.link.ping()
    assert rig.link.outstanding == 1
    await asyncio.sleep(0.001)
    assert (rig.link.pongs, rig.link.outstanding) == (1, 0)
    rig.server.mute.add(b"PING")
    rig.link.ping()
    await rig.says(resp(b"pong", b""))
    assert rig.link.pongs == 2
    await rig.says(resp(b"pong", b""))
    assert rig.link.closed.result() == ("the server sent what is no answer: [b'pong', b''], which nothing asked for")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"+OK\r\n", "the server sent what is no answer: b'OK', which nothing asked for"),
        (b":7\r\n", "the server sent what is no answer: 7, which nothing asked for"),
        (b"*0\r\n", "the server sent what is no answer: list index out of range"),
        (resp(b"ssubscribe", b"x", 1), "the server sent what is no answer: a subscription that nothing asked for"),
        (resp(b"smessage", b"x"), "the server sent what is no answer: not enough values to unpack"),
        (b"?\r\n", "the server sent what is no answer: Protocol error"),
        (b"-ERR max number of clients\r\n", "ERR max number of clients"),
    ],
)
@in_virtual_time
async def test_a_link_whose_answers_cannot_be_matched_ends_itself(said: bytes, reason: str) -> None:
    rig = await Rig.opened()
    await rig.says(MESSAGE, said)
    assert rig.link.closed.result().startswith(reason)
    assert not rig.server.links
    assert rig.ear.told == []


@in_virtual_time
async def test_an_answer_to_another_command_than_the_one_that_is_due_ends_the_link() -> None:
    rig = await Rig.opened()
    rig.asks(b"a", b"b")
    await rig.says(resp(b"ssubscribe", b"b", 1))
    assert "a subscription that nothing asked for" in rig.link.closed.result()


@in_virtual_time
async def test_an_error_in_place_of_a_pong_ends_the_link() -> None:
    rig = await Rig.opened()
    rig.server.refusals[b"PING"] = "LOADING the data set"
    rig.link.ping()
    await asyncio.sleep(0.001)
    assert rig.link.closed.result() == "LOADING the data set"


@in_virtual_time
async def test_what_nothing_asked_for_is_shown_only_in_part() -> None:
    rig = await Rig.opened()
    await rig.says(resp(b"x" * 10_000))
    assert len(rig.link.closed.result()) < 250


# Messages


@in_virtual_time
async def test_messages_of_one_read_are_one_call_however_reads_cut_them() -> None:
    rig = await Rig.opened()
    await rig.says(MESSAGE * 3, MESSAGE[:-5])
    await rig.says(MESSAGE[-5:])
    assert rig.ear.told == [[(b"room", b"hello")] * 3, [(b"room", b"hello")]]


@in_virtual_time
async def test_messages_of_the_probes_channel_go_elsewhere() -> None:
    rig = await Rig.opened()
    rig.link.hear_probes(b"probe", rig.ear.probed)
    await rig.says(MESSAGE, resp(b"smessage", b"probe", b"nonce"), resp(b"smessage", b"other", b"x"))
    assert rig.ear.told == [b"nonce", [(b"room", b"hello"), (b"other", b"x")]]
    rig.link.hear_probes(b"other", rig.ear.probed)
    await rig.says(resp(b"smessage", b"probe", b"x"))
    assert rig.ear.told[-1] == [(b"probe", b"x")]


@in_virtual_time
async def test_nothing_is_read_while_deliveries_are_behind_and_everything_after() -> None:
    rig = await Rig.opened()
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    rig.ear.behind = wait()
    transport = rig.server.link
    await rig.says(MESSAGE)
    assert rig.link.is_paused
    rig.ear.behind = None
    rig.link.data_received(resp(b"smessage", b"decrypted", b"1"))  # what TLS had read already
    await rig.says(resp(b"smessage", b"late", b"2"))
    assert rig.ear.told == [[(b"room", b"hello")]]
    gate.set()
    await turns(lambda: len(rig.ear.told) == 3)
    assert rig.ear.told[1:] == [[(b"decrypted", b"1")], [(b"late", b"2")]]
    assert not rig.link.is_paused
    assert transport.is_open


@in_virtual_time
async def test_waiting_that_fails_is_logged_and_reading_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    rig = await Rig.opened()

    async def fail() -> None:
        raise RuntimeError("a bug in a fan-out")

    rig.ear.behind = fail()
    await rig.says(MESSAGE)
    rig.ear.behind = None
    await rig.says(MESSAGE)
    assert len(rig.ear.told) == 2
    assert "Waiting for deliveries of messages from a:6379 failed" in caplog.text


@in_virtual_time
async def test_a_link_that_ended_while_deliveries_were_behind_reads_nothing_more() -> None:
    rig = await Rig.opened()
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    rig.ear.behind = wait()
    rig.link.hear_probes(b"probe", rig.ear.probed)
    await rig.says(MESSAGE)
    rig.link.data_received(MESSAGE + resp(b"smessage", b"probe", b"nonce"))
    rig.link.abort("enough")
    gate.set()
    await asyncio.gather(*rig.spawned)
    assert rig.ear.told == [[(b"room", b"hello")]]
    assert not rig.link.is_paused


@in_virtual_time
async def test_messages_that_cannot_be_delivered_are_logged_and_the_link_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = await Rig.opened()

    def fail() -> None:
        raise RuntimeError("a bug in a hub")

    rig.ear.on_received = fail
    await rig.says(MESSAGE * 2)
    rig.ear.on_received = lambda: None
    await rig.says(MESSAGE)
    assert len(rig.ear.told) == 2
    assert "2 messages from a:6379 could not be delivered" in caplog.text
    assert not rig.link.closed.done()


@in_virtual_time
async def test_answers_that_cannot_be_taken_end_the_link(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    rig = await Rig.opened()

    def fail() -> None:
        raise RuntimeError("a bug")

    rig.ear.on_answered = fail
    rig.asks(b"a")
    await rig.says(resp(b"ssubscribe", b"a", 1), MESSAGE)
    assert rig.link.closed.result() == "an error of our own: RuntimeError('a bug')"
    assert "What a:6379 said about channels could not be taken" in caplog.text
    assert rig.ear.told == [Answer("confirmed", b"a")]


@in_virtual_time
async def test_a_message_without_an_end_is_not_kept_for_ever() -> None:
    rig = await Rig.opened()
    rig.link.data_received(b"*3\r\n$8\r\nsmessage\r\n$1\r\nx\r\n$99999999\r\n")
    rig.link.data_received(bytes(64 * 2**20 - 100))
    assert not rig.link.closed.done()
    rig.link.data_received(bytes(200))
    assert rig.link.closed.result() == ("a message of more than 64 MiB came in; who else publishes to our channels?")


# The end


@in_virtual_time
async def test_the_first_reason_counts_and_nothing_is_heard_or_said_after_it() -> None:
    rig = await Rig.opened()
    rig.link.abort("first")
    rig.link.abort("second")
    await rig.link.end("third")
    assert rig.link.closed.result() == "first"
    rig.server.commands.clear()
    rig.link.data_received(MESSAGE)
    rig.link.send((b"a",), (b"b",))
    rig.link.ping()
    assert rig.ear.told == []
    assert rig.server.commands == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "the server closed the connection"),
        (ConnectionResetError("reset by peer"), "the connection broke: reset by peer"),
    ],
)
@in_virtual_time
async def test_a_lost_connection_is_told_with_its_reason(error: Exception | None, reason: str) -> None:
    rig = await Rig.opened()
    rig.server.cut(error)
    assert await rig.link.closed == reason


@in_virtual_time
async def test_ending_waits_until_the_socket_is_closed() -> None:
    rig = await Rig.opened()
    transport = rig.server.link
    await rig.link.end("enough")
    assert transport.is_gone
    assert not rig.server.links
    await rig.link.end("again")


@in_virtual_time
async def test_what_was_ended_before_it_was_connected_is_closed_as_soon_as_it_is() -> None:
    rig = Rig()
    link = PubSubLink(Address("a", 6379), rig.ear.received, rig.ear.answered, rig.spawn)
    await link.end("not wanted")
    transport = rig.server.accept(link)
    link.connection_made(transport)
    assert not transport.is_open
    assert link.closed.result() == "not wanted"
