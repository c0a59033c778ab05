"""What the errors of publishers say: which command it was, and whether it was sent."""

from __future__ import annotations

from collections.abc import Sequence

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.failures import explained
from socketspec.errors import BackendError

__all__ = ("not_sent", "refused", "said", "what")


def what(command: Command) -> str:
    """What a command is to those who call a publisher."""
    names = {"SPUBLISH": "the message", "publish": "the message", "revoke": "the revocation"}
    return names.get(command.name, f"the command {command.name}")


def said(error: Exception) -> str:
    """A refusal in the server's own words: redis-py cuts off the name of those that it has a class for."""
    code: str | None = getattr(error, "status_code", None)
    return f"{code} {error}" if code else str(error)


def not_sent(commands: Sequence[Command], why: object) -> BackendError:
    """The error for commands of which none has been sent to Redis."""
    subject = what(commands[0]) if len(commands) == 1 else f"none of {len(commands)} commands"
    verb = "was not" if len(commands) == 1 else "was"
    return BackendError(f"{subject[0].upper()}{subject[1:]} {verb} sent: {why}")


def refused(command: Command, text: str) -> str:
    """The sentence for a command that Redis has refused, for good."""
    return f"Redis refused {what(command)}: {explained(command, text)}"
