"""The runner on servers that are played: what goes into a pipeline, in which order, how often, and for how long."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import exceptions as replied

from socketspec.cluster.commands.calls import Queue
from socketspec.cluster.commands.command import Command, Script
from socketspec.cluster.commands.failures import UnsureError
from socketspec.cluster.commands.runner import MAX_BATCH, MAX_BATCH_BYTES, Runner
from socketspec.cluster.options import Address, RedisOptions
from socketspec.cluster.servers.backoff import Backoff
from socketspec.cluster.servers.shard import LinkOptions, NotSentError, unnoticed
from socketspec.concurrency.tasks import Tasks
from socketspec.errors import BackendError

A, B = Address("a", 1), Address("b", 1)

Answer = Callable[[list[Any]], Any]


class PlayedServers:
    """A topology whose servers answer with `answer`. Keys that begin with b"b" belong to B, others to A."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.link = LinkOptions()
        self.answer: Answer = answer or (lambda words: words[1])
        self.pipelines: list[list[list[Any]]] = []
        self.open = {A: asyncio.Event(), B: asyncio.Event()}
        self.is_searched = asyncio.Event()
        """While it is not set, a search for the servers goes on."""
        self.release()
        self.is_connected = True
        self.refreshes = 0
        self.refresh_error: BackendError | None = None
        self.on_refresh: Callable[[], None] = lambda: None
        self.owner: Callable[[bytes], Address] = lambda key: B if key.startswith(b"b") else A
        self.under_way = 0
        self.most_under_way = 0

    def hold(self, *addresses: Address) -> None:
        """Answer nothing until `release`."""
        for address in addresses:
            self.open[address].clear()

    def release(self) -> None:
        for gate in (*self.open.values(), self.is_searched):
            gate.set()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    trouble: str = ""

    async def ask(self, refusal: Any, words: Any) -> Any:
        return refusal

    async def refresh(self, *, routine: bool = False) -> None:
        self.refreshes += 1
        self.on_refresh()
        await self.is_searched.wait()
        if self.refresh_error is not None:
            raise self.refresh_error

    async def confirm(self, address: Address, since: float) -> None:
        pass

    def addresses(self) -> Sequence[Address]:
        return (A, B)

    def address_for(self, channel: bytes) -> Address | None:
        return self.owner(channel)

    def tag_for(self, address: Address) -> str:
        return str(address)

    async def execute(
        self, words: Sequence[Sequence[Any]], begun: Callable[[], object] = unnoticed, *, has_deadline: bool = False
    ) -> list[Any]:
        if self.is_connected:
            begun()
        pipeline = [list(command) for command in words]
        self.pipelines.append(pipeline)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            await self.open[self.owner(_key(pipeline[0]))].wait()
        finally:
            self.under_way -= 1
        return [self.answer(command) for command in pipeline]

    def sent_keys(self) -> list[list[bytes]]:
        """The keys of every pipeline."""
        return [[_key(command) for command in pipeline] for pipeline in self.pipelines]


def _key(words: list[Any]) -> bytes:
    key = words[3] if words[0].startswith("EVAL") else words[1]
    assert isinstance(key, bytes)
    return key


def get(key: str) -> Command:
    return Command("SPUBLISH", None, (key.encode(),), (b"x",))


@asynccontextmanager
async def running(servers: PlayedServers, **options: Any) -> AsyncIterator[Runner]:
    tasks = Tasks()
    runner = Runner(servers, RedisOptions(**options), tasks)
    await runner.start()
    yield runner
    await runner.stop()
    await asyncio.sleep(0)  # a task that has ended is struck off in the next turn
    assert len(tasks) == 0


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110 # what is waited for has no event
            await asyncio.sleep(0.001)


def scripted(*answers: Any) -> Answer:
    """Each command gets the next answer; after the last, what it asked for."""
    rest = list(answers)

    def answer(words: list[Any]) -> Any:
        return rest.pop(0) if rest else _key(words)

    return answer


async def test_commands_of_one_turn_share_a_pipeline_and_get_their_own_replies() -> None:
    servers = PlayedServers()
    async with running(servers) as runner:
        replies = await asyncio.gather(*(runner.run(get(f"k{number}")) for number in range(5)))
    assert replies == [f"k{number}".encode() for number in range(5)]
    assert servers.sent_keys() == [[f"k{number}".encode() for number in range(5)]]


