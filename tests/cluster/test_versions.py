"""Two versions on one Redis: N reads N+1, and N+1 reads N. Real nodes and publishers of both, side by side."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from socketspec.cluster.commands.command import Script
from socketspec.cluster.commands.envelope import decode, encode_body, plain_frame
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.unreadable import Unreadable
from socketspec.cluster.presence.commands import pack_member, parse_members
from socketspec.protocol.publications import Member, Position, Publication, Topic
from tests.cluster.nodes import APP, SECRET, Nodes, ask, eventually_async
from tests.cluster.versions import RECORDED, VERSIONS, take
from tests.servers import Server as Redis
from tests.support import ROOT, Client, Server, free_port

OPTIONS = {"auth": True, "rate_limit": (1000, 1000), "backend": {"lease": 2.0}}

PUBLISHER = """
import json, os, sys
from socketspec.cluster import Publisher
from socketspec import Room
from socketspec.backend import History

with Publisher(os.environ["REDIS_URL"], rooms=[Room("log:{n}", history=History(size=500, ttl=600)), "{any}"]) as p:
    said = p.broadcast("log:1", "said", {"from": sys.argv[1]}, idempotency_key=sys.argv[1])
    again = p.broadcast("log:1", "said", {"from": sys.argv[1]}, idempotency_key=sys.argv[1])
    print(json.dumps({
        "offset": said.position.offset, "again": again.position.offset, "count": p.count("plain"),
        "history": [item.payload for item in p.history("log:1")],
        "user": p.send_to_user("ada", "direct", {}).nodes,
    }))
"""


class Versions:
    """Node 0 runs `old` sources, node 1 today's; so do their publishers."""

    def __init__(self, folder: Path, old: Path, url: str) -> None:
        self.folder, self.url, self.paths = folder, url, [str(old), str(ROOT)]
        self.nodes = Nodes([self.start(index) for index in range(2)])

    def start(self, index: int) -> Server:
        port = free_port()
        source = APP.replace("{OPTIONS}", repr(OPTIONS))
        environment = {"REDIS_URL": self.url, "SECRET": SECRET, "PYTHONPATH": self.paths[index]}
        command = ["uvicorn", "main:app", "--host", "127.0.0.1", "--port", str(port)]
        return Server(self.folder / f"node{index}-{port}", {"main.py": source}, command, port, environment)

    async def publish(self, index: int, name: str) -> Any:
        (self.folder / "publish.py").write_text(PUBLISHER)
        environment = {**os.environ, "REDIS_URL": self.url, "PYTHONPATH": self.paths[index]}
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "publish.py", name],
            cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def side_by_side(folder: Path, commit: str, url: str) -> Iterator[Versions]:
    old = take(commit, folder / "old")
    if old is None:
        pytest.skip("the history of the repository: git fetch --unshallow")
    made = Versions(folder, old, url)
    try:
        for server in made.nodes.servers:
            server.wait()
        yield made
    finally:
        for server in made.nodes.servers:
            server.kill()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", VERSIONS)
async def test_two_versions_act_as_one_server(server: Redis, tmp_path: Path, version: str) -> None:
    with side_by_side(tmp_path, VERSIONS[version], server.url) as both:
        nodes = both.nodes
        old_says = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", "import socketspec; print(socketspec.__file__)"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": both.paths[0]}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert old_says.stdout.startswith(both.paths[0]), "this would compare today's version with itself"
        await broadcasts_and_limits(nodes)
        await publishers_and_histories(both)
        await orders(nodes)
        await burials(both)
        for node in nodes.servers:
            assert "cannot be read" not in node.log


async def heard(client: Client) -> dict[str, Any]:
    """The next message of a room; what else comes is passed over."""
    while (message := await client.receive(10))["event"] != "said":
        pass
    return message


async def broadcasts_and_limits(nodes: Nodes) -> None:
    """Each hears the other, counts the other's members, and keeps a limit with it."""
    async with nodes.client(0, "plain", user="ada") as old, nodes.client(1, "plain", user="bob") as new:
        for one, other, text in ((old, new, "from old"), (new, old, "from new")):
            await one.send("say", {"room": "plain", "text": text})
            for each in (one, other):
                assert (await heard(each))["payload"]["text"] == text
        for index in range(2):
            members = await nodes.get(index, "/members/plain")
            assert sorted(member["user_id"] for member in members) == ["ada", "bob"]
        assert await ask(old, "count", {"room": "plain"}) == await ask(new, "count", {"room": "plain"}) == {"count": 2}
        await old.call("join", {"room": "small"})
        await new.call("join", {"room": "small"})
        for index in range(2):
            async with nodes.client(index, user="eve") as third:
                assert await ask(third, "join", {"room": "small"}) == "PERMISSION_ERROR"


