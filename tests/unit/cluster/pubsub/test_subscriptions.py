"""Subscriptions against a fake server that can be made to say anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import hiredis
import pytest

from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.pubsub.subscriptions import Subscriptions
from socketspec.cluster.servers.shard import LinkOptions, ReplicaError, unnoticed
from socketspec.errors import BackendError
from tests.watching import WatchedTasks

QUICK = RedisOptions(probe_interval=0.05, probe_timeout=0.4, connect_timeout=10, command_timeout=20, client_name="test")
"""Probes often. What is to succeed has time enough on a machine that is busy."""
RARELY = replace(QUICK, probe_interval=30)
"""For servers that keep an answer back: a ping must not overtake it."""
IMPATIENT = replace(QUICK, connect_timeout=0.4, command_timeout=0.8)
"""To see that time which is over ends a start or a subscribe."""


class FakeServer:
    """Speaks enough RESP2 for a link."""

    def __init__(self) -> None:
        self.commands: list[list[bytes]] = []
        self.connections: dict[asyncio.StreamWriter, set[bytes]] = {}
        self.accepted = 0
        self.refusals: dict[bytes, str] = {}
        """Channel: the error it is answered with."""
        self.mute: set[bytes] = set()
        """Commands that are not answered."""
        self.greeting = b""
        self.hangs_up = False
        self.address = Address("127.0.0.1", 0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def count(self, name: bytes) -> int:
        return sum(command[0] == name for command in self.commands)

    def publish(self, channel: bytes, data: bytes) -> None:
        for writer, channels in self.connections.items():
            if channel in channels:
                self.say(writer, [b"smessage", channel, data])

    def say(self, writer: asyncio.StreamWriter, words: Sequence[bytes | int]) -> None:
        parts = [b":%d\r\n" % word if isinstance(word, int) else b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        writer.write(b"*%d\r\n" % len(parts) + b"".join(parts))

    def take_back(self, channel: bytes) -> None:
        """What a server does with a channel whose slot has moved."""
        for writer, channels in self.connections.items():
            channels.discard(channel)
            self.say(writer, [b"sunsubscribe", channel, len(channels)])

    def cut(self) -> None:
        for writer in self.connections:
            writer.transport.abort()

    def raw(self, data: bytes) -> None:
        for writer in self.connections:
            writer.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self.connections[writer] = set()
        parser = hiredis.Reader()
        try:
            writer.write(self.greeting)
            while not self.hangs_up and (data := await reader.read(65_536)):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self.commands.append(command)
                    self._answer(writer, command)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            del self.connections[writer]
            self._tasks.discard(task)
            writer.close()

    def _answer(self, writer: asyncio.StreamWriter, command: list[bytes]) -> None:
        name, channel = command[0], command[-1]
        channels = self.connections[writer]
        if name in self.mute:
            return
        if name in (b"SSUBSCRIBE", b"SUNSUBSCRIBE"):
            if channel in self.refusals:
                writer.write(f"-{self.refusals[channel]}\r\n".encode())
                return
            (channels.add if name == b"SSUBSCRIBE" else channels.discard)(channel)
            self.say(writer, [name.lower(), channel, len(channels)])
        elif name == b"PING" and channels:
            self.say(writer, [b"pong", b""])
        else:
            writer.write(b"+PONG\r\n" if name == b"PING" else b"+OK\r\n")


class FakeTopology:
    """Which of some fake servers has a channel: decided by the test."""

    def __init__(self, servers: Sequence[FakeServer], options: RedisOptions) -> None:
        self.servers = list(servers)
        self.places: dict[bytes, FakeServer] = {}
        self.refreshes = 0
        self.on_refresh: Callable[[], Awaitable[None]] | None = None
        self.link = LinkOptions(
            username="ann", password="secret", ssl=None, connect_timeout=options.connect_timeout, client_name="test"
        )

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    trouble: str = ""

    async def ask(self, refusal: Any, words: Any) -> Any:
        return refusal

    async def refresh(self, *, routine: bool = False) -> None:
        self.refreshes += 1
        if self.on_refresh is not None:
            await self.on_refresh()

    async def confirm(self, address: Address, since: float) -> None:
        pass

    def addresses(self) -> Sequence[Address]:
        return [server.address for server in self.servers]

    def address_for(self, key: bytes | None) -> Address | None:
        return self.places.get(key or b"", self.servers[0]).address

    def tag_for(self, address: Address) -> str:
        return str(address.port)

    async def execute(
        self, words: Sequence[Sequence[Any]], begun: Callable[[], object] = unnoticed, *, has_deadline: bool = False
    ) -> list[Any]:
        raise NotImplementedError


class Node:
    """Subscriptions and what they said."""

    def __init__(self, *servers: FakeServer, options: RedisOptions = QUICK) -> None:
        self.servers = servers
        self.topology = FakeTopology(servers, options)
        self.tasks = WatchedTasks()
        self.heard: list[tuple[bytes, bytes]] = []
        self.restored: list[bytes] = []
        self.behind: Awaitable[None] | None = None
        self.publishing: Callable[[bytes, bytes], Awaitable[Any]] = self.publish
        self.subscriptions = Subscriptions(
            self.topology,
            self.tasks,
            receive=self._receive,
            probe=lambda channel, nonce: self.publishing(channel, nonce),
            probe_channel=lambda tag: b"probe:" + tag.encode(),
            restored=self.restored.extend,
            options=options,
        )

    async def publish(self, channel: bytes, data: bytes) -> None:
        for server in self.servers:
            server.publish(channel, data)

    def _receive(self, messages: Sequence[tuple[bytes, bytes]]) -> Awaitable[None] | None:
        self.heard.extend(messages)
        return self.behind

    @property
    def is_healthy(self) -> bool:
        return self.subscriptions.health()[0]


@asynccontextmanager
async def running(servers: int = 1, *, options: RedisOptions = QUICK) -> AsyncIterator[Node]:
    fakes = [FakeServer() for _ in range(servers)]
    for fake in fakes:
        await fake.start()
    node = Node(*fakes, options=options)
    try:
        await node.subscriptions.start()
        yield node
        assert not node.tasks.failures
    finally:
        await node.subscriptions.stop()
        for fake in fakes:
            await fake.stop()
    assert len(node.tasks) == 0


async def until(check: Callable[[], object], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.005)


# Subscribing


async def test_subscribe_returns_when_the_server_has_confirmed() -> None:
    async with running(options=RARELY) as node:
        (server,) = node.servers
        server.mute.add(b"SSUBSCRIBE")
        subscribing = asyncio.create_task(node.subscriptions.subscribe(b"room"))
        await until(lambda: server.commands[-1] == [b"SSUBSCRIBE", b"room"])
        assert not subscribing.done()
        (writer,) = server.connections
        server.say(writer, [b"ssubscribe", b"room", 2])
        await subscribing


async def test_many_callers_share_one_subscription() -> None:
    async with running() as node:
        await asyncio.gather(*(node.subscriptions.subscribe(b"room") for _ in range(50)))
        await node.subscriptions.subscribe(b"room")
        assert [c for c in node.servers[0].commands if c[0] == b"SSUBSCRIBE"][1:] == [[b"SSUBSCRIBE", b"room"]]


async def test_a_subscribe_that_is_not_confirmed_raises_in_time_and_leaves_nothing_behind() -> None:
    async with running(options=replace(IMPATIENT, probe_interval=RARELY.probe_interval)) as node:
        node.servers[0].mute |= {b"SSUBSCRIBE", b"SUNSUBSCRIBE"}
        began = time.monotonic()
        with pytest.raises(BackendError, match=r"'room' was not confirmed within 0\.8 s"):
            await node.subscriptions.subscribe(b"room")
        assert 0.75 <= time.monotonic() - began < 10
        assert node.subscriptions.health()[1].startswith("hears 0 channels")


async def test_a_caller_that_gives_up_does_not_take_the_subscription_from_the_others() -> None:
    async with running(options=RARELY) as node:
        node.servers[0].mute.add(b"SSUBSCRIBE")
        impatient = asyncio.create_task(node.subscriptions.subscribe(b"room"))
        patient = asyncio.create_task(node.subscriptions.subscribe(b"room"))
        await until(lambda: [b"SSUBSCRIBE", b"room"] in node.servers[0].commands)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        (writer,) = node.servers[0].connections
        node.servers[0].say(writer, [b"ssubscribe", b"room", 2])
        await patient
        assert node.subscriptions.health()[1].startswith("hears 1 channels")


async def test_a_cancelled_lonely_caller_takes_its_subscription_along() -> None:
    async with running() as node:
        (server,) = node.servers
        caller = asyncio.create_task(node.subscriptions.subscribe(b"room"))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await node.subscriptions.subscribe(b"other")
        await until(lambda: all(b"room" not in channels for channels in server.connections.values()))
        assert node.subscriptions.health()[1].startswith("hears 1 channels")


async def test_a_refused_subscription_raises_at_once_with_the_servers_words() -> None:
    async with running() as node:
        node.servers[0].refusals[b"room"] = "NOPERM No permissions to access a channel"
        began = time.monotonic()
        with pytest.raises(BackendError, match="NOPERM No permissions"):
            await node.subscriptions.subscribe(b"room")
        assert time.monotonic() - began < QUICK.command_timeout / 2
        await node.subscriptions.subscribe(b"other")
        assert len(node.servers[0].connections) == 1
        assert node.servers[0].accepted == 1


async def test_unsubscribing_tells_the_server_once_and_fails_whoever_still_waits() -> None:
    async with running(options=RARELY) as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(b"room")
        node.subscriptions.unsubscribe(b"room")
        node.subscriptions.unsubscribe(b"room")
        await until(lambda: server.count(b"SUNSUBSCRIBE") == 1)
        server.mute.add(b"SSUBSCRIBE")
        waiting = asyncio.create_task(node.subscriptions.subscribe(b"room"))
        await asyncio.sleep(0)
        node.subscriptions.unsubscribe(b"room")
        with pytest.raises(BackendError, match="unsubscribed"):
            await waiting


async def test_leaving_and_coming_back_at_once_costs_the_server_nothing() -> None:
    async with running() as node:
        await node.subscriptions.subscribe(b"room")
        before = len(node.servers[0].commands) - node.servers[0].count(b"PING")
        node.subscriptions.unsubscribe(b"room")
        await node.subscriptions.subscribe(b"room")
        await node.publish(b"room", b"hello")
        await until(lambda: node.heard == [(b"room", b"hello")])
        assert len(node.servers[0].commands) - node.servers[0].count(b"PING") == before
        assert node.restored == []


async def test_a_channel_that_comes_back_while_it_is_given_up_is_asked_for_again() -> None:
    async with running(options=RARELY) as node:
        (server,) = node.servers
        await node.subscriptions.subscribe(b"room")
        server.mute.add(b"SUNSUBSCRIBE")
        node.subscriptions.unsubscribe(b"room")
        await until(lambda: server.count(b"SUNSUBSCRIBE"))
        returning = asyncio.create_task(node.subscriptions.subscribe(b"room"))
        await asyncio.sleep(0.02)
        assert server.count(b"SSUBSCRIBE") == 2
        (writer,) = server.connections
        server.say(writer, [b"sunsubscribe", b"room", 1])
        await returning
        assert server.count(b"SSUBSCRIBE") == 3
        assert node.restored == []


async def test_subscribes_of_one_turn_go_out_together_and_never_more_than_500_unanswered() -> None:
    async with running(options=RARELY) as node:
        (server,) = node.servers
        server.mute.add(b"SSUBSCRIBE")
        channels = [b"room%d" % number for number in range(1200)]
        waiting = [asyncio.create_task(node.subscriptions.subscribe(channel)) for channel in channels]
        await until(lambda: server.count(b"SSUBSCRIBE") >= 490)
        await asyncio.sleep(0.05)
        assert server.count(b"SSUBSCRIBE") <= 501
        server.mute.clear()
        (writer,) = server.connections
        for command in [command for command in server.commands if command[0] == b"SSUBSCRIBE"][1:]:
            server.say(writer, [b"ssubscribe", command[1], 1])
        await asyncio.gather(*waiting)
        assert server.count(b"SSUBSCRIBE") == 1201


# Losing and finding again


async def test_everything_stands_again_after_a_cut_and_is_reported_once() -> None:
    async with running() as node:
        channels = [b"room%d" % number for number in range(700)]
        await asyncio.gather(*map(node.subscriptions.subscribe, channels))
        assert node.restored == []
        node.servers[0].cut()
        await until(lambda: sorted(node.restored) == sorted(channels))
        await until(lambda: node.is_healthy)
        assert node.topology.refreshes >= 1
        assert node.subscriptions.losses == 700
        await node.publish(b"room7", b"hello")
        await until(lambda: node.heard == [(b"room7", b"hello")])


async def test_what_was_never_confirmed_is_not_restored() -> None:
    async with running(options=RARELY) as node:
        node.servers[0].mute.add(b"SSUBSCRIBE")
        subscribing = asyncio.create_task(node.subscriptions.subscribe(b"room"))
        await until(lambda: [b"SSUBSCRIBE", b"room"] in node.servers[0].commands)
        node.servers[0].mute.clear()
        node.servers[0].cut()
        await subscribing
        assert node.restored == []


async def test_a_channel_the_server_takes_back_is_looked_up_and_placed_anew() -> None:
    async with running(2) as node:
        first, second = node.servers
        await node.subscriptions.subscribe(b"room")

        async def learn() -> None:
            node.topology.places[b"room"] = second

        node.topology.on_refresh = learn
        first.take_back(b"room")
        await until(lambda: node.restored == [b"room"])
        assert any(b"room" in channels for channels in second.connections.values())
        assert (first.accepted, second.accepted) == (1, 1)
        assert node.is_healthy


async def test_a_move_that_is_not_known_yet_is_tried_again_without_a_hot_loop() -> None:
    async with running(2) as node:
        first, second = node.servers
        await node.subscriptions.subscribe(b"room")
        first.refusals[b"room"] = "MOVED 1 127.0.0.1:1"
        first.take_back(b"room")
        await asyncio.sleep(1.2)  # what is measured: how often it tries meanwhile
        assert 3 <= first.count(b"SSUBSCRIBE") - 2 <= 8
        assert not node.is_healthy
        assert "1 subscriptions are missing" in node.subscriptions.health()[1]
        node.topology.places[b"room"] = second
        await until(lambda: node.restored == [b"room"])


async def test_channels_of_a_server_that_is_no_primary_any_more_move_to_the_new_one() -> None:
    async with running(2) as node:
        first, second = node.servers
        await asyncio.gather(*(node.subscriptions.subscribe(b"room%d" % number) for number in range(50)))

        async def learn() -> None:
            node.topology.servers = [second]

        node.topology.on_refresh = learn
        first.cut()
        await until(lambda: len(node.restored) == 50)
        await until(lambda: not first.connections)
        assert node.is_healthy


async def test_a_primary_that_was_replaced_without_a_sign_is_left_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socketspec.cluster.pubsub.subscriptions.REFRESH_EVERY", 0.1)
    async with running(2) as node:
        old, new = node.servers
        await node.subscriptions.subscribe(b"room")
        node.topology.servers = [new]
        await until(lambda: node.restored == [b"room"] and not old.connections)
        assert node.is_healthy


async def test_a_probe_channel_whose_slot_moved_costs_no_connection() -> None:
    async with running() as node:
        await node.subscriptions.subscribe(b"room")
        (server,) = node.servers
        probe = b"probe:%d" % server.address.port
        server.refusals[probe] = "MOVED 1 127.0.0.1:1"
        server.take_back(probe)
        await until(lambda: not node.is_healthy)
        server.refusals.clear()
        await until(lambda: node.is_healthy)
        assert server.accepted == 1
        assert node.restored == []


async def test_a_lookup_that_fails_or_hangs_stops_nothing() -> None:
    async with running(options=replace(QUICK, command_timeout=3)) as node:  # so long a lookup may hang
        await node.subscriptions.subscribe(b"room")

        async def fail() -> None:
            if node.topology.refreshes % 2:
                raise ConnectionError("nobody there")
            await asyncio.sleep(60)

        node.topology.on_refresh = fail
        node.servers[0].cut()
        await until(lambda: node.restored == [b"room"])
        node.servers[0].cut()
        await until(lambda: node.restored == [b"room"] * 2)


async def test_a_replica_is_trouble_though_probes_come_back_and_a_failed_lookup_alone_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socketspec.cluster.pubsub.subscriptions.REFRESH_EVERY", 0.05)
    async with running() as node:
        trouble: BackendError | None = BackendError("The Sentinels do not answer.")

        async def fail() -> None:
            if trouble is not None:
                raise trouble

        async def looked_twice() -> None:
            before = node.topology.refreshes
            await until(lambda: node.topology.refreshes > before + 1)

        node.topology.on_refresh = fail
        await looked_twice()
        assert node.is_healthy
        trouble = ReplicaError(Address("elsewhere", 1))  # what Sentinels may say of a server we do not use yet
        await looked_twice()
        assert node.is_healthy
        trouble = ReplicaError(node.servers[0].address)
        await until(lambda: not node.is_healthy)
        assert "is a replica now" in node.subscriptions.health()[1]
        await looked_twice()
        assert not node.is_healthy
        trouble = None
        await until(lambda: node.is_healthy)
        assert node.servers[0].accepted == 1


# Liveness


async def test_silence_on_a_link_that_answers_pings_is_found_and_the_link_replaced() -> None:
    async with running() as node:
        await node.subscriptions.subscribe(b"room")

        async def astray(channel: bytes, nonce: bytes) -> None:
            """Published to a server that this link does not lead to."""

        node.publishing = astray
        await until(lambda: node.servers[0].accepted >= 2, within=10)
        assert not node.is_healthy
        node.publishing = node.publish
        await until(lambda: node.is_healthy)
        assert b"room" in node.restored


async def test_a_link_that_answers_is_kept_while_publishing_fails_and_health_says_so() -> None:
    async with running() as node:

        async def fail(channel: bytes, nonce: bytes) -> None:
            raise BackendError("10,000 commands wait already")

        node.publishing = fail
        await until(lambda: "10,000 commands wait" in node.subscriptions.health()[1])
        await asyncio.sleep(2 * (QUICK.probe_interval + QUICK.probe_timeout))  # it would have been replaced by now
        assert node.servers[0].accepted == 1
        node.publishing = node.publish
        await until(lambda: node.is_healthy)


async def test_publishing_that_fails_at_first_buys_a_wrong_link_no_time() -> None:
    async with running() as node:
        tries = 0

        async def fail_then_astray(channel: bytes, nonce: bytes) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise BackendError("reset by peer")

        node.publishing = fail_then_astray
        await until(lambda: node.servers[0].accepted >= 2, within=QUICK.probe_interval + 2 * QUICK.probe_timeout + 0.5)
        assert tries >= 3


async def test_a_publish_that_hangs_is_cancelled_and_a_dead_link_is_found_meanwhile() -> None:
    async with running() as node:
        cancelled: list[bytes] = []

        async def hang(channel: bytes, nonce: bytes) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(nonce)

        node.publishing = hang
        node.servers[0].mute.add(b"PING")
        await until(lambda: cancelled and not node.is_healthy, within=10)
        await until(lambda: "did not answer" in node.subscriptions.health()[1])


async def test_a_busy_event_loop_does_not_count_against_the_link() -> None:
    async with running() as node:
        for _ in range(3):
            asyncio.get_running_loop().call_later(0.01, time.sleep, 2 * QUICK.probe_timeout)
            await asyncio.sleep(0.2)
        await until(lambda: node.is_healthy)
        assert node.servers[0].accepted == 1


async def test_time_paused_for_deliveries_does_not_count_against_the_link_but_health_tells() -> None:
    async with running() as node:
        await node.subscriptions.subscribe(b"room")
        gate = asyncio.Event()
        node.behind = _wait(gate)
        await node.publish(b"room", b"1")
        await until(lambda: node.heard)
        node.behind = None
        await node.publish(b"room", b"2")
        await until(lambda: not node.is_healthy)
        assert "deliveries that are behind" in node.subscriptions.health()[1]
        await asyncio.sleep(2 * QUICK.probe_timeout)  # it would have been replaced by now
        assert node.heard == [(b"room", b"1")]
        gate.set()
        await until(lambda: node.heard == [(b"room", b"1"), (b"room", b"2")] and node.is_healthy)
        assert node.servers[0].accepted == 1


async def _wait(gate: asyncio.Event) -> None:
    await gate.wait()


UNASKED = b"*3\r\n$10\r\nssubscribe\r\n$1\r\nx\r\n:9\r\n"


@pytest.mark.parametrize("nonsense", [b"?what\r\n", b"*0\r\n", b"+OK\r\n", UNASKED, b"-ERR nobody asked\r\n"])
async def test_a_server_that_says_what_nobody_asked_for_loses_the_link_and_nothing_else(nonsense: bytes) -> None:
    async with running() as node:
        await node.subscriptions.subscribe(b"room")
        node.servers[0].mute.add(b"PING")  # else it would pass for the answer to one
        await until(lambda: node.servers[0].count(b"PING"))
        node.servers[0].mute.clear()
        node.servers[0].cut()
        await until(lambda: node.restored == [b"room"] and node.is_healthy)
        node.servers[0].raw(nonsense)
        await until(lambda: node.restored == [b"room"] * 2 and node.is_healthy)


async def test_a_server_that_hangs_up_at_once_is_not_stormed() -> None:
    async with running() as node:
        (server,) = node.servers
        server.hangs_up = True
        server.cut()
        await asyncio.sleep(2)  # what is measured: how often it tries meanwhile
        assert 4 <= server.accepted <= 9
        server.hangs_up = False
        await until(lambda: node.is_healthy)


async def test_a_receiver_that_raises_is_logged_and_the_link_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as node:
        await node.subscriptions.subscribe(b"room")
        node.behind = _fail()
        await node.publish(b"room", b"1")
        await until(lambda: "Waiting for deliveries" in caplog.text)
        node.behind = None
        await node.publish(b"room", b"2")
        await until(lambda: node.heard[-1] == (b"room", b"2"))
        assert node.servers[0].accepted == 1


async def _fail() -> None:
    raise RuntimeError("a bug in a handler")


# Start and stop


async def test_the_link_logs_in_and_names_itself() -> None:
    async with running() as node:
        assert node.servers[0].commands[:2] == [[b"AUTH", b"ann", b"secret"], [b"CLIENT", b"SETNAME", b"test"]]


@pytest.mark.parametrize(
    ("greeting", "mute", "words"),
    [
        (b"-ERR max number of clients reached\r\n", b"", "max number of clients"),
        (b"-WRONGPASS invalid username-password pair\r\n", b"", "WRONGPASS"),
        (b"", b"PING", r"did not answer within 0\.4 s"),
        (b"", b"SSUBSCRIBE", "has not heard itself yet|not confirmed"),
    ],
)
async def test_a_start_that_cannot_hear_raises_and_leaves_nothing(greeting: bytes, mute: bytes, words: str) -> None:
    server = FakeServer()
    server.greeting, server.mute = greeting, {mute}
    await server.start()
    node = Node(server, options=IMPATIENT)
    try:
        with pytest.raises(BackendError, match=words) as raised:
            await node.subscriptions.start()
        assert "secret" not in str(raised.value)
        assert len(node.tasks) == 0
        await until(lambda: not server.connections)
    finally:
        await server.stop()


async def test_stop_ends_tasks_sockets_and_whoever_waits() -> None:
    before = asyncio.all_tasks()
    server = FakeServer()
    await server.start()
    node = Node(server)
    await node.subscriptions.start()
    await node.subscriptions.subscribe(b"room")
    node.behind = _wait(asyncio.Event())
    await node.publish(b"room", b"1")
    server.mute.add(b"SSUBSCRIBE")
    waiting = asyncio.create_task(node.subscriptions.subscribe(b"other"))
    await until(lambda: [b"SSUBSCRIBE", b"other"] in server.commands)
    await node.subscriptions.stop()
    with pytest.raises(BackendError, match="stopped"):
        await waiting
    with pytest.raises(BackendError, match="not started"):
        await node.subscriptions.subscribe(b"room")
    assert node.subscriptions.health() == (False, "the subscriptions are not started")
    await until(lambda: not server.connections)
    await server.stop()
    assert asyncio.all_tasks() <= before
    await node.subscriptions.stop()
