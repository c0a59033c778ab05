"""What an error means for a command: whether it may be tried again, and the sentence to raise."""

from __future__ import annotations

from typing import Final

from redis import exceptions as replied

from socketspec.cluster.commands.command import Command
from socketspec.cluster.servers.shard import NotSentError

__all__ = ("is_connection_lost", "is_not_carried_out", "is_of_another_type", "refusal", "unanswered", "wrong_type")

NOT_CARRIED_OUT: Final = (
    NotSentError,
    replied.AskError,  # and MovedError, which is one
    replied.BusyLoadingError,
    replied.ClusterDownError,  # and MasterDownError
    replied.ReadOnlyError,
    replied.TryAgainError,
)
"""Errors that say that nothing was done, and that pass when the servers have settled."""

_REFUSALS: Final = (
    (replied.OutOfMemoryError, "Redis has reached its maxmemory; raise it, or let it evict keys"),
    (replied.NoPermissionError, "the Redis user lacks a permission; grant it with ACL SETUSER"),
    (replied.AuthenticationError, "the connection is not logged in; check the user and the password"),
    (replied.NoScriptError, "Redis forgets scripts at once; does something call SCRIPT FLUSH all the time?"),
    (replied.ClusterCrossSlotError, "its keys are in different hash slots"),
)


def is_not_carried_out(error: Exception) -> bool:
    """Whether the command certainly did nothing, and may do it when it is tried again."""
    return isinstance(error, NOT_CARRIED_OUT) or str(error).startswith("BUSY ")


def is_of_another_type(error: Exception) -> bool:
    """Whether a key of the command holds what nobody of ours puts there, such as a text in the place of a hash."""
    return str(error).startswith("WRONGTYPE")


def is_connection_lost(error: Exception) -> bool:
    """Whether the connection failed, and so perhaps the server."""
    if isinstance(error, replied.AuthenticationError | replied.AuthorizationError):
        return False
    return isinstance(error, replied.ConnectionError | replied.TimeoutError | OSError)


def unanswered(command: Command, cause: str, *, is_sent: bool, problem: str) -> str:
    """The sentence for a command without an answer; `problem` says why it was not carried out, if it was not sent."""
    if is_sent:
        return f"{command.name} was sent to Redis, but {cause} answered: whether it was carried out is unknown."
    return f"{command.name} was not carried out: {cause} accepted, because {problem.rstrip('.')}."


def refusal(command: Command, error: Exception) -> str:
    """The sentence for an error that trying again does not help against."""
    if is_connection_lost(error):
        return (
            f"{command.name} was sent to Redis, but its answer did not come ({error}): "
            "whether it was carried out is unknown."
        )
    for kind, sentence in _REFUSALS:
        if isinstance(error, kind):
            return f"{command.name} was refused: {sentence} ({error})"
    if is_of_another_type(error):
        return f"{command.name} was refused: {wrong_type(command)} ({error})"
    return f"{command.name} was refused by Redis: {error}"


def wrong_type(command: Command) -> str:
    """What is to be done where one of the command's keys holds another type of value."""
    names = ", ".join(key.decode("utf-8", "backslashreplace") for key in command.keys)
    return (
        f"another program has written to {'one of the keys ' if len(command.keys) > 1 else 'the key '}{names}, which "
        "SocketSpec fills with another type of value. Look at it with TYPE, move or DEL it, and give each program a "
        "prefix of its own"
    )
