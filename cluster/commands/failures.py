"""What an error means for a command: whether it may be tried again, and the sentence to raise."""

from __future__ import annotations

import re
from typing import Final

from redis import exceptions as replied

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import pattern_of
from socketspec.cluster.servers.shard import NotSentError
from socketspec.cluster.servers.trouble import missing_command
from socketspec.errors import BackendError

__all__ = (
    "READS",
    "UnsureError",
    "explained",
    "is_connection_lost",
    "is_not_carried_out",
    "is_of_another_type",
    "refusal",
    "unanswered",
)

READS: Final = frozenset(
    {"count_members", "read", "XRANGE", "XREVRANGE", "HGETALL", "HKEYS", "HVALS", "HMGET", "SRANDMEMBER", "ZRANGE"}
)
"""Commands and scripts that only read and whose replies may be long."""


class UnsureError(BackendError):
    """Nobody knows whether the command was carried out. Any other `BackendError` of a command says that it was not."""


NOT_CARRIED_OUT: Final = (
    NotSentError,
    replied.AskError,  # and MovedError, which is one
    replied.BusyLoadingError,
    replied.ClusterDownError,  # and MasterDownError
    replied.ReadOnlyError,
    replied.TryAgainError,
)
"""Errors that say that nothing was done, and that pass when the servers have settled."""

_LACKS: Final = "the user may not do this: allow it with ACL SETUSER (the documentation of the cluster has the line)"
_LACKS_NAMES: Final = (
    ("channel", "&", ", as a user of Redis 7 may use none by default"),
    ("key", "~", ""),
)
"""What a user may not reach, the sign of a pattern for it, and why that may be."""
_HINTS: Final = {
    "OOM": "its memory is full (maxmemory): raise that, and keep maxmemory-policy noeviction, as any other would drop "
    "revocations, sessions and histories",
    "NOPERM": _LACKS,
    "NOAUTH": "the connection is not logged in: give a user and a password in the URL",
    "WRONGPASS": "the user or the password is wrong, or the user is off",
    "MISCONF": "it cannot save to its disk",
    "NOREPLICAS": "too few replicas are connected",
    "NOSCRIPT": "it forgets scripts at once: does something call SCRIPT FLUSH all the time?",
    "CROSSSLOT": "its keys are in different hash slots",
}
"""What to do about a refusal, by the name that it begins with: https://redis.io/docs/latest/develop/reference/protocol-spec/."""
_NAMES: Final = (
    (replied.OutOfMemoryError, "OOM"),
    (replied.NoPermissionError, "NOPERM"),
    (replied.AuthenticationError, "NOAUTH"),
    (replied.NoScriptError, "NOSCRIPT"),
    (replied.ClusterCrossSlotError, "CROSSSLOT"),
)
_IN_SCRIPTS: Final = (
    ("ACL failure in script", _LACKS),
    ("executing the script can't", _LACKS),
    ("called from script", "a command that scripts of ours use is switched off there, or renamed (rename-command)"),
)


def is_not_carried_out(error: Exception) -> bool:
    """Whether the command certainly did nothing, and may do it when it is tried again."""
    return isinstance(error, NOT_CARRIED_OUT) or str(error).startswith("BUSY ")


def is_of_another_type(error: Exception | str) -> bool:
    """Whether a key of the command holds what nobody of ours puts there, such as a text in the place of a hash."""
    return str(error).startswith("WRONGTYPE")


def is_connection_lost(error: Exception) -> bool:
    """Whether the connection failed, and so perhaps the server."""
    if isinstance(error, replied.AuthenticationError | replied.AuthorizationError):
        return False
    return isinstance(error, replied.ConnectionError | replied.TimeoutError | OSError)


def unanswered(command: Command, cause: str, *, is_sent: bool, problem: str) -> BackendError:
    """The error for a command without an answer; `problem` says why it was not carried out, if it was not sent."""
    if is_sent:
        return _unsure(command, f"{cause} answered")
    return BackendError(f"{command.name} was not carried out: {cause} accepted, because {_ended(problem)}")


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."


def _unsure(command: Command, why: str) -> BackendError:
    if command.name in READS:  # nothing would have changed
        return BackendError(f"{command.name} was sent to Redis, but {why}.")
    return UnsureError(f"{command.name} was sent to Redis, but {why}: whether it was carried out is unknown.")


def refusal(command: Command, error: Exception) -> BackendError:
    """The error for an error that trying again does not help against."""
    if is_connection_lost(error):
        return _unsure(command, f"its answer did not come ({str(error).rstrip('.')})")
    # redis-py takes the name off where it has a class for it.
    name = next((name for kind, name in _NAMES if isinstance(error, kind)), "")
    return BackendError(f"{command.name} was refused by Redis: {explained(command, f'{name} {error}'.lstrip())}")


def explained(command: Command, text: str) -> str:
    """A server's refusal, which begins with the name of the error, after what to do about it, where we know that."""
    if is_of_another_type(text):
        return f"{_wrong_type(command)} ({text})"
    hint = _HINTS.get(text.partition(" ")[0]) or next((hint for words, hint in _IN_SCRIPTS if words in text), "")
    hint = _lacks(command, text) if hint is _LACKS else hint or missing_command(text)
    short = text.partition(", with args beginning with")[0]  # they may be a whole script
    return f"{hint} ({short})" if hint else text


def _lacks(command: Command, text: str) -> str:
    """What to do where the user lacks a permission. Redis says which: ``No permissions to access a channel``."""
    for what, sign, why in _LACKS_NAMES:
        if command.keys and re.search(rf"\b(a|the|one of the) {what}", text):
            pattern = pattern_of(command.keys[0])
            return f"the user may not use this {what}: allow it with ACL SETUSER USER '{sign}{pattern}'{why}"
    return _LACKS


def _wrong_type(command: Command) -> str:
    """What is to be done where one of the command's keys holds another type of value."""
    names = ", ".join(key.decode("utf-8", "backslashreplace") for key in command.keys)
    return (
        f"another program has written to {'one of the keys ' if len(command.keys) > 1 else 'the key '}{names}, which "
        "SocketSpec fills with another type of value. Look at it with TYPE, move or DEL it, and give each program a "
        "prefix of its own"
    )
