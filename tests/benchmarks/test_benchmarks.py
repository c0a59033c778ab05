"""The benchmarks run: every script once, at a size that takes a moment. What they measure is not looked at."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from socketspec.adapters.uvicorn.frames import CLOSE, TEXT, FrameReader
from tests.benchmarks import native, sockets, stage
from tests.benchmarks.bench_all import BENCHMARKS
from tests.benchmarks.plot import Line, Panel, ceiling, short, svg
from tests.benchmarks.suite import Goal, Results, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need epoll and /proc")


def run_quickly(name: str, folder: Path) -> tuple[Results, dict[str, object]]:
    arguments = ["--quick", "--peers", "none", "--json", str(folder / "r.json"), "--picture", str(folder / "p.svg")]
    found = run({name: BENCHMARKS[name]}, None, arguments)
    return found, json.loads((folder / "r.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_quick_run_prints_a_table_and_writes_every_figure(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, written = run_quickly(name, tmp_path)
    table = capsys.readouterr().out
    assert written["quick"] is True
    assert found.rows or found.curves
    assert all(row.what in table and row.ours in table for row in found.rows)
    assert "nan" not in table
    assert written["runs"] == found.runs


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(3)]
    yield made
    for pair in made:
        for end in pair:
            end.close()


def test_readers_count_bytes_until_there_are_enough(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    readers = sockets.Readers([client for client, _ in pairs])
    for _, server in pairs:
        server.send(b"x" * 100)
    assert readers.read(300).bytes == 300
    pairs[0][1].close()
    tally = readers.read(1, patience=0.05)
    assert (tally.bytes, tally.closed) == (0, 1)
    readers.close()


def test_readers_note_when_each_message_has_come(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    readers = sockets.Readers([client for client, _ in pairs])
    began = time.monotonic_ns()
    pairs[0][1].send(b"x" * 25)
    pairs[1][1].send(b"x" * 15)
    arrivals = readers.read_timed(40, 10).arrivals
    assert sorted(number for number, _ in arrivals) == [0, 0, 1]
    assert all(began < moment <= time.monotonic_ns() for _, moment in arrivals)
    readers.close()


def test_every_answered_request_is_timed(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    def answer(server: socket.socket) -> None:
        while server.recv(100):
            server.send(b"answer")

    for _, server in pairs:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
    found = sockets.round_trips([client for client, _ in pairs], b"request", len(b"answer"), 0.05)
    assert found.done == len(found.delays) > len(pairs)
    assert 0 < found.percentile(0.5) <= found.percentile(0.99)
    for client, _ in pairs:
        client.shutdown(socket.SHUT_RDWR)  # ends the threads


@pytest.mark.parametrize("has_compiler", [True, False])
def test_the_bare_loop_sends_each_message_to_each_connection(
    has_compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_compiler:
        monkeypatch.setattr(native, "bare_program", lambda: None)
    with stage.Bare(3) as bare:
        bare.tell("5 100")
        assert bare.readers.read(3 * 5 * 100).bytes == 1500
        assert bare.answer() == {}


def test_a_client_frame_is_what_a_server_reads() -> None:
    for text in (b"hello", b"x" * 300):
        reader = FrameReader(max_size=1000)
        reader.feed(sockets.client_frame(text) + sockets.CLOSE)
        assert reader.next() == (TEXT, text.decode())
        assert reader.next() == (CLOSE, (1000, ""))


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    results = Results()
    for ours, theirs in ((10.0, 5.0), (8.0, 8.0), (30.0, 10.0)):
        results.add("rate", "socketspec", ours)
        results.add("rate", "peer", theirs)
    assert results.ratio("rate", "socketspec", "peer") == 2.0


def test_a_missed_goal_is_said_to_be_missed() -> None:
    assert Goal(at_least=0.65).verdict(0.64) == "MISSED"
    assert Goal(at_most=16).verdict(16) == "ok"
    assert Goal().verdict(1) == ""


def test_the_plot_is_well_formed_and_has_a_dot_for_every_figure() -> None:
    lines = [Line("a & b", [(1, 10.0), (1000, 25.0)]), Line("c", [(1, 1.0), (1000, 2.0)])]
    root = ElementTree.fromstring(svg([Panel("<title>", "x", lines)] * 2, "two panels"))  # noqa: S314 - our own text
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 8


@pytest.mark.parametrize(("value", "shown"), [(10, "10"), (1500, "1.5k"), (65536, "64Ki"), (100_000, "100k")])
def test_axis_values_are_short(value: float, shown: str) -> None:
    assert short(value) == shown


@pytest.mark.parametrize(("value", "above"), [(0, 1), (7, 10), (1200, 2000), (240, 250)])
def test_an_axis_ends_at_a_round_value(value: float, above: float) -> None:
    assert ceiling(value) == above