async def test_commands_gather_while_a_pipeline_is_under_way_and_keep_their_order() -> None:
    servers = PlayedServers()
    servers.hold(A)
    async with running(servers) as runner:
        names = [f"k{number}" for number in range(20)]
        calls = []
        for name in names:
            calls.append(asyncio.create_task(runner.run(get(name))))
            await asyncio.sleep(0.0005)
        await until(lambda: len(servers.pipelines) == 1)
        servers.release()
        await asyncio.gather(*calls)
    assert servers.most_under_way == 1
    assert len(servers.pipelines) == 2
    assert [key for keys in servers.sent_keys() for key in keys] == [name.encode() for name in names]


async def test_a_shard_that_does_not_answer_holds_up_no_other() -> None:
    servers = PlayedServers()
    servers.hold(A)
    async with running(servers) as runner:
        stuck = asyncio.create_task(runner.run(get("a")))
        await until(lambda: len(servers.pipelines) == 1)
        assert await runner.run(get("b")) == b"b"
        assert not stuck.done()
        servers.release()
        await stuck


async def test_a_long_read_holds_up_no_publish() -> None:
    servers = PlayedServers()
    read_is_done = asyncio.Event()
    execute = servers.execute

    async def slow_reads(
        words: Sequence[Sequence[Any]], begun: Callable[[], object] = unnoticed, *, has_deadline: bool = False
    ) -> list[Any]:
        if words[0][0] == "XRANGE":
            await read_is_done.wait()
        return await execute(words, begun, has_deadline=has_deadline)

    servers.execute = slow_reads  # type: ignore[method-assign] # these servers are slow in one respect
    async with running(servers) as runner:
        read = asyncio.create_task(runner.run(Command("XRANGE", None, (b"k",))))
        await asyncio.sleep(0.01)
        assert await runner.run(get("k")) == b"k"
        assert not read.done()
        read_is_done.set()
        await read


