"""The capacity calculator: its model against what was measured, a simulation, and itself."""

from __future__ import annotations

import heapq
import json
import math
import random
import re
import resource
import shlex
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.adapters.open_files import OWN_FILES, connections_for, files_for
from socketspec.cli.capacity import Capacity, Demand, PlanError, nodes_reached, plan, share_of_core
from socketspec.cli.costs import COSTS
from socketspec.cli.main import main
from tests.support import Server, serving

APP = """
from fastapi import FastAPI
from socketspec import Connection, SocketApp
from socketspec.adapters.fastapi import mount

app = FastAPI()
socket = SocketApp()


@socket.on_connect
async def on_connect(conn: Connection):
    await socket.rooms.join(conn, "lobby")


mount(socket, app)
"""


def simulated_share(arrivals: float, other: float, seconds: float) -> float:
    """A node to which messages come at random, and work of its own in small pieces; the part of its time it is busy."""
    chance = random.Random(1)  # noqa: S311 - a simulation
    piece = 50e-6
    events: list[tuple[float, bool]] = [(chance.expovariate(arrivals), True)]
    if other:
        events.append((chance.expovariate(other / piece), False))
    heapq.heapify(events)
    free_at = busy = 0.0
    while True:
        now, is_message = heapq.heappop(events)
        if now > seconds:
            return busy / seconds
        is_asleep = now >= free_at
        cost = COSTS.arrival + (COSTS.waking if is_asleep else 0) if is_message else piece
        free_at = max(free_at, now) + cost
        busy += cost
        rate = arrivals if is_message else other / piece
        heapq.heappush(events, (now + chance.expovariate(rate), is_message))


@pytest.mark.parametrize(("arrivals", "other"), [(500, 0.0), (5_000, 0.0), (20_000, 0.0), (5_000, 0.3), (1_000, 0.6)])
def test_a_nodes_use_of_its_core_is_that_of_a_simulated_one(arrivals: int, other: float) -> None:
    assert share_of_core(arrivals, other) == pytest.approx(simulated_share(arrivals, other, 3.0), rel=0.1)


@pytest.mark.parametrize(("nodes", "members"), [(3, 3), (20, 50), (100, 5), (7, 1), (1, 40)])
def test_a_rooms_members_are_on_as_many_nodes_as_when_dealt_out_at_random(nodes: int, members: int) -> None:
    chance = random.Random(2)  # noqa: S311 - a simulation
    rooms = 3_000
    dealt = sum(len({chance.randrange(nodes) for _ in range(members)}) for _ in range(rooms)) / rooms
    assert nodes_reached(nodes, members) == pytest.approx(dealt, rel=0.03)


def test_a_large_cluster_of_small_rooms_is_that_of_a_simulation() -> None:
    """Every message, node by node: how many arrivals and writes each node has, and what that makes of its core."""
    demand = Demand(connections=6_000, rate=3_000, room_size=6, by_clients=0, heartbeat=0, session=1e9)
    found = plan(demand)
    chance = random.Random(3)  # noqa: S311 - a simulation
    rooms = [[chance.randrange(found.nodes) for _ in range(6)] for _ in range(1_000)]
    arrivals, writes = [0] * found.nodes, [0] * found.nodes
    for _ in range(3_000):  # one second
        members = rooms[chance.randrange(1_000)]
        for node in members:
            writes[node] += 1
        for node in set(members):
            arrivals[node] += 1
    shares = [share_of_core(count, written * COSTS.delivery) for count, written in zip(arrivals, writes, strict=True)]
    assert sum(shares) / found.nodes == pytest.approx(found.node_cpu, rel=0.1)
    assert sum(writes) == found.deliveries
    assert sum(arrivals) / 3_000 == pytest.approx(found.nodes_per_message, rel=0.05)


def test_the_model_gives_back_what_the_benchmark_of_several_nodes_measured() -> None:
    """docs/performance.md: rooms of 3 on three nodes, 96 us a delivery at 1,000 publishes a second, 21 us unpaced."""
    nodes, members = 3, 3
    each = nodes_reached(nodes, members) / nodes
    paced = share_of_core(1_000 * each, 1_000 * members * COSTS.delivery / nodes) * nodes / (1_000 * members)
    assert paced == pytest.approx(96e-6, rel=0.1)
    rate = 15_107 * 3  # far more than fits: nobody sleeps
    unpaced = share_of_core(rate * each, rate * members * COSTS.delivery / nodes) * nodes / (rate * members)
    assert unpaced == pytest.approx(21e-6, rel=0.1)


