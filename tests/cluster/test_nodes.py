"""Several node processes on one Redis act as one server."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Nodes, ask, eventually_async, nodes, token
from tests.servers import Proxy, Server
from tests.support import Client, client


@pytest.fixture(scope="module")
def three(standalone_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes of one app."""
    options = {"auth": True, "backend": {"prefix": "three", "lease": 3.0}}
    with nodes(tmp_path_factory.mktemp("three"), [standalone_server.url] * 3, options) as running:
        yield running


async def said(listener: Client, within: float = 5.0) -> object:
    """The number in the next broadcast; answers to the listener's own events are passed over."""
    message = await listener.receive(within)
    while message["event"] == "__ack__":
        message = await listener.receive(within)
    assert message["event"] == "said", message
    return message["payload"].get("n")


async def test_a_room_reaches_over_all_nodes_in_one_order(three: Nodes) -> None:
    async with (
        three.client(0, "order", user="a") as a,
        three.client(1, "order", user="b") as b,
        three.client(2, "order", user="c") as c,
    ):
        total = 60

        async def talk(speaker: Client, who: str) -> None:
            for number in range(total // 3):
                await speaker.send("say", {"room": "order", "n": f"{who}{number}"})

        await asyncio.gather(talk(a, "a"), talk(b, "b"), talk(c, "c"))
        heard = [[await said(connected) for _ in range(total)] for connected in (a, b, c)]
        assert heard[0] == heard[1] == heard[2]
        assert [n for n in heard[0] if str(n).startswith("a")] == [f"a{n}" for n in range(total // 3)]


async def test_presence_is_cluster_wide(three: Nodes) -> None:
    async with three.client(0, "lobby", user="a") as a:
        async with three.client(1, "lobby", user="b"), three.client(2, "lobby", user="c"):
            assert await a.call("count", {"room": "lobby"}) == {"count": 3}
            members = await three.get(1, "/members/lobby")
            assert [member["user_id"] for member in members] == ["a", "b", "c"]
        await eventually_async(lambda: a.call("count", {"room": "lobby"}), {"count": 1}, 5, "two have left")


async def test_a_full_room_is_full_on_every_node(three: Nodes) -> None:
    async with (
        three.client(0, "small", user="a"),
        three.client(1, "small", user="b"),
        three.client(2, user="c") as c,
    ):
        await c.send("join", {"room": "small"})
        assert (await c.error())["details"]["reason"] == "room_full"


async def test_a_user_is_reached_and_disconnected_wherever_they_are(three: Nodes) -> None:
    async with three.client(0, user="eve") as one, three.client(1, user="eve") as two:
        await eventually_async(lambda: three.get(2, "/users/eve/count"), {"count": 2}, 5, "both are counted")
        assert await three.get(2, "/users/eve/send", "POST") == {"nodes": 2}
        for connected in (one, two):
            assert (await connected.receive())["payload"] == {"to": "eve"}
        await three.get(2, "/users/eve/disconnect", "POST")
        assert await one.closed() == (4000, "kicked")
        assert await two.closed() == (4000, "kicked")


async def test_a_revoked_user_is_closed_everywhere_within_a_second_and_may_not_return(three: Nodes) -> None:
    async with three.client(0, user="mallory") as one, three.client(1, user="mallory") as two:
        began = time.monotonic()
        await three.get(2, "/revoke/mallory", "POST")
        codes = [(await connected.closed())[0] for connected in (one, two)]
        assert codes == [4005, 4005]
        assert time.monotonic() - began < 1
    async with three.client(2, user="mallory") as back:
        assert (await back.error())["code"] == "AUTH_ERROR"
        assert (await back.closed())[0] in (4001, 4005)


async def test_a_node_without_members_of_a_room_receives_nothing_for_it(
    standalone_server: Server, tmp_path: Path
) -> None:
    with Proxy(standalone_server.port) as proxy, nodes(tmp_path, [standalone_server.url, proxy.url]) as two:
        async with two.client(0, "busy") as speaker, two.client(1, "quiet") as listener:
            await asyncio.sleep(1.0)  # what joining set off is over
            before = proxy.count("down")
            text = "x" * 1000
            for number in range(200):
                await ask(speaker, "say", {"room": "busy", "n": number, "text": text})
            used = proxy.count("down") - before
            assert used < 20_000, f"{used} bytes came to a node that has no member of the room"
            await speaker.send("say", {"room": "quiet", "n": 1})
            assert await said(listener) == 1


async def test_the_members_of_a_killed_node_are_gone_from_every_room_within_the_lease(
    standalone_server: Server, tmp_path: Path
) -> None:
    options = {"auth": True, "backend": {"prefix": "killed"}}
    with nodes(tmp_path, [standalone_server.url] * 3, options) as three:
        async with (
            three.client(0, "hall", user="a") as a,
            three.client(1, "hall", user="b"),
            three.client(2, "hall", "attic", user="c"),
        ):
            assert await a.call("count", {"room": "hall"}) == {"count": 3}
            three[2].process.send_signal(signal.SIGKILL)
            began = time.monotonic()
            await eventually_async(lambda: a.call("count", {"room": "hall"}), {"count": 2}, 12, "c is gone")
            assert time.monotonic() - began <= 10
            assert await a.call("count", {"room": "attic"}) == {"count": 0}

            async def leaves() -> int:
                return len(await three.get(0, "/left")) + len(await three.get(1, "/left"))

            await eventually_async(leaves, 2, 5, "on_room_leave ran once for each room, on one node")
            left = [*await three.get(0, "/left"), *await three.get(1, "/left")]
            assert sorted((user, room, is_open) for _, user, room, is_open in left) == [
                ("c", "attic", False),
                ("c", "hall", False),
            ]


async def test_a_user_on_three_nodes_has_one_bucket(standalone_server: Server, tmp_path: Path) -> None:
    rate, capacity = 10, 20
    options = {"auth": True, "rate_limit": (rate, capacity), "backend": {"prefix": "bucket"}}
    with nodes(tmp_path, [standalone_server.url] * 3, options) as three:
        async with (
            three.client(0, user="u") as a,
            three.client(1, user="u") as b,
            three.client(2, user="u") as c,
        ):
            passed = 0

            async def press(connected: Client, until: float) -> None:
                nonlocal passed
                while time.monotonic() < until:
                    await connected.send("echo", {}, id=1)
                    reply = await connected.receive()
                    passed += reply["event"] == "__ack__"
                    await asyncio.sleep(0.05)

            began = time.monotonic()
            await asyncio.gather(*(press(connected, began + 3.0) for connected in (a, b, c)))
            took = time.monotonic() - began
            # A token may be left over, and the last press of each was up to a pause and an answer before the end.
            assert abs(passed - (capacity + rate * took)) <= 3, (passed, took)


async def test_a_session_ends_counted_from_its_first_connect_wherever_it_returns(
    standalone_server: Server, tmp_path: Path
) -> None:
    options = {"auth": True, "session": {"max_duration": 3.0}, "backend": {"prefix": "session"}}
    with nodes(tmp_path, [standalone_server.url] * 2, options) as two:
        url = [f"{node.url('/ws')}?token=" for node in two.servers]
        same = token("s", sid="one-session")
        began = time.monotonic()
        async with client(url[0] + same) as first:
            await first.call("echo", {})
        await asyncio.sleep(1.0)
        async with client(url[1] + same) as second:
            message = await second.receive(6)
            while message["event"] == "__session_expiring__":
                message = await second.receive(6)
            assert message["payload"]["code"] == "SESSION_EXPIRED"
            assert (await second.closed())[0] == 4002
            assert 2.5 < time.monotonic() - began < 4.5
        async with client(url[0] + same) as third:
            assert (await third.error())["code"] == "SESSION_EXPIRED"
            assert (await third.closed())[0] == 4002


@pytest.mark.parametrize("policy", ["reject", "evict_oldest"])
async def test_connections_per_user_are_limited_across_nodes(
    standalone_server: Server, tmp_path: Path, policy: str
) -> None:
    options = {
        "auth": True,
        "max_connections_per_user": 2,
        "connection_limit_policy": policy,
        "backend": {"prefix": f"limit-{policy}"},
    }
    with nodes(tmp_path, [standalone_server.url] * 3, options) as three:
        async with (
            three.client(0, user="u") as a,
            three.client(1, user="u") as b,
            three.client(2, user="u") as c,
        ):
            if policy == "reject":
                assert (await c.error())["details"]["reason"] == "too_many_connections"
                assert (await c.closed())[0] == 4008
                assert await a.call("echo", {"n": 1}) == {"n": 1}
            else:
                assert (await a.closed())[0] == 4009
                assert await c.call("echo", {"n": 1}) == {"n": 1}
            assert await b.call("echo", {"n": 2}) == {"n": 2}


async def test_after_everybody_left_the_prefix_holds_no_key(standalone_server: Server, tmp_path: Path) -> None:
    options = {"auth": True, "rate_limit": (50, 50), "backend": {"prefix": "tidy", "lease": 3.0}}
    with nodes(tmp_path, [standalone_server.url] * 2, options) as two:
        async with two.client(0, "x", "y", user="a") as a, two.client(1, "x", user="b"):
            await a.call("say", {"room": "z", "n": 1})
            assert standalone_server.ask("KEYS", "tidy:*")
        for server in two.servers:
            server.stop()

    async def keys() -> object:
        return standalone_server.ask("KEYS", "tidy:*")

    await eventually_async(keys, [], 5, "no key is left")


async def test_a_room_left_and_joined_again_at_once_misses_nothing(three: Nodes) -> None:
    async with three.client(0, user="a") as mover, three.client(1, user="b") as speaker:
        for number in range(20):
            await mover.call("join", {"room": "hop"})
            await speaker.call("say", {"room": "hop", "n": number})
            assert await said(mover) == number
            await mover.call("leave", {"room": "hop"})
