"""Publishers against real servers: from threads, forks and event loops, and with the servers in trouble."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from redis.crc import key_slot

from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.errors import BackendError
from socketspec.protocol.orders import control_topic
from socketspec.protocol.publications import Publication, Topic
from socketspec.session.revocation import revocation_subjects
from tests.cluster.ears import ROOMS, hearing, reads, refused, room
from tests.played_sentinels import played_sentinels
from tests.servers import Cluster, Sentinels, Server
from tests.support import ROOT


def test_a_room_hears_what_is_sent_to_it_once(standalone_server: Server, prefix: str) -> None:
    with (
        hearing(standalone_server, room("r"), prefix) as ear,
        Publisher(standalone_server.url, prefix=prefix, rooms=ROOMS) as publisher,
    ):
        receipt = publisher.broadcast("r", "hello", {"n": 1}, exclude="somebody")
        assert (receipt.nodes, receipt.position) == (1, None)
        assert ear.hear() == Publication(event="hello", payload=b'{"n":1}', exclude=("somebody",))
        assert publisher.broadcast("empty", "hello").nodes == 0


def test_a_repeated_key_is_kept_and_sent_once(standalone_server: Server, prefix: str) -> None:
    with (
        hearing(standalone_server, room("log:1"), prefix) as ear,
        Publisher(standalone_server.url, prefix=prefix, rooms=ROOMS) as publisher,
    ):
        first = publisher.broadcast("log:1", "a", {"n": 1}, idempotency_key="task 7")
        again = publisher.broadcast("log:1", "a", {"n": 1}, idempotency_key="task 7")
        assert first.position is not None
        assert first.position == again.position
        publisher.broadcast("log:1", "end")
        assert [ear.hear().event for _ in range(2)] == ["a", "end"]
        assert [message.event for message in publisher.history("log:1")] == ["a", "end"]
        assert [message.event for message in publisher.history("log:1", since=first.position)] == ["end"]
        assert [message.payload for message in publisher.history("log:1", limit=2)] == [{"n": 1}, {}]


def test_who_does_not_know_the_declaration_keeps_what_the_nodes_keep(standalone_server: Server, prefix: str) -> None:
    with (
        Publisher(standalone_server.url, prefix=prefix, rooms=ROOMS) as knowing,
        Publisher(standalone_server.url, prefix=prefix) as unknowing,
    ):
        assert unknowing.broadcast("log:2", "before").position is None
        knowing.broadcast("log:2", "one")
        receipt = unknowing.broadcast("log:2", "two")
        assert receipt.position is not None
        assert receipt.position.offset == 2
        assert [message.event for message in unknowing.history("log:2")] == ["one", "two"]


def test_everybody_and_a_user_are_reached_in_their_namespace(standalone_server: Server, prefix: str) -> None:
    with (
        hearing(standalone_server, Topic("/chat", "all", ""), prefix) as everybody,
        hearing(standalone_server, Topic("/chat", "user", "ü ser"), prefix) as user,
        Publisher(standalone_server.url, prefix=prefix, namespace="/chat") as publisher,
    ):
        assert publisher.broadcast_all("news", {"a": 1}).nodes == 1
        assert everybody.hear().payload == b'{"a":1}'
        assert publisher.send_to_user("ü ser", "mail").nodes == 1
        assert user.hear().event == "mail"
        assert publisher.send_to_user("ü ser", "mail", namespace="/").nodes == 0


def test_a_revocation_is_recorded_and_told_and_a_disconnect_is_told(standalone_server: Server, prefix: str) -> None:
    with (
        hearing(standalone_server, control_topic("/"), prefix) as control,
        Publisher(standalone_server.url, prefix=prefix) as publisher,
    ):
        publisher.revoke(user="eve", token_id="jti", ttl=60)
        for subject in revocation_subjects("/", user="eve", token_id="jti"):
            assert 0 < standalone_server.ask("PTTL", Keys(prefix).revoked(subject)) <= 60_000
        assert control.hear().event == "revoke"
        assert publisher.disconnect_user("eve", reason="kicked", code=4100) == 0
        order = control.hear()
        assert (order.event, order.payload) == ("disconnect", b'{"code":4100,"reason":"kicked","user":"eve"}')


def test_many_are_sent_in_few_round_trips_and_in_order(standalone_server: Server, prefix: str) -> None:
    with (
        hearing(standalone_server, room("log:3"), prefix) as ear,
        Publisher(standalone_server.url, prefix=prefix, rooms=ROOMS) as publisher,
    ):
        before = reads(standalone_server)
        receipts = publisher.broadcast_many(("log:3", "n", {"n": n}) for n in range(1201))
        # One round trip for each would be 1,201 reads. How many pieces a batch arrives in is the kernel's to say.
        assert reads(standalone_server) - before < 400
        assert [receipt.position.offset for receipt in receipts if receipt.position] == list(range(1, 1202))
        assert [ear.hear().payload for _ in range(1201)] == [b'{"n":%d}' % n for n in range(1201)]


def test_threads_share_a_publisher_and_a_few_connections(standalone_server: Server, prefix: str) -> None:
    name = f"name-{prefix}"
    with Publisher(standalone_server.url, prefix=prefix, rooms=ROOMS, client_name=name) as publisher:
        with ThreadPoolExecutor(20) as pool:
            receipts = list(pool.map(lambda n: publisher.broadcast("log:4", "n", {"n": n}), range(500)))
        offsets = [receipt.position.offset for receipt in receipts if receipt.position is not None]
        assert sorted(offsets) == list(range(1, 501))
        assert 1 <= standalone_server.ask("CLIENT", "LIST").count(f"name={name} ") <= 20
    deadline = time.monotonic() + 5
    while f"name={name} " in standalone_server.ask("CLIENT", "LIST"):
        assert time.monotonic() < deadline, "close() left connections open"
        time.sleep(0.01)


def _child(publisher: Publisher, answers: Any) -> None:
    receipt = publisher.broadcast("log:5", "child")
    answers.put(receipt.position.offset if receipt.position is not None else None)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # in a process with threads: which is the point
def test_a_forked_child_has_connections_of_its_own(standalone_server: Server, prefix: str) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    stop = threading.Event()
    with Publisher(standalone_server.url, prefix=prefix, rooms=ROOMS) as publisher:
        publisher.broadcast("log:5", "parent")

        def keep_busy() -> None:
            while not stop.is_set():
                publisher.broadcast("other", "n")

        thread = threading.Thread(target=keep_busy)  # holds the locks now and then, also while we fork
        thread.start()
        try:
            children = [context.Process(target=_child, args=(publisher, answers)) for _ in range(4)]
            for child in children:
                child.start()
            offsets = [answers.get(timeout=20) for _ in children]
            for child in children:
                child.join(20)
        finally:
            stop.set()
            thread.join()
        assert sorted(offsets) == [2, 3, 4, 5]
        assert [child.exitcode for child in children] == [0] * 4
        receipt = publisher.broadcast("log:5", "parent")
        assert receipt.position is not None
        assert receipt.position.offset == 6


def test_neither_fastapi_nor_an_event_loop_is_needed(standalone_server: Server, prefix: str) -> None:
    source = (
        "import sys; from socketspec.cluster import Publisher\n"
        f"print(Publisher({standalone_server.url!r}, prefix={prefix!r}).broadcast('r', 'e').nodes)\n"
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'redis.asyncio'} & set(sys.modules) - {'redis.asyncio'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=30, cwd=ROOT, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n[]\n", "")


# --- trouble


def test_an_error_in_time_where_nobody_listens() -> None:
    url, timeout = refused()
    began = time.monotonic()
    with pytest.raises(BackendError, match=r"within 0\.6 s, so the message was not sent\..*Connection refused"):
        Publisher(url, timeout=timeout).broadcast("r", "e")
    assert time.monotonic() - began < timeout + 0.5


def test_an_error_in_time_where_the_server_hangs_says_that_it_may_have_been_sent(server: Server) -> None:
    with Publisher(server.url, timeout=0.6) as publisher:
        publisher.broadcast("r", "e")
        server.stop_for()
        began = time.monotonic()
        with pytest.raises(BackendError, match="may have been executed, or not"):
            publisher.broadcast("r", "e")
        assert time.monotonic() - began < 1.1
        server.cont()
        assert publisher.broadcast("r", "e").nodes == 0


def test_a_server_that_comes_back_in_time_costs_a_delay_only(server: Server) -> None:
    with Publisher(server.url, timeout=10) as publisher:
        publisher.broadcast("r", "e")
        server.kill()
        thread = threading.Timer(0.7, server.restart)
        thread.start()
        try:
            began = time.monotonic()
            assert publisher.broadcast("r", "e").nodes == 0
            assert time.monotonic() - began > 0.5
        finally:
            thread.join()


def test_a_connection_that_was_closed_meanwhile_is_not_used_again(server: Server, prefix: str) -> None:
    with Publisher(server.url, prefix=prefix, rooms=ROOMS) as publisher:
        for number in range(1, 21):
            receipt = publisher.broadcast("log:6", "e")
            assert receipt.position is not None
            assert receipt.position.offset == number  # each once
            server.drop_clients()


def test_a_server_that_forgot_its_scripts_is_told_them_again(server: Server) -> None:
    with Publisher(server.url, rooms=ROOMS) as publisher:
        publisher.broadcast("log:7", "e")
        server.ask("SCRIPT", "FLUSH")
        receipts = publisher.broadcast_many(("log:7", "e", None) for _ in range(250))
        assert [receipt.position.offset for receipt in receipts if receipt.position] == list(range(2, 252))


def test_a_full_server_refuses_what_it_would_have_to_keep_in_a_sentence(
    new_server: Callable[..., Server],
) -> None:
    server = new_server("--maxmemory", "1", "--maxmemory-policy", "noeviction")
    with Publisher(server.url, rooms=ROOMS) as publisher:
        with pytest.raises(BackendError, match="memory is full"):
            publisher.broadcast("log:8", "e")
        with pytest.raises(BackendError, match=r"^None of 3 messages was sent\. .* is number 1: "):
            publisher.broadcast_many([("log:8", "e", None)] * 3)


def test_a_password_is_used_and_a_wrong_one_is_an_error_at_once(new_server: Callable[..., Server]) -> None:
    server = new_server(password="right")
    with Publisher(server.url) as publisher:
        assert publisher.broadcast("r", "e").nodes == 0
    for url, complaint in (
        (server.url.replace("right", "wrong"), "user or password is wrong"),
        (f"redis://127.0.0.1:{server.port}", "needs a password"),
        (f"{server.url.rstrip('/')}/99", "DB index is out of range"),
    ):
        began = time.monotonic()
        with (
            pytest.raises(BackendError, match=f"^The message was not sent: .*{complaint}") as caught,
            Publisher(url) as publisher,
        ):
            publisher.broadcast("r", "e")
        assert "wrong@" not in str(caught.value)
        assert time.monotonic() - began < 2


def test_what_is_not_sent_for_a_wrong_login_says_so_however_many_it_was(new_server: Callable[..., Server]) -> None:
    server = new_server(password="right")
    for url in (server.url.replace("right", "wrong"), f"{server.url}".replace("redis://", "redis+cluster://")):
        with Publisher(url, timeout=1) as publisher:
            with pytest.raises(BackendError, match=r"^None of 2 messages was sent\..*: The message was not sent: "):
                publisher.broadcast_many([("r", "e", None)] * 2)
            with pytest.raises(BackendError, match=r"^The revocation was not sent: "):
                publisher.revoke(user="u", ttl=60)
    with pytest.raises(BackendError, match="closed, so the message was not sent"):
        publisher.broadcast("r", "e")


def test_a_replica_is_sent_nothing_whether_it_was_one_before_or_has_become_one(
    new_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, primary = new_server(), new_server()
    with Publisher(server.url, timeout=0.5) as publisher, Publisher(server.url, timeout=0.5) as newcomer:
        publisher.broadcast("r", "e")
        server.ask("REPLICAOF", primary.host, primary.port)
        monkeypatch.setattr("socketspec.cluster.publishers.blocking_link.CHECK_EVERY", 0.0)
        for one in (publisher, newcomer):
            with pytest.raises(BackendError, match=r"was not sent\..* is a replica now.* give the primary's address"):
                one.broadcast("r", "e")
        server.ask("REPLICAOF", "NO", "ONE")
        for one in (publisher, newcomer):
            assert one.broadcast("r", "e").nodes == 0


def test_a_server_whose_role_is_known_since_a_moment_ago_is_not_asked_again(server: Server) -> None:
    with Publisher(server.url) as publisher:
        before = int(server.info("commandstats").get("cmdstat_hello", "calls=0,").split(",")[0].removeprefix("calls="))
        for _ in range(5):
            publisher.broadcast("r", "e")
        assert f"calls={before + 1}," in server.info("commandstats")["cmdstat_hello"]


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address where connecting takes for ever."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):  # until its queue is full
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield listener.getsockname()


def lookup(monkeypatch: pytest.MonkeyPatch, look_up: Callable[[], Sequence[tuple[str, int]]]) -> None:
    """Have every name stand for these addresses."""
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in look_up()],
    )


def test_all_addresses_of_a_name_together_have_the_timeout(
    deaf: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup(monkeypatch, lambda: [deaf] * 4)
    began = time.monotonic()
    with pytest.raises(BackendError, match="no answer in time"):
        Publisher("redis://name", timeout=0.6).broadcast("r", "e")
    assert time.monotonic() - began < 1.1


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    server: Server, deaf: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup(monkeypatch, lambda: [deaf, (server.host, server.port)])
    with Publisher("redis://name", timeout=2) as publisher:
        assert publisher.broadcast("r", "e").nodes == 0


def test_a_name_service_that_hangs_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang() -> Sequence[tuple[str, int]]:
        over.wait(30)
        return []

    try:
        lookup(monkeypatch, hang)
        began = time.monotonic()
        with pytest.raises(BackendError, match=r"was not sent.*the host name is not known: no answer in time"):
            Publisher("redis://name", timeout=0.6).broadcast("r", "e")
        assert time.monotonic() - began < 1.1
    finally:
        over.set()


def test_tls_where_there_is_none_and_none_where_there_is_gets_a_hint(tls_server: Server, server: Server) -> None:
    for url, hint in (
        (f"redis://127.0.0.1:{tls_server.port}", "If it speaks TLS, use rediss://"),
        (f"rediss://127.0.0.1:{server.port}", "If it does not speak TLS, use redis://"),
    ):
        with pytest.raises(BackendError, match=hint), Publisher(url, timeout=1) as publisher:
            publisher.broadcast("r", "e")


def test_a_server_we_were_connected_to_gets_no_hint_about_tls(server: Server) -> None:
    with Publisher(server.url, timeout=0.5) as publisher:
        publisher.broadcast("r", "e")
        server.stop_for()
        for complaint in ("may have been executed", "was not sent"):  # on the connection there is, and on a new one
            with pytest.raises(BackendError, match=complaint) as caught:
                publisher.broadcast("r", "e")
            assert "TLS" not in str(caught.value)
        server.cont()


def test_tls_with_our_authority_works_and_without_it_is_refused(tls_server: Server) -> None:
    assert tls_server.certificates is not None
    with Publisher(tls_server.url, ca_certs=str(tls_server.certificates.ca)) as publisher:
        assert publisher.broadcast("r", "e").nodes == 0
    with pytest.raises(BackendError, match="not trusted"), Publisher(tls_server.url) as publisher:
        publisher.broadcast("r", "e")


def test_the_oldest_supported_server_will_do(redis7_server: Server, prefix: str) -> None:
    with Publisher(redis7_server.url, prefix=prefix, rooms=ROOMS) as publisher:
        assert publisher.broadcast("log:1", "e").position is not None
        assert len(publisher.history("log:1")) == 1


def test_a_closed_publisher_says_so(standalone_server: Server) -> None:
    publisher = Publisher(standalone_server.url)
    publisher.close()
    with pytest.raises(BackendError, match="closed"):
        publisher.broadcast("r", "e")


# --- sentinel and cluster


def test_with_sentinels_the_primary_is_found_and_found_again_after_a_failover(
    healthy_sentinels: Sentinels, prefix: str
) -> None:
    with Publisher(healthy_sentinels.url, prefix=prefix, rooms=ROOMS, timeout=20) as publisher:
        publisher.broadcast("log:1", "e")
        assert healthy_sentinels.primary.ask("EXISTS", Keys(prefix).meta(room("log:1"))) == 1
        healthy_sentinels.primary.kill()
        receipt = publisher.broadcast("log:1", "after")
        assert receipt.position is not None
        with hearing(healthy_sentinels.primary, room("log:1"), prefix) as ear:
            assert publisher.broadcast("log:1", "now").nodes == 1
            assert ear.hear().event == "now"


async def test_a_primary_that_was_replaced_and_comes_back_gets_nothing(
    new_server: Callable[..., Server], prefix: str
) -> None:
    old, new = new_server(), new_server()
    key = Keys(prefix).meta(room("log:1"))
    async with played_sentinels(old) as sentinels:
        with Publisher(sentinels.url, prefix=prefix, rooms=ROOMS, timeout=10) as publisher:
            await asyncio.to_thread(publisher.broadcast, "log:1", "before")
            assert await asyncio.to_thread(old.ask, "EXISTS", key) == 1
            await asyncio.to_thread(old.kill)
            sentinels.say(port=str(new.port), config_epoch="2")
            await asyncio.to_thread(old.restart)
            await asyncio.to_thread(publisher.broadcast, "log:1", "after")
            assert await asyncio.to_thread(old.ask, "EXISTS", key) == 0
            assert await asyncio.to_thread(new.ask, "EXISTS", key) == 1


def test_sentinels_that_do_not_know_the_name_are_an_error_in_time(sentinel_servers: Sentinels) -> None:
    url = sentinel_servers.url.replace("mymaster", "nobody")
    with pytest.raises(BackendError, match="knows no primary called 'nobody'"), Publisher(url, timeout=1) as publisher:
        publisher.broadcast("r", "e")


def test_in_a_cluster_every_room_is_reached_on_its_own_server(cluster_servers: Cluster, prefix: str) -> None:
    names = [f"log:{n}" for n in range(30)]
    owners = {cluster_servers.owner_of(Keys(prefix).channel(room(name))).port for name in names}
    assert len(owners) == 3
    with Publisher(cluster_servers.url, prefix=prefix, rooms=ROOMS) as publisher:
        receipts = publisher.broadcast_many((name, "e", None) for name in names * 2)
        assert [receipt.position.offset for receipt in receipts if receipt.position] == [1] * 30 + [2] * 30
        server = cluster_servers.owner_of(Keys(prefix).channel(room("log:0")))
        with hearing(server, room("log:0"), prefix) as ear:
            assert publisher.broadcast("log:0", "heard").nodes == 1
            assert ear.hear().event == "heard"


def test_a_slot_that_moves_is_followed(healthy_cluster: Cluster, prefix: str) -> None:
    channel = Keys(prefix).channel(room("log:moving"))
    with Publisher(healthy_cluster.url, prefix=prefix, rooms=ROOMS) as publisher:
        publisher.broadcast("log:moving", "e")
        target = next(item for item in healthy_cluster.primaries if item is not healthy_cluster.owner_of(channel))
        healthy_cluster.move_slot(key_slot(channel), target)
        receipt = publisher.broadcast("log:moving", "e")
        assert receipt.position is not None
        assert receipt.position.offset == 2


def test_a_slot_that_is_just_being_moved_is_read_at_once_and_written_when_it_has_arrived(
    healthy_cluster: Cluster, prefix: str
) -> None:
    keys = Keys(prefix)
    slot = key_slot(keys.channel(room("log:half")))
    with Publisher(healthy_cluster.url, prefix=prefix, rooms=ROOMS, timeout=20) as publisher:
        publisher.broadcast("log:half", "e")
        source = healthy_cluster.owner(slot)
        target = next(item for item in healthy_cluster.primaries if item is not source)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ask("CLUSTER", "MYID"))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.ask("CLUSTER", "MYID"))
        finish = threading.Timer(0.7, healthy_cluster.move_slot, [slot, target])
        finish.start()
        try:
            moved = [keys.meta(room("log:half")), keys.stream(room("log:half"))]
            source.ask("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *moved)
            assert len(publisher.history("log:half")) == 1  # all its keys are there: the server sends us after them
            # Publishing uses keys that are not there yet: servers refuse that while a slot moves.
            receipts = publisher.broadcast_many([("log:half", "e", None)] * 3)
            assert sorted(receipt.position.offset for receipt in receipts if receipt.position) == [2, 3, 4]
        finally:
            finish.join()


def test_the_wrong_mode_is_an_error_that_names_the_right_one(
    cluster_servers: Cluster, standalone_server: Server
) -> None:
    primary = cluster_servers.primaries[0]
    replica = next(server for server in cluster_servers.servers if server not in cluster_servers.primaries)
    for server in (primary, replica):
        for name in map(str, range(10)):  # of every shard: each would take some of them, and nobody would hear it
            with Publisher(server.url) as publisher, pytest.raises(BackendError, match=r"redis\+cluster://"):
                publisher.broadcast(name, "e")
    url = f"redis+cluster://127.0.0.1:{standalone_server.port}"
    with Publisher(url) as publisher, pytest.raises(BackendError, match="redis:// in the URL"):
        publisher.broadcast("r", "e")


def test_ctrl_c_in_the_middle_leaves_no_reply_to_the_next_call(server: Server) -> None:
    with Publisher(server.url, rooms=ROOMS, timeout=10) as publisher:
        publisher.broadcast("log:1", "e")
        server.stop_for()
        timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            publisher.broadcast("log:1", "interrupted")
        timer.join()
        server.cont()
        assert publisher.count("log:1") == 0
        assert publisher.broadcast("r", "e").position is None