DEMANDS = st.builds(
    Demand,
    connections=st.integers(1, 2_000_000),
    rate=st.floats(0, 20_000),
    room_size=st.floats(1, 500),
    rooms_per_connection=st.floats(0, 10),
    size=st.integers(0, 10_000),
    by_clients=st.floats(0, 1),
    events=st.floats(0, 20_000),
    session=st.floats(10, 86_400),
    heartbeat=st.sampled_from([0.0, 10.0, 25.0]),
)
CAPACITIES = st.builds(
    Capacity,
    headroom=st.floats(1, 4),
    spare=st.integers(0, 3),
    node_memory=st.sampled_from([1 << 29, 1 << 30, 1 << 33]),
    node_connections=st.integers(1_000, 100_000),
    open_files=st.sampled_from([1024, 65_536, 1_048_576]),
    recovery=st.floats(5, 600),
)


@given(DEMANDS, CAPACITIES)
def test_a_plan_keeps_to_what_a_node_may_be_used_for(demand: Demand, capacity: Capacity) -> None:
    found = plan(demand, capacity)
    left = found.nodes - capacity.spare
    assert left >= 1
    assert found.node_cpu_spare * capacity.headroom <= 1.000001
    assert found.node_cpu <= found.node_cpu_spare + 1e-9
    assert found.node_memory * capacity.headroom <= capacity.node_memory
    assert demand.connections <= capacity.node_connections * left
    assert connections_for(capacity.open_files - OWN_FILES) * left >= demand.connections
    assert math.ceil(demand.connections / left) <= found.node_connections_most
    assert found.node_connections <= found.node_connections_most
    if found.nodes > 1:
        assert found.crash_recovery <= capacity.recovery
    assert 0 <= found.nodes_per_message <= found.nodes
    assert found.machines == found.nodes


@given(DEMANDS, CAPACITIES, st.floats(1, 3))
def test_more_to_carry_or_more_headroom_never_takes_fewer_nodes(
    demand: Demand, capacity: Capacity, factor: float
) -> None:
    nodes = plan(demand, capacity).nodes
    assert plan(replace(demand, connections=round(demand.connections * factor)), capacity).nodes >= nodes
    assert plan(replace(demand, rate=demand.rate * factor), capacity).nodes >= nodes
    assert plan(replace(demand, events=demand.events * factor), capacity).nodes >= nodes
    assert plan(demand, replace(capacity, headroom=min(capacity.headroom * factor, 5))).nodes >= nodes
    assert plan(demand, replace(capacity, spare=capacity.spare + 1)).nodes >= nodes


@pytest.mark.parametrize(
    ("demand", "capacity", "reason"),
    [
        (Demand(connections=1_000_000, rate=1), Capacity(), "connections"),
        (Demand(connections=1_000_000, rate=1), Capacity(node_memory=1 << 28), "memory"),
        (Demand(connections=1_000_000, rate=1), Capacity(open_files=16_384), "open files"),
        (Demand(connections=10_000, rate=20_000), Capacity(), "cpu"),
        (Demand(connections=80_000, rate=1), Capacity(recovery=5), "recovery"),
        (Demand(connections=10, rate=1), Capacity(spare=2), "spare"),
        (Demand(connections=10, rate=1), Capacity(spare=0), "nothing: one node is enough"),
    ],
)
def test_a_plan_says_what_asks_for_that_many_nodes(demand: Demand, capacity: Capacity, reason: str) -> None:
    assert plan(demand, capacity).limited_by == reason


def test_a_window_too_short_for_the_others_is_warned_of_and_the_named_one_is_not() -> None:
    demand = Demand(connections=60_000, rate=10)
    short = plan(demand, Capacity(drain_window=1))
    assert any("a drain window of 1 s sends connections faster" in each for each in short.warnings), short
    enough = plan(demand, Capacity(drain_window=short.rollout.window))
    assert not any("drain window" in each for each in enough.warnings)


def test_open_files_are_counted_as_the_server_counts_them() -> None:
    for connections in [*range(1, 5_000), *range(5_000, 60_000, 777)]:
        free = files_for(connections) - OWN_FILES
        assert connections_for(free) >= connections
        assert connections < 100 or connections_for(free - 2) < connections


