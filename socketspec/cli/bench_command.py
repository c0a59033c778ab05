"""``socketspec bench``: put a load on a running deployment and measure what arrives."""

from __future__ import annotations

import argparse
import json
import os
import secrets
from importlib.util import find_spec
from pathlib import Path

from socketspec.cli.arguments import number, whole
from socketspec.cli.bench.load import Load, MisuseError, Target
from socketspec.cli.output import FAILED, MISUSED, fail
from socketspec.extras import install
from socketspec.text import one_line

__all__ = ("add_to",)

_EPILOG = """\
examples:
  socketspec bench ws://127.0.0.1:8000/ws
  socketspec bench wss://chat.example.com/ws --connections 5000 --rooms 100 --rate 200 --duration 60 --processes 4 \\
      --token-file tokens.txt --report load.html --json load.json
  socketspec bench ws://10.0.0.5:8000/ws --no-join --backend redis://10.0.0.9 --receive-event tick

The app has to join a room when told ({"event": "join", "payload": {"room": …}}) and to broadcast what is said there
({"event": "say", "payload": {"room": …, "text": …}}) as "said" or "message", with the text in it, as our reference node
does. Other names: --join-event, --publish-event, --receive-event; other payloads: --join-payload, --publish-payload. Or
publish with --backend.

Latency is measured by the clock of this machine, from just before publishing to arrival. Ctrl-C ends a run early.

exit status: 0 measured; 1 not measured, or with --strict anything refused, closed, lost or delivered twice; 2 misused
"""
_MOST = 10_000_000
_ROOMS = whole("rooms", 1, _MOST)
_SECONDS = number("seconds", 0.05, 86_400)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "bench",
        help="put a load on a running deployment and measure it",
        description="Open connections to a running SocketApp, publish at a rate, and measure what arrives, when.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="ws:// or wss:// URL of the app's WebSocket path")
    load = parser.add_argument_group("load")
    _add_load(load)
    _add_connecting(load)
    _add_words(parser.add_argument_group("what is said"))
    _add_access(parser.add_argument_group("access"))
    output = parser.add_argument_group("output")
    output.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with plots, in one file")
    output.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    output.add_argument("--quiet", action="store_true", help="no progress, only the summary")
    output.add_argument(
        "--strict", action="store_true", help="exit with 1 if anything was refused, closed, lost, twice"
    )
    output.add_argument(
        "--no-preflight", dest="preflight", action="store_false", help="do not try one message before the run"
    )
    parser.set_defaults(run=_run)


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--connections", type=whole("connections", 1, _MOST), default=100, metavar="N", help="(default: %(default)s)"
    )
    group.add_argument("--rooms", type=_ROOMS, default=1, metavar="N", help="(default: %(default)s)")
    group.add_argument("--rooms-per-connection", type=_ROOMS, default=1, metavar="N", help="(default: %(default)s)")
    group.add_argument(
        "--publishers",
        type=whole("publishers", 1, _MOST),
        default=1,
        metavar="N",
        help="in each room (default: %(default)s)",
    )
    group.add_argument(
        "--rate",
        type=number("messages a second", 1e-3, 1e7),
        default=10.0,
        metavar="N",
        help="messages published a second, in all (default: 10)",
    )
    group.add_argument("--duration", type=_SECONDS, default=10.0, metavar="SECONDS", help="(default: 10)")
    group.add_argument(
        "--size", type=whole("bytes", 1, _MOST), default=120, metavar="BYTES", help="of the text (default: %(default)s)"
    )


def _add_connecting(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--connect-rate",
        type=number("connections a second", 1e-3, 1e7),
        default=200.0,
        metavar="N",
        help="connections opened a second (default: 200)",
    )
    group.add_argument("--connect-timeout", type=_SECONDS, default=10.0, metavar="SECONDS", help="(default: 10)")
    group.add_argument(
        "--settle",
        type=_SECONDS,
        default=2.0,
        metavar="SECONDS",
        help="without an arrival at the end, until what is missing is lost (default: 2)",
    )
    group.add_argument(
        "--processes",
        type=whole("processes", 1, _MOST),
        default=1,
        metavar="N",
        help="that make the load, one core each (default: 1)",
    )
    group.add_argument(
        "--source-address",
        dest="source_addresses",
        action="append",
        default=[],
        metavar="IP",
        help="connect from it; several are taken in turn: each has some 28,000 ports",
    )


