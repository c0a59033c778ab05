"""What the errors of publishers say: which command it was, and whether it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.failures import UnsureError, explained
from socketspec.cluster.commands.keys import carries_orders
from socketspec.errors import BackendError

__all__ = ("first_error", "has_failed", "many_failed", "not_sent", "refused", "said", "what")


def what(command: Command) -> str:
    """What a command is to those who call a publisher."""
    names = {
        "SPUBLISH": "the message",
        "publish": "the message",
        "revoke": "the revocation",
        "count_members": "how many are connected",
        "read": "the history",
    }
    if command.name == "publish" and carries_orders(command.keys[0]):
        return "the order to close connections"
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


def has_failed(outcomes: Sequence[Any]) -> bool:
    """Whether one of the commands with these outcomes was not carried out, or may not have been."""
    return any(isinstance(outcome, BackendError) for outcome in outcomes)


def first_error(outcomes: Sequence[Any]) -> BackendError | None:
    """The error that says most: one of a command of which nobody knows, else the first."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, BackendError)]
    return next((error for error in errors if isinstance(error, UnsureError)), errors[0] if errors else None)


def many_failed(outcomes: Sequence[Any], given: int) -> BackendError:
    """The error for `given` messages, of which the first have these outcomes, and the others were not tried."""
    error = first_error(outcomes)
    number = 1 + next(index for index, outcome in enumerate(outcomes) if outcome is error)
    unsure = sum(isinstance(outcome, UnsureError) for outcome in outcomes)
    sent = sum(not isinstance(outcome, BackendError) for outcome in outcomes)
    unsent = given - sent - unsure
    if unsure:
        text = f"{unsure} of {given} messages may have been sent, or not; {unsent} were not sent, {sent} were sent."
    elif sent:
        text = f"{unsent} of {given} messages were not sent, {sent} were sent."
    else:
        text = f"None of {given} messages was sent."
    which = "that may have been sent" if unsure else "that was not sent"
    return BackendError(f"{text} The first {which} is number {number}: {error}")