def test_more_connections_than_a_node_may_have_are_warned_of() -> None:
    demand = Demand(connections=120_000, rate=10)
    tight = plan(demand, Capacity(surge=1))
    most = tight.node_connections_most
    assert most > Capacity().node_connections
    assert any(f"refuses some of the {most:,}" in each for each in tight.warnings)
    wide = plan(demand, Capacity(surge=1, node_connections=most))
    assert not any("refuses some" in each for each in wide.warnings)


def test_the_memory_of_a_node_has_room_for_what_may_wait_for_slow_clients() -> None:
    demand = Demand(connections=2_000, rate=1)
    found = plan(demand, Capacity(node_buffer=300 << 20))
    assert found.node_memory_limit >= found.node_memory + (300 << 20) > found.node_memory * 2
    assert found.warnings == ()
    tight = plan(demand, Capacity(node_buffer=300 << 20, node_memory=350 << 20))
    assert any("300 MiB wait for slow clients (max_node_buffer)" in each for each in tight.warnings)


def test_files_that_do_not_suffice_for_the_connections_of_a_node_are_warned_of() -> None:
    few = plan(Demand(connections=1000, rate=1), Capacity(open_files=1024))
    assert any("1,024 open files do not suffice for 50,000 connections" in each for each in few.warnings)
    assert few.node_files == files_for(50_000)
    enough = plan(Demand(connections=1000, rate=1), Capacity(open_files=few.node_files))
    assert not any("open files" in each for each in enough.warnings)