async def test_a_pipeline_has_a_bounded_number_of_commands_and_of_bytes() -> None:
    servers = PlayedServers()
    async with running(servers) as runner:
        await runner.run_all([get(f"k{number}") for number in range(MAX_BATCH + 88)])
        assert list(map(len, servers.pipelines)) == [MAX_BATCH, 88]
        servers.pipelines.clear()
        await runner.run_all([Command("SPUBLISH", None, (b"k",), (b"x" * (MAX_BATCH_BYTES // 2),)) for _ in range(4)])
        assert list(map(len, servers.pipelines)) == [2, 2]


async def test_a_script_that_is_not_loaded_is_sent_in_full_once() -> None:
    script = Script("begin")

    def answer(words: list[Any]) -> Any:
        return replied.NoScriptError("No matching script") if words[0] == "EVALSHA" else words[1]

    servers = PlayedServers(answer)
    async with running(servers) as runner:
        command = script.command([b"k"], 1)
        assert await runner.run(command) == script.source
    assert [pipeline[0][0] for pipeline in servers.pipelines] == ["EVALSHA", "EVAL"]
    assert servers.refreshes == 0


async def test_a_server_that_never_knows_a_script_is_an_error() -> None:
    servers = PlayedServers(lambda _: replied.NoScriptError("No matching script"))
    async with running(servers) as runner:
        with pytest.raises(BackendError, match="begin was refused"):
            await runner.run(Script("begin").command([b"k"]))
    assert len(servers.pipelines) == 2


@pytest.mark.parametrize(
    "error",
    [
        replied.MovedError("1 h:1"),
        replied.AskError("1 h:1"),
        replied.ReadOnlyError("You can't write against a read only replica."),
        replied.BusyLoadingError("Redis is loading the dataset in memory"),
        replied.MasterDownError("Link with MASTER is down"),
        replied.ClusterDownError("The cluster is down"),
        replied.TryAgainError("Multiple keys request during rehashing of slot"),
        replied.ResponseError("BUSY Redis is busy running a script."),
        NotSentError(BackendError("connection refused")),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_was_not_carried_out_is_tried_again_after_finding_the_servers_anew(error: Exception) -> None:
    servers = PlayedServers(scripted(error))
    async with running(servers) as runner:
        assert await runner.run(get("k")) == b"k"
    assert len(servers.pipelines) == 2
    assert servers.refreshes == 1


async def test_what_is_tried_again_goes_before_what_came_later() -> None:
    moved = replied.MovedError("1 h:1")
    servers = PlayedServers(scripted(b"k0", moved, moved))
    async with running(servers) as runner:
        first = [asyncio.create_task(runner.run(get(f"k{number}"))) for number in range(3)]
        await until(lambda: servers.refreshes == 1)
        later = [asyncio.create_task(runner.run(get(f"k{number}"))) for number in range(3, 5)]
        await asyncio.gather(*first, *later)
    assert servers.sent_keys() == [[b"k0", b"k1", b"k2"], [b"k1", b"k2", b"k3", b"k4"]]


async def test_after_a_failover_the_commands_go_to_the_new_primary_at_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[str] = []

    def pause(_: Backoff) -> float:
        pauses.append("one")
        return 0.0

    monkeypatch.setattr(Backoff, "next", pause)
    servers = PlayedServers(scripted(*[NotSentError(BackendError("gone"))] * 2))

    def fail_over() -> None:
        servers.owner = lambda _key: B

    servers.on_refresh = fail_over
    async with running(servers) as runner:
        await runner.run_all([get("a1"), get("a2")])
    assert pauses == [], "it is another server"
    assert servers.sent_keys() == [[b"a1", b"a2"], [b"a1", b"a2"]]


async def test_tries_come_with_growing_pauses_and_end_at_the_deadline_as_not_carried_out() -> None:
    servers = PlayedServers(lambda _: NotSentError(BackendError("Cannot connect to h:1: connection refused.")))
    servers.is_connected = False
    async with running(servers, command_timeout=0.4) as runner:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(BackendError, match=r"was not carried out.*0\.4 s.*connection refused"):
            await runner.run(get("k"))
        assert 0.39 <= loop.time() - began < 3
        assert runner.failed == 1
    assert 3 <= len(servers.pipelines) <= 8


@pytest.mark.parametrize("is_raised", [False, True])
@pytest.mark.parametrize("error", [replied.ConnectionError("closed"), replied.TimeoutError("no answer"), OSError("no")])
async def test_what_may_have_been_carried_out_is_never_sent_twice(error: Exception, is_raised: bool) -> None:
    def answer(_: list[Any]) -> Any:
        if is_raised:
            raise error
        return error

    servers = PlayedServers(answer)
    async with running(servers) as runner:
        with pytest.raises(BackendError, match="whether it was carried out is unknown"):
            await runner.run(get("k"))
        assert len(servers.pipelines) == 1
        await until(lambda: servers.refreshes == 1)  # the server may be gone


async def test_a_server_that_does_not_answer_costs_a_command_its_time_and_no_more() -> None:
    servers = PlayedServers()
    servers.hold(A)
    async with running(servers, command_timeout=0.1) as runner:
        loop = asyncio.get_running_loop()
        began = loop.time()
        sent = asyncio.create_task(runner.run(get("k1")))
        await until(lambda: len(servers.pipelines) == 1)
        queued = asyncio.create_task(runner.run(get("k2")))
        with pytest.raises(BackendError, match=r"SPUBLISH was sent to Redis, but 0\.1 s were over .* unknown"):
            await sent
        assert 0.09 <= loop.time() - began < 2
        with pytest.raises(BackendError):
            await queued
        assert loop.time() - began < 2


async def test_a_command_that_moves_to_where_later_ones_wait_ends_at_its_own_deadline() -> None:
    servers = PlayedServers(scripted(NotSentError(BackendError("gone"))))
    servers.hold(A, B)
    async with running(servers, command_timeout=1.0) as runner:
        loop = asyncio.get_running_loop()
        began = loop.time()
        moves = asyncio.create_task(runner.run(get("a")))
        await asyncio.sleep(0.5)
        stays = asyncio.create_task(runner.run(get("b")))
        await until(lambda: len(servers.pipelines) == 2)
        servers.owner = lambda _key: B
        servers.open[A].set()
        with pytest.raises(BackendError, match="was not carried out"):
            await moves
        assert 0.95 <= loop.time() - began < 1.4
        assert not stays.done()
        with pytest.raises(UnsureError):
            await stays


async def test_what_is_kept_for_a_server_goes_when_nothing_was_asked_of_it_for_a_while() -> None:
    def queues() -> int:
        return sum(isinstance(found, Queue) for found in gc.get_objects())

    before = queues()
    servers = PlayedServers()
    async with running(servers, command_timeout=0.1) as runner:
        for _ in range(3):
            await runner.run_all([get("a"), get("b")])
            assert queues() == before + 2
        await until(lambda: queues() == before)
        assert await runner.run(get("a")) == b"a"


async def test_a_command_whose_connection_is_not_there_in_time_was_not_sent() -> None:
    servers = PlayedServers()
    servers.hold(A)
    servers.is_connected = False
    async with running(servers, command_timeout=0.1) as runner:
        with pytest.raises(BackendError, match=r"SPUBLISH was not carried out: 0\.1 s were over") as caught:
            await runner.run(get("k"))
        assert not isinstance(caught.value, UnsureError)


async def test_a_caller_may_have_less_time_than_a_command_gets() -> None:
    servers = PlayedServers()
    servers.hold(A)
    async with running(servers, command_timeout=5) as runner:
        loop = asyncio.get_running_loop()
        began = loop.time()
        calls = asyncio.gather(runner.run(get("k1"), began + 9), runner.run(get("k2")))
        with pytest.raises(UnsureError):
            await runner.run(get("k3"), began + 0.1)
        assert isinstance((await runner.outcomes([get("k4")], began + 0.2))[0], BackendError)
        assert loop.time() - began < 2
        servers.release()
        assert list(await calls) == [b"k1", b"k2"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (replied.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "maxmemory"),
        (replied.NoPermissionError("this user has no permissions"), "ACL SETUSER"),
        (replied.AuthenticationError("Authentication required."), "not logged in"),
        (replied.ResponseError("WRONGTYPE Operation against a key"), "WRONGTYPE"),
        (replied.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF"),
    ],
)
async def test_a_refusal_is_an_error_at_once_that_says_what_to_do(error: Exception, sentence: str) -> None:
    servers = PlayedServers(scripted(error))
    async with running(servers) as runner:
        with pytest.raises(BackendError, match=sentence):
            await runner.run(get("k"))
        assert await runner.run(get("k")) == b"k"
    assert servers.refreshes == 0


async def test_a_refusal_of_one_command_leaves_the_others_in_its_pipeline_alone() -> None:
    servers = PlayedServers(scripted(b"1", replied.ResponseError("ERR no"), b"3"))
    async with running(servers) as runner:
        replies = await asyncio.gather(*(runner.run(get("k")) for _ in range(3)), return_exceptions=True)
    assert (replies[0], replies[2]) == (b"1", b"3")
    assert isinstance(replies[1], BackendError)


async def test_run_all_raises_the_first_error_when_all_have_ended() -> None:
    servers = PlayedServers(scripted(b"1", replied.ResponseError("ERR first"), replied.ResponseError("ERR second")))
    async with running(servers) as runner:
        with pytest.raises(BackendError, match="ERR first"):
            await runner.run_all([get(f"k{number}") for number in range(4)])
        assert len(servers.pipelines[0]) == 4
        assert await runner.run_all([]) == []


async def test_a_caller_that_was_cancelled_leaves_no_trace() -> None:
    servers = PlayedServers()
    servers.hold(A)
    async with running(servers) as runner:
        first = asyncio.create_task(runner.run(get("k1")))
        await until(lambda: len(servers.pipelines) == 1)
        cancelled = [asyncio.create_task(runner.run(get("k2"))), asyncio.create_task(runner.run_all([get("k3")] * 2))]
        last = asyncio.create_task(runner.run(get("k4")))
        await asyncio.sleep(0)  # all of them are queued
        for task in (first, *cancelled):
            task.cancel()
        await asyncio.wait((first, *cancelled))
        servers.release()
        assert await last == b"k4"
    assert servers.sent_keys() == [[b"k1"], [b"k4"]]
    assert runner.failed == 0


async def test_beyond_max_pending_a_command_is_refused_at_once() -> None:
    servers = PlayedServers()
    servers.hold(A)
    async with running(servers, max_pending=3) as runner:
        calls = [asyncio.create_task(runner.run(get("k")))]
        await until(lambda: len(servers.pipelines) == 1)
        calls += [asyncio.create_task(runner.run(get("k"))) for _ in range(3)]
        await asyncio.sleep(0)  # all of them are queued
        with pytest.raises(BackendError, match=r"not sent: 3 commands of 6 bytes wait.*max_pending"):
            await runner.run(get("k"))
        calls[1].cancel()  # makes room
        await asyncio.wait(calls[1:2])
        calls.append(asyncio.create_task(runner.run(get("k"))))
        await asyncio.sleep(0)
        servers.release()
        replies = await asyncio.gather(*calls[2:])
        assert replies == [b"k"] * 3


async def test_beyond_max_pending_bytes_a_command_is_refused_at_once() -> None:
    servers = PlayedServers()
    servers.hold(A)
    async with running(servers, max_pending_bytes=1000) as runner:
        calls = [asyncio.create_task(runner.run(get("k")))]
        await until(lambda: len(servers.pipelines) == 1)
        calls += [asyncio.create_task(runner.run(get("k" * 400))) for _ in range(2)]
        await asyncio.sleep(0)  # all of them are queued
        assert runner.pending_bytes == 802
        with pytest.raises(BackendError, match=r"2 commands of 802 bytes wait.*max_pending_bytes"):
            await runner.run(get("k" * 198))
        calls.append(asyncio.create_task(runner.run(get("k" * 197))))
        calls[1].cancel()  # makes room
        await asyncio.wait(calls[1:2])
        calls.append(asyncio.create_task(runner.run(get("k" * 400))))
        await asyncio.sleep(0)
        servers.release()
        await asyncio.gather(calls[0], *calls[2:])
        assert runner.pending_bytes == 0
        assert await runner.run(get("k" * 5000)) == b"k" * 5000  # alone, it may be larger


async def test_what_is_tried_again_overdue_or_left_at_the_end_is_counted_once() -> None:
    servers = PlayedServers(lambda _: replied.ReadOnlyError("read only"))
    async with running(servers, command_timeout=0.1) as runner:
        outcomes = await asyncio.gather(*(runner.run(get("k" * 100)) for _ in range(20)), return_exceptions=True)
        assert all(isinstance(outcome, BackendError) for outcome in outcomes)
    assert runner.pending_bytes == 0


async def test_a_failing_search_for_the_servers_is_the_reason_that_is_given() -> None:
    servers = PlayedServers(lambda _: replied.ReadOnlyError("read only"))
    servers.refresh_error = BackendError("No Sentinel answers.")
    async with running(servers, command_timeout=0.2) as runner:
        with pytest.raises(BackendError, match="No Sentinel answers"):
            await runner.run(get("k"))


async def test_stopping_lets_a_pipeline_end_and_fails_what_cannot() -> None:
    servers = PlayedServers()
    tasks = Tasks()
    runner = Runner(servers, RedisOptions(), tasks)
    with pytest.raises(BackendError, match="not started"):
        await runner.run(get("a"))
    await runner.start()
    servers.hold(B)
    ends = asyncio.create_task(runner.run(get("a")))
    stuck = asyncio.create_task(runner.run(get("b1")))
    await until(lambda: len(servers.pipelines) == 2)
    queued = asyncio.create_task(runner.run(get("b2")))
    await asyncio.sleep(0)  # it is queued
    await runner.stop()
    assert await ends == b"a"
    with pytest.raises(BackendError, match=r"was stopped.*unknown"):
        await stuck
    with pytest.raises(BackendError, match=r"was not carried out.*was stopped"):
        await queued
    with pytest.raises(BackendError, match="not started, or was stopped"):
        await runner.run(get("a"))
    assert len(tasks) == 0


@pytest.mark.parametrize("error", [None, NotSentError(BackendError("gone")), replied.ResponseError("ERR no")])
async def test_whatever_became_of_commands_they_make_room_for_others(error: Exception | None) -> None:
    servers = PlayedServers()
    async with running(servers, max_pending=3, command_timeout=0.2) as runner:

        async def call(count: int) -> list[asyncio.Task[Any]]:
            calls = [asyncio.create_task(runner.run(get("k"))) for _ in range(count)]
            await asyncio.sleep(0)
            return calls

        if error is None:
            servers.hold(A)
        else:
            servers.answer = lambda _words: error
            servers.is_searched.clear()
        calls = await call(1)
        await until(lambda: len(servers.pipelines) == 1)
        for cancelled in await call(2):
            cancelled.cancel()
        calls += await call(2)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {isinstance(outcome, BackendError) for outcome in outcomes} == {True}
        servers.release()
        servers.answer = _key
        for outcome in await asyncio.gather(*await call(3), return_exceptions=True):
            assert "max_pending" not in str(outcome)
