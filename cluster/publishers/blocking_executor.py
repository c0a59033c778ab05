"""Runs commands for code without an event loop: finds the right server, and says for certain what became of them.

Safe to use from several threads, and after a fork: the child has connections of its own.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from socketspec.cluster.commands.command import PASSING_REFUSALS, Argument, Command
from socketspec.cluster.options import IS_REPLICA, Address, RedisOptions, Servers, tls_context
from socketspec.cluster.publishers.blocking_link import Credentials, Link, LinkBroken, ServerRefusal, in_turn
from socketspec.cluster.servers.backoff import Backoff
from socketspec.cluster.servers.layout import Layout
from socketspec.errors import BackendError

__all__ = ("Executor",)

MAX_CONNECTIONS: Final = 64
"""Connections of one process; a thread that needs one more waits."""
MAX_IDLE: Final = 16
"""Connections that are kept open for the next command."""
MAX_EVALS: Final = 100
"""Scripts that are sent with their text at once."""


class _Place(NamedTuple):
    """Where a command goes. `is_asking`: the server is only about to own the slot."""

    address: Address
    is_asking: bool = False


class _Waiting(NamedTuple):
    """A command that was not executed yet, why, and where it is said to belong."""

    number: int
    reason: str
    place: _Place | None = None


class _State:
    """What belongs to one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.idle: list[Link] = []
        self.primary: Address | None = None
        self.layout: Layout | None = None
        self.known: tuple[Address, ...] = ()
        """Nodes of the cluster, to be asked where those in the URL are gone."""
        self.met: set[Address] = set()
        """Servers that have let us in."""


