"""The ``socketspec`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from socketspec import __version__
from socketspec.cli import (
    bench_command,
    check_command,
    demo_command,
    dev_command,
    plan_command,
    publish_command,
    serve_command,
)

__all__ = ("main",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own). Returns the exit status: 0 fine, 1 failed, 2 misused."""
    parser, commands = _parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            commands.get(arguments.command, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    except SystemExit as end:  # argparse has printed the help, the version or what was wrong
        return end.code if isinstance(end.code, int) else 2
    if arguments.command is None:
        parser.print_help()
        return 0
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The command line's, and each command's: that one's usage is what helps whoever misspelt its options."""
    parser = argparse.ArgumentParser(
        prog="socketspec", description="FastAPI-style WebSocket pub/sub that scales horizontally."
    )
    parser.add_argument("--version", action="version", version=f"socketspec {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for command in (
        dev_command,
        check_command,
        serve_command,
        publish_command,
        bench_command,
        plan_command,
        demo_command,
    ):
        command.add_to(commands)
    return parser, commands.choices


if __name__ == "__main__":
    sys.exit(main())
