"""Commands that wait for their replies, and the queues that they wait in, one for each primary and kind."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from socketspec.cluster.commands.command import Argument, Command
from socketspec.cluster.commands.failures import unanswered
from socketspec.cluster.options import Address
from socketspec.cluster.servers.backoff import QUICK, Backoff
from socketspec.errors import BackendError

__all__ = ("Call", "Queue", "QueueKey", "answer", "are_sent", "size_of")


class QueueKey(NamedTuple):
    """Which queue: of a primary, where one is known, and for reads or for everything else."""

    address: Address | None
    reads: bool


class Call:
    """A command, and the caller who waits for its reply."""

    __slots__ = ("as_eval", "command", "deadline", "is_sent", "number", "problem", "reply", "size")

    def __init__(self, command: Command, number: int, deadline: float, reply: asyncio.Future[Any], size: int) -> None:
        self.command: Command = command
        self.size: int = size
        self.number: int = number
        self.deadline: float = deadline
        self.reply: asyncio.Future[Any] = reply
        self.as_eval: bool = False
        self.is_sent: bool = False
        self.problem: str = ""
        """Why it was not carried out so far; empty where it waits for its first turn."""

    def words(self) -> list[Argument]:
        """What is sent."""
        return self.command.as_eval() if self.as_eval else self.command.words()

    def was_not_sent(self, problem: str) -> None:
        """It was certainly not carried out, and may be sent again."""
        self.is_sent = False
        self.problem = problem

    def unanswered(self, cause: str, address: Address | None) -> BackendError:
        """The error where there is no answer, for this `cause`, of the server at `address`."""
        problem = self.problem or f"{address or 'the server'} has not taken it so far"
        return unanswered(self.command, cause, is_sent=self.is_sent, problem=problem)


class Queue:
    """Commands for one primary, and the pipeline that is under way there."""

    __slots__ = ("backoff", "calls", "key", "name", "next_look", "task", "timer", "under_way")

    def __init__(self, key: QueueKey) -> None:
        self.key: QueueKey = key
        self.name: str = f"redis commands to {key.address}"
        self.calls: deque[Call] = deque()
        self.under_way: Sequence[Call] = ()
        self.backoff: Backoff = Backoff(QUICK)
        """Between tries of what was not carried out; begins anew with the next reply."""
        self.timer: asyncio.TimerHandle | None = None
        self.next_look: float = math.inf
        """When `timer` is due: by the first deadline of any call."""
        self.task: asyncio.Task[None] | None = None
        """Sends the calls; None while there are none."""


def answer(call: Call, reply: Any) -> None:
    """Hand on the reply, if the caller still waits."""
    if not call.reply.done():
        call.reply.set_result(reply)


def are_sent(calls: Iterable[Call]) -> None:
    """From now on a server may have got them."""
    for call in calls:
        call.is_sent = True


def size_of(command: Command) -> int:
    """About how many bytes it has. Text is counted by characters: it is made of names, which are ASCII."""
    return sum(len(word) for word in (*command.keys, *command.args) if isinstance(word, bytes | str))