class Executor:
    """Carries commands out within ``options.command_timeout``, or raises `BackendError`."""

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        self._servers = servers
        self._options = options
        self._context = tls_context(options) if servers.tls else None
        self._credentials: Credentials = (options.username or servers.username, options.password or servers.password)
        self._is_closed = False
        self._current = _State()

    def run_stages(self, stages: Sequence[Sequence[Command]]) -> list[Any]:
        """Run each stage's commands together, when the one before is done; all replies in order."""
        deadline = time.monotonic() + self._options.command_timeout
        return [reply for commands in stages for reply in self._run(commands, deadline)]

    def close(self) -> None:
        """Close the connections. Those in use are closed by whoever uses them."""
        self._is_closed = True
        state = self._state()
        with state.lock:
            links, state.idle = state.idle, []
        for link in links:
            link.close()

    def _state(self) -> _State:
        # A fork may have happened while another thread held the lock, so the parent's is not touched here. Nor are its
        # connections closed: dropping them closes this process's copies.
        if self._current.pid != os.getpid():
            self._current = _State()
        return self._current

    def _run(self, commands: Sequence[Command], deadline: float) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        waiting = [_Waiting(index, "no server was found") for index in range(len(commands))]
        backoff = Backoff()
        while waiting:
            waiting = self._attempt(commands, waiting, replies, deadline)
            if not waiting or all(item.place is not None for item in waiting):
                continue  # those know where to go
            pause = backoff.next()
            if time.monotonic() + pause >= deadline:
                raise self._failure(commands, waiting, replies)
            time.sleep(pause)
            self._forget_places()
        for reply in replies:
            if isinstance(reply, BackendError):
                raise reply if len(replies) == 1 else self._partial(replies, str(reply)) from reply
        return replies

    def _attempt(
        self, commands: Sequence[Command], waiting: Sequence[_Waiting], replies: list[Any], deadline: float
    ) -> list[_Waiting]:
        """One try. Fills in replies, `BackendError` among them; what was certainly not executed is returned."""
        if self._is_closed:
            raise BackendError("This publisher is closed.")
        groups: dict[_Place, list[_Waiting]] = {}
        try:
            for item in waiting:
                place = item.place or self._place(commands[item.number], deadline)
                groups.setdefault(place, []).append(item)
        except LinkBroken as error:
            return [_Waiting(item.number, str(error)) for item in waiting]
        left: list[_Waiting] = []
        for place, items in groups.items():
            left += self._send(place, items, commands, replies, deadline)
        return sorted(left)

    def _send(
        self,
        place: _Place,
        items: Sequence[_Waiting],
        commands: Sequence[Command],
        replies: list[Any],
        deadline: float,
    ) -> list[_Waiting]:
        answers: Sequence[Any]
        try:
            with self._link(place.address, deadline) as link:
                answers = _exchange(link, [commands[item.number] for item in items], place.is_asking, deadline)
        except (LinkBroken, BackendError) as error:
            answers = [error] * len(items)
        left: list[_Waiting] = []
        for item, answer in zip(items, answers, strict=True):
            outcome = self._outcome(item, place, commands[item.number], answer)
            if isinstance(outcome, _Waiting):
                left.append(outcome)
            else:
                replies[item.number] = outcome
        return left

    def _outcome(self, item: _Waiting, place: _Place, command: Command, answer: Any) -> Any:
        """The reply, a `BackendError`, or a `_Waiting` for what was certainly not executed and may be sent again."""
        if isinstance(answer, LinkBroken):
            reason = f"{place.address}: {answer}"
            if not answer.is_sent:
                return _Waiting(item.number, reason)
            return BackendError(
                f"Redis did not confirm {_what(command)} ({reason}): it may have been executed, or not."
            )
        if not isinstance(answer, ServerRefusal):
            return answer
        text = str(answer)
        if not text.startswith(PASSING_REFUSALS):
            return BackendError(_refused(command, text))
        if text.startswith("MOVED") and self._servers.mode != "cluster":
            return BackendError(f"{place.address} {_NEEDS_CLUSTER_URL}")
        return self._redirected(item, place, text)

    def _redirected(self, item: _Waiting, place: _Place, text: str) -> _Waiting:
        reason = f"{place.address} says {text}"
        words = text.split()
        if len(words) != 3 or words[0] not in ("MOVED", "ASK"):
            return _Waiting(item.number, reason)
        if words[0] == "MOVED":
            self._forget_places()  # there may be more that has moved
        if item.place is not None:
            return _Waiting(item.number, reason)  # sent round and round: asked again later
        host, _, port = words[2].rpartition(":")
        return _Waiting(item.number, reason, _Place(Address(host or place.address.host, int(port)), words[0] == "ASK"))

    def _place(self, command: Command, deadline: float) -> _Place:
        state = self._state()
        if self._servers.mode == "standalone":
            return _Place(self._servers.hosts[0])
        if self._servers.mode == "sentinel":
            if state.primary is None:
                state.primary = self._ask_sentinels(deadline)
            return _Place(state.primary)
        layout = state.layout
        if layout is None:
            layout = state.layout = self._ask_cluster(deadline)
        owner = None if command.slot_key is None else layout.owner(command.slot_key)
        # A slot that nobody owns is asked for anywhere: the refusal says what is wrong with the cluster.
        return _Place(owner or next(address for address in layout.owners if address is not None))

    def _forget_places(self) -> None:
        state = self._state()
        if state.layout is not None:
            state.known = tuple(address for address in state.layout.owners if address is not None)
        state.primary = state.layout = None

    def _ask_sentinels(self, deadline: float) -> Address:
        credentials = self._options.sentinel_username, self._options.sentinel_password
        reasons: list[str] = []
        for asked, until in in_turn(self._servers.hosts, deadline):
            try:
                link = self._connect(asked, credentials, 0, until)
                try:
                    (said,) = link.exchange([["SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._servers.name]], until)
                finally:
                    link.close()
            except LinkBroken as error:
                reasons.append(f"{asked}: {error}")
                continue
            if isinstance(said, list) and len(said) == 2:
                return Address(said[0].decode(), int(said[1]))
            problem = f"it says {said}" if said is not None else f"it knows no primary called {self._servers.name!r}"
            reasons.append(f"{asked}: {problem}")
        raise LinkBroken(f"no sentinel named the primary ({'; '.join(reasons)})", is_sent=False)

    def _ask_cluster(self, deadline: float) -> Layout:
        reasons: list[str] = []
        known = dict.fromkeys((*self._servers.hosts, *self._state().known))
        for asked, until in in_turn(tuple(known), deadline):
            try:
                with self._link(asked, until) as link:
                    (said,) = link.exchange([["CLUSTER", "SLOTS"]], until)
            except LinkBroken as error:
                reasons.append(f"{asked}: {error}")
                continue
            if isinstance(said, ServerRefusal) and "cluster support disabled" in str(said):
                raise BackendError(f"{asked} does not run in cluster mode: write redis:// in the URL.")
            if isinstance(said, list) and said:
                return Layout.of_slots(said, asked)
            reasons.append(f"{asked}: no slots ({said})")
        raise LinkBroken(f"no node of the cluster told its slots ({'; '.join(reasons)})", is_sent=False)

    @contextmanager
    def _link(self, address: Address, deadline: float) -> Iterator[Link]:
        """A connection to `address` for this thread alone; afterwards it is kept if it is still good."""
        state = self._state()
        if not state.free.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise LinkBroken(f"all {MAX_CONNECTIONS} connections of this process are in use", is_sent=False)
        try:
            link = self._take_idle(state, address, deadline) or self._open(address, deadline)
            try:
                yield link
            except BaseException:
                link.close()
                raise
            with state.lock:
                is_kept = len(state.idle) < MAX_IDLE and not self._is_closed
                if is_kept:
                    state.idle.append(link)
            if not is_kept:
                link.close()
        finally:
            state.free.release()

    def _take_idle(self, state: _State, address: Address, deadline: float) -> Link | None:
        while True:
            with state.lock:
                link = next((item for item in reversed(state.idle) if item.address == address), None)
                if link is None:
                    return None
                state.idle.remove(link)
            if link.is_alive(deadline):
                return link
            link.close()

    def _open(self, address: Address, deadline: float) -> Link:
        db = 0 if self._servers.mode == "cluster" else self._servers.db
        link = self._connect(address, self._credentials, db, deadline)
        if self._servers.mode == "cluster":
            return link
        if link.mode == b"cluster":
            link.close()
            raise BackendError(f"{address} {_NEEDS_CLUSTER_URL}")
        # What a replica is told to publish, the primary's subscribers never hear; and it refuses only what it stores.
        if link.role == b"replica":
            link.close()
            raise LinkBroken(f"it {IS_REPLICA}", is_sent=False)
        return link

    def _connect(self, address: Address, credentials: Credentials, db: int, deadline: float) -> Link:
        met = self._state().met
        link = Link(address, credentials, db, self._options, self._context, deadline, is_known=address in met)
        met.add(address)
        return link

    def _failure(self, commands: Sequence[Command], waiting: Sequence[_Waiting], replies: list[Any]) -> BackendError:
        first = waiting[0]
        timeout = self._options.command_timeout
        if len(waiting) == len(commands):
            what = _what(commands[first.number])
            return BackendError(
                f"Redis could not be reached within {timeout:g} s, so {what} was not sent. {first.reason}"
            )
        for item in waiting:
            replies[item.number] = BackendError(item.reason)
        return self._partial(replies, f"Redis could not be reached within {timeout:g} s. {first.reason}")

    def _partial(self, replies: Sequence[Any], reason: str) -> BackendError:
        failed = [index for index, reply in enumerate(replies) if isinstance(reply, BackendError)]
        return BackendError(
            f"{len(failed)} of {len(replies)} commands sent together failed, the first of them number {failed[0] + 1}: "
            f"{reason}"
        )


_NEEDS_CLUSTER_URL: Final = "runs in cluster mode: write redis+cluster:// in the URL."


def _exchange(link: Link, commands: Sequence[Command], is_asking: bool, deadline: float) -> list[Any]:
    """Run `commands`, scripts that the server does not know once more with their text. Replies, `ServerRefusal` and
    `LinkBroken`."""
    words: list[list[Argument]] = []
    for command in commands:
        if is_asking:
            words.append(["ASKING"])
        words.append(command.words())
    answers = link.exchange(words, deadline)[1 if is_asking else 0 :: 2 if is_asking else 1]
    unknown = [index for index, answer in enumerate(answers) if str(answer).startswith("NOSCRIPT")]
    for start in range(0, len(unknown), 1 if is_asking else MAX_EVALS):
        part = unknown[start : start + (1 if is_asking else MAX_EVALS)]
        words = [["ASKING"]] if is_asking else []
        # All of them with their text: were only the first, a failover in between would have forgotten it again.
        words += [commands[index].as_eval() for index in part]
        try:
            again = link.exchange(words, deadline)[1 if is_asking else 0 :]
        except LinkBroken as error:
            again = [error] * len(part)  # what was answered before is not in doubt
        for index, answer in zip(part, again, strict=True):
            answers[index] = answer
    return answers


def _what(command: Command) -> str:
    names = {"SPUBLISH": "the message", "publish": "the message", "revoke": "the revocation"}
    return names.get(command.name, f"the command {command.name}")


def _refused(command: Command, text: str) -> str:
    hints = {
        "OOM": "its memory is full (maxmemory), so nothing was kept or sent",
        "NOPERM": "the user may not do this; see the ACL in the documentation",
        "NOAUTH": "the URL needs a password",
        "WRONGTYPE": "another program uses the same key prefix",
        "MISCONF": "it cannot save to its disk",
        "NOREPLICAS": "too few replicas are connected",
    }
    name = text.partition(" ")[0]
    hint = hints.get(name)
    if "unknown command" in text.lower():
        hint = "it is too old: SocketSpec needs Redis 7 or Valkey 8"
    return f"Redis refused {_what(command)}: {hint} ({text})" if hint else f"Redis refused {_what(command)}: {text}"
