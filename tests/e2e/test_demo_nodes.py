"""`socketspec demo --nodes 3`: one chat on several processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from socketspec.cluster.embedded import EmbeddedServer
from socketspec.cluster.publishers.publisher import Publisher
from tests.servers import started
from tests.support import Client, client
from tests.support_demo import COMMAND, ROOT, Demo, run, running_demo

JSON = "socketspec.v1.json"


@pytest.fixture(scope="module", autouse=True)
def _binary() -> None:
    with started():
        EmbeddedServer()


@pytest.fixture(scope="module")
def demo(_binary: None) -> Iterator[Demo]:
    with running_demo("--nodes", "3") as running:
        yield running


@asynccontextmanager
async def guest(demo: Demo, name: str, node: int) -> AsyncIterator[tuple[Client, str]]:
    """A client of one node as the page is one, and the node's name."""
    async with client(demo.socket_url(name, node), subprotocols=[JSON]) as connected:
        introduction = await connected.receive()
        assert introduction["event"] == "__connect__"
        yield connected, introduction["payload"]["node"]


async def until(guest: Client, event: str, within: float = 10.0, **payload: Any) -> dict[str, Any]:
    """The next `event` whose payload has these values; others are passed over."""
    async with asyncio.timeout(within):
        while True:
            message = await guest.receive(within)
            if message["event"] == event and payload.items() <= message["payload"].items():
                return message


async def enter(guest: Client, room: str) -> None:
    await guest.send("join", {"room": room}, id=f"join {room}")
    await until(guest, "__ack__")


def eventually(check: Callable[[], bool], what: str, within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.02)


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started, with their command lines."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_guests_of_three_nodes_are_in_one_room(demo: Demo) -> None:
    async with guest(demo, "Ada", 0) as (ada, first), guest(demo, "Grace", 1) as (grace, second):
        async with guest(demo, "Alan", 2) as (alan, third):
            assert len({first, second, third}) == 3
            for one in (ada, grace, alan):
                await enter(one, "three")
            presence = (await until(ada, "presence", joined="Alan"))["payload"]
            assert (presence["count"], presence["names"]) == (3, ["Ada", "Grace", "Alan"])
            for number, speaker in enumerate((ada, grace, alan)):
                await speaker.send("say", {"room": "three", "text": f"hello {number}", "key": f"k{number}"})
                heard = [await until(one, "message", text=f"hello {number}") for one in (ada, grace, alan)]
                assert len({(message["offset"], message["epoch"]) for message in heard}) == 1
        assert (await until(ada, "presence", left="Alan"))["payload"]["count"] == 2


def test_every_node_is_ready_and_names_the_others(demo: Demo) -> None:
    ports = [int(host.rpartition(":")[2]) for host in demo.hosts]
    assert len(set(ports)) == 3
    for node in range(3):
        with urllib.request.urlopen(demo.url("/nodes", node), timeout=10) as answer:  # noqa: S310 - an http address
            assert json.loads(answer.read()) == {"ports": ports}
        with urllib.request.urlopen(demo.url("/socket-health", node), timeout=10) as answer:  # noqa: S310 - as above
            assert answer.status == 200


async def test_backend_code_reaches_the_guests(demo: Demo) -> None:
    found = re.search(r"embedded Valkey on (127\.0\.0\.1:\d+)", demo.greeting)
    assert found is not None
    async with guest(demo, "Ada", 0) as (ada, _), guest(demo, "Grace", 2) as (grace, _):
        for one in (ada, grace):
            await enter(one, "outside")
        command = [*COMMAND, "publish", "live:outside", "typing", '{"room": "outside", "name": "cron"}']
        process = await asyncio.create_subprocess_exec(
            *command, "--backend", f"redis://{found[1]}", stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        output, _ = await process.communicate()
        assert output == b"delivered to 2 nodes\n"
        for one in (ada, grace):
            assert (await until(one, "typing"))["payload"]["name"] == "cron"
        with Publisher(f"redis://{found[1]}") as publisher:
            assert await asyncio.to_thread(publisher.count, "live:outside") == 2
            assert await asyncio.to_thread(publisher.disconnect_user, "Grace", reason="from outside") == 1
        assert await grace.closed() == (4000, "from outside")


@pytest.mark.slow
async def test_a_node_that_dies_is_reported_and_the_others_go_on() -> None:
    demo = Demo("--nodes", "3")
    try:
        async with (
            guest(demo, "Ada", 0) as (ada, _),
            guest(demo, "Grace", 1) as (grace, _),
            guest(demo, "Alan", 2) as (alan, _),
        ):
            for one in (ada, grace, alan):
                await enter(one, "dying")
            await until(ada, "presence", count=3)
            nodes = {pid: command for pid, command in children(demo.process.pid).items() if "demo_nodes" in command}
            assert len(nodes) == 3
            third = max(nodes, key=lambda pid: int(nodes[pid].split()[-2]))  # its listening socket is the newest
            os.kill(third, signal.SIGKILL)
            line = await asyncio.to_thread(demo.read_line)
            name = f"Node 3 (http://{demo.hosts[2]}, pid {third})"
            assert line == f"socketspec: {name} has died (SIGKILL). The other 2 go on.\n"
            with pytest.raises(OSError, match="refused"):
                await asyncio.to_thread(urllib.request.urlopen, demo.url("/", 2), timeout=5)
            assert (await until(ada, "presence", 12, left="Alan"))["payload"]["names"] == ["Ada", "Grace"]
            await grace.send("say", {"room": "dying", "text": "still here", "key": "k"})
            await until(ada, "message", text="still here")
        status, output = demo.end()
        assert (status, output.strip()) == (0, "")
    finally:
        demo.process.kill()
        demo.process.wait()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_demo_ends_nothing_of_it_is_left(how: signal.Signals) -> None:
    demo = Demo("--nodes", "2")
    parts = children(demo.process.pid)
    assert sum("demo_nodes" in command for command in parts.values()) == 2
    assert sum("valkey-server" in command for command in parts.values()) == 1
    status, output = demo.end(how)
    if how is not signal.SIGKILL:
        assert (status, output.strip()) == (0, "")
    for pid, command in parts.items():
        eventually(lambda pid=pid: not is_alive(pid), f"{command} has ended")  # type: ignore[misc] # mypy cannot infer it


def test_a_second_ports_owner_is_named() -> None:
    with EmbeddedServer() as other:
        result = run("demo", "--nodes", "2", "--port", str(other.port - 1))
    assert result.returncode == 1
    assert re.search(rf"Cannot listen on 127\.0\.0\.1:({other.port}|{other.port - 1}) \(Address already", result.stderr)


def test_nodes_whose_backend_is_away_end_the_demo_with_the_reason() -> None:
    result = run("demo", "--nodes", "2", "--port", "0", backend="redis://127.0.0.1:1?start_timeout=0")
    assert result.returncode == 1
    assert "has died (exit status 3)" in result.stderr
    assert "127.0.0.1:1" in result.stderr
