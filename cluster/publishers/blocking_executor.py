"""Runs commands for code without an event loop, and says for certain what became of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import AskError, MovedError, NoScriptError

from socketspec.cluster.commands.command import Argument, Command
from socketspec.cluster.commands.failures import READS, UnsureError, is_not_carried_out
from socketspec.cluster.commands.publishing import still_to_send, with_nodes
from socketspec.cluster.options import Address, RedisOptions, Servers
from socketspec.cluster.publishers.blocking_link import BlockingLink, LinkBroken
from socketspec.cluster.publishers.blocking_servers import NEEDS_CLUSTER_URL, BlockingServers, Place
from socketspec.cluster.publishers.wording import has_failed, not_sent, refused, said, what
from socketspec.cluster.servers.backoff import Backoff
from socketspec.cluster.servers.shard import REPLIES
from socketspec.errors import BackendError

__all__ = ("BlockingExecutor",)

MAX_EVALS: Final = 100
"""Scripts that are sent with their text in one round trip."""


class _Unsent(NamedTuple):
    """A command that was certainly not executed yet: why, and where a server said that it belongs."""

    number: int
    reason: str
    place: Place | None = None


class BlockingExecutor:
    """Carries commands out within ``options.command_timeout``, or raises `BackendError`. Safe in threads."""

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        self._is_cluster = servers.mode == "cluster"
        self._timeout = options.command_timeout
        self._servers = BlockingServers(servers, options)

    def run_stages(self, stages: Sequence[Sequence[Command]]) -> list[list[Any]]:
        """Run each stage's commands together, when the one before is done, and end with the first one that fails.

        For each stage that was begun what became of its commands: a reply, or a `BackendError`, which is an
        `UnsureError` where nobody knows.
        """
        deadline = time.monotonic() + self._timeout
        outcomes: list[list[Any]] = []
        for commands in stages:
            outcomes.append(self._run(commands, deadline))
            if has_failed(outcomes[-1]):
                break
        return outcomes

    def close(self) -> None:
        """Close the connections. Those in use are closed by whoever uses them."""
        self._servers.close()

    def _run(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        unsent = [_Unsent(index, "no server was found") for index in range(len(commands))]
        backoff = Backoff()
        while unsent:
            unsent = self._attempt(commands, unsent, replies, deadline)
            if not unsent or all(item.place is not None for item in unsent):
                continue  # to where the servers said that they belong
            pause = backoff.next()
            if time.monotonic() + pause >= deadline:
                for item in unsent:
                    replies[item.number] = self._unreached(commands[item.number], item)
                break
            time.sleep(pause)
            self._servers.forget_places()
        return replies

    def _attempt(
        self, commands: Sequence[Command], unsent: Sequence[_Unsent], replies: list[Any], deadline: float
    ) -> list[_Unsent]:
        """One try. Writes answers and errors into `replies`; returns what was certainly not executed."""
        if self._servers.is_closed:
            for item in unsent:
                replies[item.number] = BackendError(
                    f"This publisher is closed, so {what(commands[item.number])} was not sent."
                )
            return []
        groups: dict[Place, list[_Unsent]] = {}
        try:
            for item in unsent:
                place = item.place or self._servers.place(commands[item.number], deadline)
                groups.setdefault(place, []).append(item)
        except LinkBroken as error:
            return [_Unsent(item.number, str(error)) for item in unsent]
        except BackendError as error:  # trying again does not help
            for item in unsent:
                replies[item.number] = not_sent([commands[item.number]], error)
            return []
        left: list[_Unsent] = []
        for place, items in groups.items():
            left += self._send(place, items, commands, replies, deadline)
        return sorted(left)

    def _send(
        self,
        place: Place,
        items: Sequence[_Unsent],
        commands: Sequence[Command],
        replies: list[Any],
        deadline: float,
    ) -> list[_Unsent]:
        answers: Sequence[Any]
        try:
            with self._servers.link(place.address, deadline) as link:
                answers = _exchange(link, [commands[item.number] for item in items], place.is_asking, deadline)
        except LinkBroken as error:
            answers = [error] * len(items)
        except BackendError as error:  # of the connecting: nothing has been sent
            answers = [not_sent([commands[item.number]], error) for item in items]
        left: list[_Unsent] = []
        for item, answer in zip(items, answers, strict=True):
            outcome = self._outcome(item, place, commands[item.number], answer)
            if place.is_asking and not isinstance(outcome, _Unsent | BackendError):
                outcome = self._send_rest(commands[item.number], outcome, deadline)
            if isinstance(outcome, _Unsent):
                left.append(outcome)
            else:
                replies[item.number] = outcome
        return left

    def _send_rest(self, command: Command, reply: Any, deadline: float) -> Any:
        """Send to the subscribers, who are with the slot's present owner, what its next owner has carried out."""
        rest = still_to_send(command, reply)
        if rest is None:
            return reply
        (nodes,) = self._run([rest], deadline)
        if isinstance(nodes, BackendError):
            # What is kept is found there by all who listen, whatever became of the sending.
            return nodes if isinstance(reply, int) else with_nodes(reply, 0)
        return with_nodes(reply, nodes)

    def _outcome(self, item: _Unsent, place: Place, command: Command, answer: Any) -> Any:
        """What became of the command: its reply, a `BackendError`, or an `_Unsent` where it may be sent again."""
        if isinstance(answer, LinkBroken):
            reason = f"{place.address}: {answer}"
            if not answer.is_sent:
                return _Unsent(item.number, reason)
            if command.name in READS:
                return BackendError(f"Redis did not tell {what(command)} ({reason}).")
            return UnsureError(f"Redis did not confirm {what(command)} ({reason}): it may have been executed, or not.")
        if not isinstance(answer, REPLIES):
            return answer
        if not is_not_carried_out(answer):
            return BackendError(refused(command, said(answer)))
        is_moved = isinstance(answer, MovedError)
        if is_moved and not self._is_cluster:
            return not_sent([command], f"{place.address} {NEEDS_CLUSTER_URL}")
        reason = f"{place.address} says {said(answer)}"
        if is_moved:
            self._servers.forget_places()  # other slots may have moved as well
        if not isinstance(answer, AskError) or item.place is not None:
            return _Unsent(item.number, reason)  # sent from one server to another: asked again after a pause
        target = Address(answer.host or place.address.host, answer.port)
        return _Unsent(item.number, reason, Place(target, is_asking=not is_moved))

    def _unreached(self, command: Command, item: _Unsent) -> BackendError:
        return BackendError(
            f"Redis could not be reached within {self._timeout:g} s, so {what(command)} was not sent. {item.reason}"
        )


def _exchange(link: BlockingLink, commands: Sequence[Command], is_asking: bool, deadline: float) -> list[Any]:
    """Run `commands`; scripts that the server does not know are sent once more, with their text.

    Gives a reply, an error that the server sent (see `REPLIES`) or a `LinkBroken` for each.
    """
    words: list[list[Argument]] = []
    for command in commands:
        if is_asking:
            words.append(["ASKING"])
        words.append(command.as_asked() if is_asking else command.words())
    answers = link.exchange(words, deadline)[1 if is_asking else 0 :: 2 if is_asking else 1]
    unknown = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    for start in range(0, len(unknown), 1 if is_asking else MAX_EVALS):
        part = unknown[start : start + (1 if is_asking else MAX_EVALS)]
        words = [["ASKING"]] if is_asking else []
        # Each with its text: were it only the first, a failover in between would make the server forget it again.
        words += [commands[index].as_eval() for index in part]
        try:
            again = link.exchange(words, deadline)[1 if is_asking else 0 :]
        except LinkBroken as error:
            again = [error] * len(part)  # the answers that came before are not in doubt
        for index, answer in zip(part, again, strict=True):
            answers[index] = answer
    return answers
