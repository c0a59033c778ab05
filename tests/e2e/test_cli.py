"""The `socketspec` command, run as users run it."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import pytest

from socketspec import __version__
from socketspec.cli.main import main
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.declaration.rooms import Room
from socketspec.extras import install
from socketspec.protocol.publications import History
from tests.servers import Server
from tests.support_demo import Demo, run, running_demo


def test_the_version_is_the_packages() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, f"socketspec {__version__}", "")


def test_alone_it_prints_its_help() -> None:
    result = run()
    assert (result.returncode, result.stderr) == (0, "")
    assert "demo" in result.stdout
    assert "--version" in result.stdout


def test_the_demos_help_names_its_options_and_defaults() -> None:
    result = run("demo", "--help")
    assert result.returncode == 0
    for word in ("--host", "127.0.0.1", "--port", "8000", "--nodes"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["demo", "--nodes", "33"], "33 is too many nodes; at most 32"),
        (["demo", "--nodes", "0"], "0 is too few nodes; it must be at least 1"),
        (["demo", "--nodes", "two"], "'two' is not a number of nodes; use 1 to 32"),
        (["demo", "--port", "65536"], "'65536' is not a port"),
        (["demo", "--port", "-1"], "'-1' is not a port"),
        (["demo", "--port", "x"], "'x' is not a port"),
        (["dmo"], "invalid choice"),
        (["demo", "--prot", "1"], "unrecognized arguments"),
    ],
)
def test_a_misused_option_is_named_and_the_status_is_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""


def test_a_taken_port_is_one_sentence_without_a_traceback() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("demo", "--port", str(port))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"socketspec: Cannot listen on 127.0.0.1:{port} (Address already in use")
    assert "--port" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_host_that_is_not_this_machines_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--host", "192.0.2.1", "--port", "0"]) == 1  # TEST-NET-1, RFC 5737
    assert "Cannot listen on 192.0.2.1:0" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "websockets"])
def test_without_the_extra_the_demo_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find: Callable[[str], ModuleSpec | None] = importlib.util.find_spec
    monkeypatch.setattr("socketspec.cli.demo_command.find_spec", lambda name: None if name == missing else find(name))
    assert main(["demo", "--port", "0"]) == 1
    assert capsys.readouterr().err == f"socketspec: The demo needs {missing}: {install('fastapi')}\n"


def test_the_demo_says_where_it_is_and_ends_cleanly_on_ctrl_c() -> None:
    with running_demo() as demo:
        assert "two browser tabs" in demo.greeting
        assert "/socket-docs" in demo.greeting
        assert "Ctrl-C" in demo.greeting
        with urllib.request.urlopen(demo.url("/socket-health"), timeout=10) as answer:  # noqa: S310 - an http address
            assert answer.status == 200


def test_a_termination_signal_ends_the_demo_without_a_traceback() -> None:
    demo = Demo()
    with urllib.request.urlopen(demo.url("/socket-health"), timeout=10) as answer:  # noqa: S310 - an http address
        assert answer.status == 200
    status, output = demo.end(signal.SIGTERM)
    assert (status, output) == (-signal.SIGTERM, "")


def test_publish_says_what_became_of_it(standalone_server: Server) -> None:
    result = run("publish", "nobody:here", "hello", '{"text": "grüße"}', backend=standalone_server.url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "delivered to 0 nodes\n", "")


def test_publish_reads_standard_input_and_a_key_is_sent_once(standalone_server: Server) -> None:
    prefix = f"cli-{os.getpid()}"
    with Publisher(standalone_server.url, prefix=prefix, rooms=[Room("log", history=History(size=9))]) as publisher:
        publisher.broadcast("log", "first")
        options = ("--prefix", prefix, "--backend", standalone_server.url, "--idempotency-key", "job 1")
        results = [run("publish", "log", "ready", "-", *options, stdin='{"pages": 3}') for _ in range(2)]
        said = [
            re.fullmatch(r"delivered to 0 nodes, kept at offset (2) \(epoch \w+, tag (\w+)\)\n", r.stdout)
            for r in results
        ]
        assert said[0] is not None, results
        assert said[1] is not None, results
        assert said[0].groups() == said[1].groups()
        assert [(message.event, message.payload) for message in publisher.history("log")] == [
            ("first", {}),
            ("ready", {"pages": 3}),
        ]


@pytest.mark.parametrize("whom", [("--all",), ("--user", "alice"), ("--all", "--exclude", "a", "--exclude", "b")])
def test_publish_reaches_everybody_or_a_user(standalone_server: Server, whom: tuple[str, ...]) -> None:
    result = run("publish", *whom, "news", "--namespace", "/chat", backend=standalone_server.url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "delivered to 0 nodes\n", "")


def test_publishs_help_has_examples_and_exit_statuses() -> None:
    result = run("publish", "--help")
    assert result.returncode == 0
    for word in ("--all", "--user", "--namespace", "--idempotency-key", "examples:", "exit status:"):
        assert word in result.stdout
