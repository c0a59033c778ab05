"""``socketspec publish``: send an event to an app's clients from a shell."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from typing import Any

from socketspec.cli.arguments import number
from socketspec.cli.output import FAILED, MISUSED, fail
from socketspec.errors import BackendError, ConfigurationError
from socketspec.extras import install
from socketspec.protocol.publications import Position, Receipt

__all__ = ("add_to",)

_EPILOG = """\
examples:
  socketspec publish orders:7 shipped '{"carrier": "post"}'
  socketspec publish --all announcement '{"text": "Back in five minutes"}'
  socketspec publish --user alice invited '{"by": "bob"}' --namespace /chat
  generate-report | socketspec publish reports ready - --backend redis://redis:6379

exit status: 0 sent (also where nobody was there), 1 not sent or not confirmed, 2 misused
"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "publish",
        help="send an event to a room, to a user or to everybody",
        description="Send an event to the clients of an app, through its backend.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="socketspec publish [options] (ROOM | --all | --user ID) EVENT [JSON]",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ROOM EVENT [JSON]",
        help="JSON is the payload, an object; - reads it from standard input; {} if left out",
    )
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument("--all", action="store_true", help="to every connection of the namespace, in the place of ROOM")
    whom.add_argument("--user", metavar="ID", help="to every connection of a user, in the place of ROOM")
    parser.add_argument("--namespace", default="/", help="the app's namespace (default: %(default)s)")
    parser.add_argument("--backend", metavar="URL", help="the app's backend (default: $SOCKETSPEC_BACKEND)")
    parser.add_argument("--prefix", help="what the app's keys begin with (default: socketspec)")
    parser.add_argument("--exclude", metavar="ID", action="append", default=[], help="a connection that is left out")
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="within 5 minutes another message with this key is not sent"
    )
    parser.add_argument(
        "--timeout", type=number("seconds", 0.05, 60), metavar="SECONDS", help="it may take (default: 5)"
    )
    parser.set_defaults(run=_run)


def _kept(position: Position | None) -> str:
    if position is None:
        return ""
    return f", kept at offset {position.offset} (epoch {position.epoch}, tag {position.tag})"


class _MisuseError(Exception):
    """What was asked makes no sense; the text says why."""


def _run(arguments: argparse.Namespace) -> int:
    if find_spec("redis") is None or find_spec("hiredis") is None:
        return fail(f"publish needs redis and hiredis: {install('redis')}", FAILED)
    try:
        receipt = _publish(arguments)
    except (_MisuseError, ConfigurationError, ValueError, TypeError) as error:
        return fail(str(error), MISUSED)
    except BackendError as error:
        return fail(str(error), FAILED)
    except KeyboardInterrupt:
        return fail("interrupted: the message may have been sent, or not", FAILED)
    nodes = f"{receipt.nodes} {'node' if receipt.nodes == 1 else 'nodes'}"
    print(f"delivered to {nodes}{_kept(receipt.position)}")
    return 0


def _publish(arguments: argparse.Namespace) -> Receipt:
    # Imported here, not above: the rest of the command works without the extra.
    from socketspec.cluster.publishers.publisher import Publisher

    room, event, text = _words(arguments)
    if room is None and arguments.idempotency_key is not None:
        raise _MisuseError("--idempotency-key is for rooms only.")
    if arguments.user is not None and arguments.exclude:
        raise _MisuseError("--exclude cannot be combined with --user.")
    payload = _payload(text)
    with Publisher(
        arguments.backend, prefix=arguments.prefix, namespace=arguments.namespace, timeout=arguments.timeout
    ) as publisher:
        if arguments.user is not None:
            return publisher.send_to_user(arguments.user, event, payload)
        if room is None:
            return publisher.broadcast_all(event, payload, exclude=arguments.exclude)
        return publisher.broadcast(
            room, event, payload, exclude=arguments.exclude, idempotency_key=arguments.idempotency_key
        )


def _words(arguments: argparse.Namespace) -> tuple[str | None, str, str | None]:
    words: list[str] = arguments.words
    has_room = not arguments.all and arguments.user is None
    wanted = "ROOM EVENT [JSON]" if has_room else "EVENT [JSON] (and no ROOM)"
    if not 1 + has_room <= len(words) <= 2 + has_room:
        raise _MisuseError(f"publish takes {wanted}, not {len(words)} of them; quote the JSON for your shell.")
    room = words[0] if has_room else None
    event, *rest = words[has_room:]
    return room, event, rest[0] if rest else None


def _payload(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    is_input = text == "-"
    where = "standard input" if is_input else "the payload"
    try:
        value: Any = json.loads(sys.stdin.read() if is_input else text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _MisuseError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}{_near(error)}."
        ) from None
    except RecursionError:
        raise _MisuseError(f"{where} is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise _MisuseError(f"{where} is not UTF-8: {error.reason} at byte {error.start}.") from None
    if not isinstance(value, dict):
        raise _MisuseError(f'{where} must be a JSON object such as {{"text": "hello"}}, not {_kind(value)}.')
    return value


def _refuse_constant(name: str) -> Any:
    raise _MisuseError(f"the payload holds {name}, which is not JSON.")


def _near(error: json.JSONDecodeError) -> str:
    around = error.doc[max(error.pos - 10, 0) : error.pos + 10]
    return f", near {around!r}" if around else " (there is nothing)"


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