async def publishers_and_histories(both: Versions) -> None:
    """What one version keeps, the other reads and resumes; an idempotency key holds for both."""
    nodes = both.nodes
    seen = []
    async with nodes.client(0, "log:1", "plain", user="ada") as old, nodes.client(1, "log:1", user="bob") as new:
        for index, name in ((0, "old"), (1, "new"), (0, "old"), (1, "old")):
            seen.append(await both.publish(index, name))
        for client in (old, new):
            assert [(await heard(client))["payload"]["from"] for _ in range(2)] == ["old", "new"]
    assert [each["offset"] for each in seen] == [each["again"] for each in seen] == [1, 2, 1, 1]
    assert all(each["count"] == 1 and each["user"] == 1 for each in seen)
    assert seen[-1]["history"] == seen[-2]["history"] == [{"from": "old"}, {"from": "new"}]
    positions: dict[str, Any] = {}
    async with nodes.client(0, user="ada", subprotocols=("socketspec.v1.json",)) as client:
        await client.receive()
        await client.call("join", {"room": "log:1"})
        await client.send("say", {"room": "log:1", "text": "mark"})
        message = await heard(client)
        positions = {"log:1": {name: message[name] for name in ("offset", "epoch", "tag")}}
    await both.publish(1, "missed")
    for index in (1, 0):
        async with nodes.client(index, user="ada", subprotocols=("socketspec.v1.json",)) as client:
            await client.receive()
            await client.send("__resume__", {"rooms": positions})
            answer = await client.receive()
            assert answer["payload"]["rooms"]["log:1"] == {"recovered": True, "replayed": 1}
            assert (await heard(client))["payload"] == {"from": "missed"}


async def orders(nodes: Nodes) -> None:
    """A user is disconnected and revoked on both, whichever node is asked."""
    for index, path in ((0, "disconnect"), (1, "disconnect"), (0, "revoke"), (1, "revoke")):
        user = f"{path}-{index}"
        async with nodes.client(0, user=user) as old, nodes.client(1, user=user) as new:
            url = f"/users/{user}/disconnect" if path == "disconnect" else f"/revoke/{user}"
            await nodes.get(index, url, "POST")
            for client in (old, new):
                await asyncio.wait_for(client.connection.wait_closed(), 10)


async def burials(both: Versions) -> None:
    """The members of a node that was killed are removed by the other version, and its hooks run."""
    nodes = both.nodes
    for dying, living in ((1, 0), (0, 1)):
        async with nodes.client(dying, "grave", user="gone"):
            nodes[dying].kill()
            await eventually_async(partial(nodes.get, living, "/members/grave"), [], 20, "the dead node's member")
            left = await nodes.get(living, "/left")
            assert any(user == "gone" for _, user, *_ in left), left
        nodes.servers[dying] = both.start(dying)
        await asyncio.to_thread(nodes[dying].wait)


# Where a checkout has no history: what the versions wrote, and the scripts by which they did


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Any:
    """What a version wrote, from its file."""
    return json.loads((RECORDED / f"{VERSIONS[request.param][:7]}.json").read_text(encoding="utf-8"))


def test_what_earlier_versions_published_is_read(recorded: Any) -> None:
    for each in recorded["frames"]:
        expected = Publication(
            each["event"], each["payload"].encode(), tuple(each["exclude"]), trace=each["trace"]
        )  # fmt: skip
        assert decode(b64decode(each["frame"])) == expected
    kept = decode(b64decode(recorded["positioned"]["frame"]))
    assert kept is not None
    assert kept.position == Position(*(recorded["positioned"][name] for name in ("offset", "epoch", "tag")))


def test_what_today_publishes_is_what_earlier_versions_read(recorded: Any) -> None:
    for each in recorded["frames"]:
        publication = Publication(
            each["event"], each["payload"].encode(), tuple(each["exclude"]), trace=each["trace"]
        )  # fmt: skip
        assert plain_frame(encode_body(publication)) == b64decode(each["frame"])


def test_members_of_earlier_versions_are_listed(recorded: Any) -> None:
    for each in recorded["members"]:
        expected = Member("id", each["user_id"], each["joined_at"])
        assert parse_members([b"id", b64decode(each["packed"])], b"key", Unreadable()) == [expected]
        assert pack_member(expected) == b64decode(each["packed"])


async def test_the_scripts_of_two_versions_work_on_the_same_keys(
    standalone_server: Redis, prefix: str, recorded: Any
) -> None:
    keys, topic, ask_server = Keys(prefix), Topic("/", "room", "r"), standalone_server.ask
    history, channel = (keys.meta(topic), keys.stream(topic)), keys.channel(topic)
    old, later = recorded["scripts"], 9_999_999_999_999

    def run(script: str, names: tuple[bytes, ...], *args: Any) -> Any:
        return ask_server("EVAL", script, len(names), *names, *args)

    for number in range(1, 5):
        args = (10, 60_000, "epoch", f"tag{number}", encode_body(Publication(f"event{number}", b"{}")), 1000)
        if number % 2:
            assert run(old["publish"], (*history, channel), *args)[1] == number
        else:
            assert run(Script("publish").source, history, *args, channel)[1] == number
    today, before = (run(source, history, "newest", -1, 0) for source in (Script("read").source, old["read"]))
    assert today == before
    assert len(today[4]) == 4
    room = (keys.nodes(topic), keys.members(topic, "n"))
    other = (keys.nodes(topic), keys.members(topic, "o"))
    assert run(old["enter"], room, "n", 2, 60_000, "a", "A") == 1
    assert run(Script("enter").source, other, "o", 2, 60_000, later, "b", "B") == 1
    assert run(old["enter"], room, "n", 2, 60_000, "c", "C") == 0
    assert run(Script("enter").source, room, "n", 2, 60_000, later, "c", "C") == 0
    assert run(Script("leave").source, room, "n", later, "a") == run(old["leave"], other, "o", "b") == 0
    session, bucket = (keys.session("s"),), (keys.bucket("b"),)
    assert run(old["begin"], session, 60_000) == run(Script("begin").source, session, 60_000)[0]
    taken = [float(run(source, bucket, "0.001", "2")) for source in (old["take"], Script("take").source, old["take"])]
    assert taken[:2] == [0, 0] != taken[2:]