def _add_words(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--room-name", default="bench-{n}", help="(default: %(default)s)")
    group.add_argument("--join-event", default="join", metavar="EVENT", help="(default: %(default)s)")
    group.add_argument("--join-payload", default='{"room": "{room}"}', metavar="JSON", help="(default: %(default)s)")
    group.add_argument("--no-join", action="store_true", help="connecting is enough to be in the rooms")
    group.add_argument("--publish-event", default="say", metavar="EVENT", help="(default: %(default)s)")
    group.add_argument(
        "--publish-payload",
        default='{"room": "{room}", "text": "{text}"}',
        metavar="JSON",
        help="also what --backend sends (default: %(default)s)",
    )
    group.add_argument(
        "--receive-event",
        dest="receive_events",
        action="append",
        metavar="EVENT",
        help="that members get; may be given again (default: said and message)",
    )
    group.add_argument(
        "--no-echo", dest="is_echoed", action="store_false", help="the app leaves the publisher out of its broadcast"
    )
    group.add_argument("--backend", metavar="URL", help="publish through the app's backend, not through connections")
    group.add_argument("--namespace", default="/", help="the app's, for --backend (default: %(default)s)")
    group.add_argument("--prefix", help="what the app's keys begin with, for --backend")


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--subprotocol", default="", choices=("socketspec.v1.json", "socketspec.v1.msgpack"))
    token = group.add_mutually_exclusive_group()
    token.add_argument("--token", help="of every connection (default: $SOCKETSPEC_BENCH_TOKEN)")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="one token a line, taken in turn")
    group.add_argument(
        "--token-in",
        choices=("header", "query", "subprotocol"),
        default="header",
        help="Authorization: Bearer, ?token=, or the bearer subprotocol (default: header)",
    )
    group.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'", help="of the handshake")
    group.add_argument("--ca", dest="ca_file", metavar="FILE", help="trust these certificate authorities")
    group.add_argument("--insecure", dest="is_insecure", action="store_true", help="do not check the certificate")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.backend is not None and (find_spec("redis") is None or find_spec("hiredis") is None):
        return fail(f"--backend needs redis and hiredis: {install('redis')}")
    # Imported here, not above: other commands should not wait for it.
    from socketspec.cli.bench.control import BenchError
    from socketspec.cli.bench.limits import allow_files
    from socketspec.cli.bench.wording import Wording

    try:
        load = _load(arguments)
        Wording(load)
        allow_files(load)
        return _measure(load, arguments)
    except MisuseError as error:
        return fail(str(error), MISUSED)
    except BenchError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("interrupted")


def _measure(load: Load, arguments: argparse.Namespace) -> int:
    from socketspec.cli.bench.control import preflight, run_load
    from socketspec.cli.bench.progress import Progress
    from socketspec.cli.bench.report import render

    if arguments.preflight:
        preflight(load)
    progress = Progress(is_quiet=arguments.quiet)
    try:
        result = run_load(load, progress)
    finally:
        progress.end()
    print(f"{Target.parse(load.url).shown}, {load.rooms:,} room{'s' if load.rooms > 1 else ''}, {load.duration:g} s")
    for name, value in result.rows():
        print(f"  {name:<24}{one_line(value)}")  # servers have a say in it
    for remark in result.remarks():
        print(f"note: {one_line(remark)}")
    if arguments.json is not None:
        _write(arguments.json, json.dumps(result.as_json(), indent=2) + "\n")
    if arguments.report is not None:
        _write(arguments.report, render(result))
        print(f"report: {arguments.report}")
    return 0 if result.is_complete or not arguments.strict else FAILED


def _write(path: Path, text: str) -> None:
    from socketspec.cli.bench.control import BenchError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror or error}") from None


def _load(arguments: argparse.Namespace) -> Load:
    """Raises `MisuseError`."""
    Target.parse(arguments.url)
    for path in (arguments.json, arguments.report):
        if path is not None and not path.absolute().parent.is_dir():  # not only after the run
            raise MisuseError(f"cannot write {path}: there is no folder {path.parent}.")
    same = {name: value for name, value in vars(arguments).items() if name in Load.__slots__}
    same |= {
        "run": secrets.token_hex(4),
        "headers": tuple(_header(text) for text in arguments.header),
        "tokens": _tokens(arguments),
        "source_addresses": tuple(arguments.source_addresses),
        "receive_events": tuple(arguments.receive_events or ("said", "message")),
        "join_event": "" if arguments.no_join else arguments.join_event,
    }
    return Load(**same)


def _header(text: str) -> tuple[str, str]:
    name, found, value = text.partition(":")
    if not found or not name.strip() or any(each in text for each in "\r\n\0"):
        raise MisuseError(f"--header {text!r} is no header; write 'Name: value'.")
    return name.strip(), value.strip()


def _tokens(arguments: argparse.Namespace) -> tuple[str, ...]:
    if arguments.token_file is None:
        token = arguments.token or os.environ.get("SOCKETSPEC_BENCH_TOKEN", "")
        return (token,) if token else ()
    try:
        lines = arguments.token_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(f"cannot read {arguments.token_file}: {error}.") from None
    tokens = tuple(line.strip() for line in lines if line.strip())
    if not tokens:
        raise MisuseError(f"{arguments.token_file} holds no token; write one a line.")
    return tokens
