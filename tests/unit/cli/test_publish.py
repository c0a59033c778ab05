"""``socketspec publish``, as far as it goes without a server."""

from __future__ import annotations

import io
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest

from socketspec.cli.main import main
from socketspec.cluster import RedisOptions
from socketspec.errors import ConfigurationError
from socketspec.extras import install
from tests.servers import free_port

NOBODY = ["--backend", "redis://127.0.0.1:1", "--timeout", "0.2"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "publish takes ROOM EVENT [JSON], not 0 of them"),
        (["room"], "publish takes ROOM EVENT [JSON], not 1 of them"),
        (["room", "event", "{}", "more"], "not 4 of them; quote the JSON for your shell"),
        (["--all"], "publish takes EVENT [JSON] (and no ROOM), not 0 of them"),
        (["--user", "u", "room", "event", "{}"], "publish takes EVENT [JSON] (and no ROOM), not 3 of them"),
        (["--all", "--user", "u", "event"], "not allowed with argument"),
        (["room", "event", '{"a": }'], "not JSON: Expecting value at line 1, column 7, near '{\"a\": }'"),
        (["room", "event", '{\n "a": 1 2\n}'], "at line 2, column 9"),
        (["room", "event", ""], "the payload is not JSON: Expecting value at line 1, column 1 (there is nothing)"),
        (["room", "event", "[1]"], 'must be a JSON object such as {"text": "hello"}, not a list'),
        (["room", "event", "null"], "not null"),
        (["room", "event", '"text"'], "not a string"),
        (["room", "event", "true"], "not true or false"),
        (["room", "event", "1.5"], "not a number"),
        (["room", "event", '{"a": NaN}'], "NaN, which is not JSON"),
        (["room", "event", '{"a": "\\ud800"}'], "Cannot send this payload"),
        (["room", "event", "[" * 100_000], "nested too deeply"),
        (["room", "__ack__"], "'__ack__' is reserved"),
        (["", "event"], "room name '' is empty"),
        (["--user", "", "event"], "user id '' is empty"),
        (["room", "event", "--namespace", "chat"], 'does not start with "/"'),
        (["room", "event", "--prefix", "a b"], "prefix"),
        (["room", "event", "--timeout", "-1"], "-1 is too few seconds; it must be at least 0.05"),
        (["room", "event", "--timeout", "soon"], "'soon' is not a number of seconds; use 0.05 to 60"),
        (["room", "event", "--backend", "http://x"], "scheme 'http' is unknown"),
        (["--all", "event", "--idempotency-key", "k"], "--idempotency-key is for rooms"),
        (["--user", "u", "event", "--exclude", "id"], "--exclude cannot be combined with --user"),
    ],
)
def test_a_misuse_is_one_sentence_and_status_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = [] if "--backend" in arguments else NOBODY[:2]
    timeout = [] if "--timeout" in arguments else NOBODY[2:]
    assert main(["publish", *backend, *timeout, *arguments]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""


def test_without_a_backend_it_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SOCKETSPEC_BACKEND", raising=False)
    assert main(["publish", "room", "event"]) == 2
    assert "SOCKETSPEC_BACKEND" in capsys.readouterr().err


def test_where_nobody_listens_the_status_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"redis://:s3cret@127.0.0.1:{free_port()}"
    assert main(["publish", "room", "event", "--backend", url, "--timeout", "0.3"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the message was not sent" in captured.err
    assert "Connection refused" in captured.err
    assert "s3cret" not in captured.err
    assert captured.err.count("\n") == 1


def test_bad_json_on_standard_input_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("{"))
    assert main(["publish", "room", "event", "-", *NOBODY]) == 2
    assert "standard input is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["redis", "hiredis"])
def test_without_the_extra_it_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name == missing else find_spec(name)

    monkeypatch.setattr("socketspec.cli.publish_command.find_spec", find)
    assert main(["publish", "room", "event"]) == 1
    assert capsys.readouterr().err == f"socketspec: publish needs redis and hiredis: {install('redis')}\n"


@pytest.mark.parametrize(("seconds", "is_fine"), [("0.05", True), ("60", True), ("0.049", False), ("60.1", False)])
def test_the_command_takes_the_timeouts_that_a_publisher_takes(
    seconds: str, is_fine: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    # Payloads are looked at after the command line was understood.
    assert main(["publish", "room", "event", "[]", *NOBODY[:2], "--timeout", seconds]) == 2
    assert ("must be a JSON object" in capsys.readouterr().err) == is_fine
    if is_fine:
        RedisOptions(command_timeout=float(seconds))
    else:
        with pytest.raises(ConfigurationError):
            RedisOptions(command_timeout=float(seconds))