@pytest.mark.parametrize(
    ("demand", "capacity", "complaint"),
    [
        (Demand(connections=0, rate=1), Capacity(), "connections must be greater than 0"),
        (Demand(connections=1, rate=-1), Capacity(), "rate must be a number of 0 or more"),
        (Demand(connections=1, rate=float("nan")), Capacity(), "rate must be a number"),
        (Demand(connections=1, rate=1, by_clients=2), Capacity(), "by_clients is a part"),
        (Demand(connections=1, rate=1), Capacity(surge=0), "surge must be 1 node or more, .* not 0"),
        (Demand(connections=1, rate=1), Capacity(surge="0%"), "from 1% to 100%, not 0%"),
        (Demand(connections=1, rate=1), Capacity(surge="101%"), "from 1% to 100%, not 101%"),
        (Demand(connections=1, rate=1), Capacity(headroom=0.5), "headroom must be 1 or more"),
        (Demand(connections=1, rate=1), Capacity(node_memory=1 << 26), "a node without connections needs 96 MiB"),
        (Demand(connections=10**9, rate=10**9), Capacity(), "more than 100,000 nodes would be needed"),
    ],
)
def test_what_cannot_be_planned_is_said(demand: Demand, capacity: Capacity, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        plan(demand, capacity)


def resident(pid: int) -> int:
    """Bytes of memory of a process, by /proc."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) * 1024


def open_connections(port: int, count: int) -> Iterator[socket.socket]:
    request = (
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: c29ja2V0c3BlYy1iZW5jaA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), timeout=20)
        client.sendall(request)
        assert client.recv(4096).startswith(b"HTTP/1.1 101")
        yield client


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_is_what_five_hundred_real_connections_take_within_a_factor_of_three(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2_000 and hard != resource.RLIM_INFINITY:
        pytest.skip("open files are limited")
    if soft < 2_000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2_000, hard))
    server = Server.start(tmp_path, APP, options=["--ws", "socketspec.adapters.uvicorn:WebSocketProtocol"])
    with serving(server), ExitStack() as stack:
        for client in open_connections(server.port, 50):
            stack.enter_context(client)
        before = resident(server.process.pid)
        for client in open_connections(server.port, 500):
            stack.enter_context(client)
        each = (resident(server.process.pid) - before) / 500
        assert COSTS.connection_memory / 3 < each < COSTS.connection_memory * 3
        assert before < COSTS.node_memory * 3


def test_the_command_shows_every_part_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--connections", "1e6", "--rate", "100", "--room-size", "50"]) == 0
    said = capsys.readouterr().out
    for words in ("1,000,000 connections", "5,000 deliveries a second", "Redis", "Rolling deploy"):
        assert words in said
    assert re.search(r"nodes, of one core each +21 \(limited by connections\)", said)
    assert re.search(r"nodes draining at once +6 of 21 \(surge 25%\), 4 times", said)
    assert re.search(r"reconnects +28,571 a second, 1,361 for each node", said)
    assert re.search(r"all are replaced +after about 80 s", said)


def test_a_surge_of_some_nodes_is_slower_and_gentler_than_one_of_a_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    load = ["plan", "--connections", "1e6", "--drain-window", "60", "--start", "30"]
    assert main([*load, "--surge", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"nodes draining at once +2 of 21, 11 times", said)
    assert re.search(r"reconnects +1,587 a second, 76 for each node", said)
    assert re.search(r"all are replaced +after about 16 minutes", said)
    assert main([*load, "--surge", "100%"]) == 0
    assert re.search(r"nodes draining at once +21 of 21 \(surge 100%\), once", capsys.readouterr().out)


def test_rooms_larger_than_all_connections_are_planned_as_one_of_all_and_it_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "--connections", "10", "--room-size", "100"]) == 0
    said = capsys.readouterr().out
    assert "into rooms of 10: 1,000 deliveries a second" in said
    assert "rooms of 100 are larger than all 10 connections: planned with rooms of 10" in said
    assert main(["plan", "--connections", "10"]) == 0
    assert "larger than all" not in capsys.readouterr().out, "nobody asked for rooms of 50"


def test_as_json_it_has_what_was_asked_the_costs_and_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--connections", "20,000", "--rate", "50", "--drain-window", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["demand"]["connections"] == 20_000
    assert found["capacity"]["headroom"] == 2
    assert found["costs"]["delivery"] == COSTS.delivery
    assert found["plan"]["nodes"] == plan(Demand(connections=20_000, rate=50), Capacity(drain_window=0)).nodes
    assert found["plan"]["drain_rate"] is None


PAGE = Path(__file__).resolve().parents[3] / "docs" / "deploy" / "scaling.md"
FENCES = re.findall(r"^```(bash|text)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for language, source in FENCES
    if language == "bash"
    for line in source.replace("\\\n", "").splitlines()
    if line.startswith("socketspec ")
]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "plan"], ids=" ".join)
def test_a_calculation_on_the_page_about_scaling_works(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "bench"], ids=" ".join)
def test_a_load_on_the_page_about_scaling_is_one_that_can_be_asked_for(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens.txt").write_text("a token\n", encoding="utf-8")
    # The last word makes it fail before it connects, and after everything else was understood.
    assert main([*words, "--publish-payload", "{}"]) == 2
    assert "--publish-payload needs {text}" in capsys.readouterr().err


def test_what_the_page_about_scaling_shows_is_what_the_calculator_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMANDS[0]) == 0
    shown = [source for language, source in FENCES if language == "text"]
    assert capsys.readouterr().out in shown


def test_a_cost_of_ones_own_takes_the_place_of_the_measured_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--cost", "event=0.5", "--cost", "node_memory=1000000", "--costs"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^event +0\.5$", said, re.MULTILINE)
    assert re.search(r"^node_memory +1e\+06$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--connections", "many"], "'many' is not a number of connections; use 1 to 1,000,000,000"),
        (["--connections", "1e30"], "1e30 is too many connections; at most 1,000,000,000"),
        (["--connections", "0"], "0 is too few connections; it must be at least 1"),
        (["--connections", "-1"], "-1 is too few connections; it must be at least 1"),
        (["--connections", "10.5"], "10.5 is not a whole number of connections"),
        (["--rate", "-1"], "-1 is too few messages a second; it must be at least 0"),
        (["--rate", "nan"], "'nan' is not a number"),
        (["--headroom", "0.9"], "0.9 is too small; it must be at least 1"),
        (["--headroom", "1,5"], "'1,5' is not a number; use 1 to 100"),
        (["--by-clients", "2"], "2 is too large; at most 1"),
        (["--surge", "0"], "0 is too few nodes; it must be at least 1"),
        (["--surge", "0%"], "0 is too few percent; it must be at least 1"),
        (["--surge", "150%"], "150 is too many percent; at most 100"),
        (["--surge", "12.5%"], "12.5 is not a whole number of percent"),
        (["--surge", "25%5"], "'25%5' is neither a number of nodes nor a percentage such as 25%"),
        (["--conections", "10"], "usage: socketspec plan "),
        (["--conections", "10"], "unrecognized arguments: --conections"),
        (["--cost", "speed=1"], "there is no cost 'speed'; --costs shows them"),
        (["--cost", "event=fast"], "'fast' is not a number"),
        (["--cost", "event"], "'' is not a number"),
        (["--cost", "event=1e300"], "--cost event=1e300: 1e300 is too many seconds; at most 1,000,000"),
        (["--cost", "envelope=0.5"], "0.5 is not a whole number of bytes"),
    ],
)
def test_a_misuse_is_one_sentence_and_status_2(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""
