"""The servers, for code without an event loop: which one a command goes to, and a connection to it.

Safe to use from several threads, and after a fork: the child has connections of its own.

redis-py's connections ask; what they ask is ours. Its `Sentinel` asks for `SENTINEL MASTERS`, which is not among the
permissions that docs/deploy/redis.md gives the user of the Sentinels (`test_acl` holds that ours needs no more), each
with the whole of a timeout that was chosen when it was made. Its `NodesManager` of a cluster takes 8.0 ms of CPU for
three primaries (a dict of 16,384 slots, and clients with pools for all nodes), `Layout` 0.15 ms (measured with redis-py
8.1), and its timeouts are not the caller's either.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from redis.credentials import CredentialProvider

from socketspec.cluster.commands.command import Command
from socketspec.cluster.options import IS_REPLICA, Address, RedisOptions, Servers, tls_context
from socketspec.cluster.publishers.blocking_connection import in_turn, timed_connection
from socketspec.cluster.publishers.blocking_link import BlockingLink, LinkBroken, Tls
from socketspec.cluster.publishers.turns import Turns
from socketspec.cluster.publishers.wording import said
from socketspec.cluster.servers.layout import Layout
from socketspec.cluster.servers.login import AskedLogin, Login
from socketspec.errors import BackendError

__all__ = ("NEEDS_CLUSTER_URL", "BlockingServers", "Place")

MAX_CONNECTIONS: Final = 64
"""Connections of one process; a thread or greenlet that needs one more waits for its turn."""
MAX_IDLE: Final = 16
"""Connections that are kept open for the next command."""
NEEDS_CLUSTER_URL: Final = "runs in cluster mode: write redis+cluster:// in the URL."


class Place(NamedTuple):
    """Where a command goes. `is_asking`: the server is only about to own the slot."""

    address: Address
    is_asking: bool = False


class _Process:
    """What belongs to one process: connections, and where the servers were found."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.turns = Turns(MAX_CONNECTIONS)
        self.idle: list[BlockingLink] = []
        self.primary: Address | None = None
        self.layout: Layout | None = None
        self.known: tuple[Address, ...] = ()
        """Nodes of the cluster, which are asked where those in the URL are gone."""
        self.met: set[Address] = set()
        """Servers that we have been connected to."""


class BlockingServers:
    """Finds the servers of a URL, and lends connections to them.

    Raises `LinkBroken` where nothing was sent and a later try may succeed, `BackendError` where it cannot.
    """

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        self.is_closed: bool = False
        self._servers = servers
        self._options = options
        self._context = tls_context(options) if servers.tls else None
        self._login = _login(
            options.username or servers.username, options.password or servers.password, options.credential_provider
        )
        self._sentinel_login = _login(
            options.sentinel_username,
            options.sentinel_password,
            options.sentinel_credential_provider,
            "sentinel_credential_provider",
        )
        self._current = _Process()

    def close(self) -> None:
        """Close the connections. Those in use are closed by whoever uses them."""
        self.is_closed = True
        process = self._process()
        with process.lock:
            links, process.idle = process.idle, []
        for link in links:
            link.close()

    def _process(self) -> _Process:
        # A fork may have happened while another thread held the lock, so the parent's is not touched here. Nor are its
        # connections closed: dropping them closes this process's copies.
        if self._current.pid != os.getpid():
            self._current = _Process()
        return self._current

    # Which server

    def place(self, command: Command, deadline: float) -> Place:
        """Where `command` goes."""
        process = self._process()
        if self._servers.mode == "standalone":
            return Place(self._servers.hosts[0])
        if self._servers.mode == "sentinel":
            if process.primary is None:
                process.primary = self._ask_sentinels(deadline)
            return Place(process.primary)
        layout = process.layout
        if layout is None:
            layout = process.layout = self._ask_cluster(deadline)
        owner = None if command.slot_key is None else layout.owner(command.slot_key)
        # If nobody owns the slot, any server will do: its refusal says what is wrong with the cluster.
        return Place(owner or next(address for address in layout.owners if address is not None))

    def forget_places(self) -> None:
        """Have the servers looked up again with the next command."""
        process = self._process()
        if process.layout is not None:
            process.known = tuple(address for address in process.layout.owners if address is not None)
        process.primary = process.layout = None

    def _ask_sentinels(self, deadline: float) -> Address:
        reasons: list[str] = []
        for asked, until in in_turn(self._servers.hosts, deadline):
            try:
                link = self._connect(asked, self._sentinel_login, 0, until)
                try:
                    (reply,) = link.exchange([["SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._servers.name]], until)
                finally:
                    link.close()
            except LinkBroken as error:
                reasons.append(f"{asked}: {error}")
                continue
            if isinstance(reply, list) and len(reply) == 2:
                return Address(reply[0].decode(), int(reply[1]))
            unknown = f"it knows no primary called {self._servers.name!r}"
            problem = unknown if reply is None else f"it says {_shown(reply)}"
            reasons.append(f"{asked}: {problem}")
        raise LinkBroken(f"no sentinel named the primary ({'; '.join(reasons)})", is_sent=False)

    def _ask_cluster(self, deadline: float) -> Layout:
        reasons: list[str] = []
        known = dict.fromkeys((*self._servers.hosts, *self._process().known))
        for asked, until in in_turn(tuple(known), deadline):
            try:
                with self.link(asked, until) as link:
                    (reply,) = link.exchange([["CLUSTER", "SLOTS"]], until)
            except LinkBroken as error:
                reasons.append(f"{asked}: {error}")
                continue
            if isinstance(reply, Exception) and "cluster support disabled" in str(reply):
                raise BackendError(f"{asked} does not run in cluster mode: write redis:// in the URL.")
            if isinstance(reply, list) and reply:
                return Layout.of_slots(reply, asked)
            reasons.append(f"{asked}: no slots ({_shown(reply)})")
        raise LinkBroken(f"no node of the cluster told its slots ({'; '.join(reasons)})", is_sent=False)

    # A connection to it

    @contextmanager
    def link(self, address: Address, deadline: float) -> Iterator[BlockingLink]:
        """A connection to `address` for this thread alone; afterwards it is kept if it is still good."""
        process = self._process()
        if not process.turns.take(max(deadline - time.monotonic(), 0)):
            raise LinkBroken(f"all {MAX_CONNECTIONS} connections of this process are in use", is_sent=False)
        try:
            link = self._take_idle(process, address, deadline) or self._open(address, deadline)
            try:
                yield link
            except BaseException:
                link.close()
                self._lost(process)
                raise
            with process.lock:
                is_kept = len(process.idle) < MAX_IDLE and not self.is_closed and link.is_open
                if is_kept:
                    link.is_used, link.used_at = True, time.monotonic()
                    process.idle.append(link)
            if not is_kept:
                link.close()
            if not link.is_open:
                self._lost(process)
        finally:
            process.turns.give_back()

    def _take_idle(self, process: _Process, address: Address, deadline: float) -> BlockingLink | None:
        while True:
            with process.lock:
                link = next((item for item in reversed(process.idle) if item.address == address), None)
                if link is None:
                    return None
                process.idle.remove(link)
            if link.is_alive(deadline):
                return link
            link.close()
            self._lost(process)
            with process.lock:  # what was used even earlier went the same way: a balancer drops all at once
                stale = [item for item in process.idle if item.address == address and item.used_at <= link.used_at]
                process.idle = [item for item in process.idle if item not in stale]
            for item in stale:
                item.close()

    def _lost(self, process: _Process) -> None:
        """A connection was lost: the Sentinels are asked before another is opened.

        A primary that was replaced and comes back takes itself for one until they get hold of it.
        """
        process.primary = None

    def _open(self, address: Address, deadline: float) -> BlockingLink:
        if self._servers.mode == "sentinel" and self._process().primary != address:
            raise LinkBroken("its connection was lost: the sentinels are asked for the primary again", is_sent=False)
        db = 0 if self._servers.mode == "cluster" else self._servers.db
        link = self._connect(address, self._login, db, deadline)
        if self._servers.mode == "cluster":
            return link
        if link.mode == "cluster":
            link.close()
            raise BackendError(f"{address} {NEEDS_CLUSTER_URL}")
        # A replica would accept a publish that the primary's subscribers never hear: it refuses only what it stores.
        if link.role == "replica":
            link.close()
            raise LinkBroken(f"it {IS_REPLICA}", is_sent=False)
        return link

    def _connect(self, address: Address, login: Login | AskedLogin, db: int, deadline: float) -> BlockingLink:
        met = self._process().met
        deadline = min(deadline, time.monotonic() + self._options.connect_timeout)
        can_change = isinstance(login, AskedLogin)
        try:
            given = login.ask(deadline) if isinstance(login, AskedLogin) else login
        except BackendError as error:
            raise LinkBroken(str(error), is_sent=False) from error
        connection = timed_connection(address, given, db, self._context, deadline)
        tls = None if self._context is None else Tls(self._context, self._options.certfile is not None)
        link = BlockingLink(
            address,
            connection,
            self._options.client_name,
            deadline,
            is_known=address in met,
            can_change=can_change,
            tls=tls,
        )
        met.add(address)
        return link


def _login(
    username: str | None, password: str | None, provider: CredentialProvider | None, option: str = "credential_provider"
) -> Login | AskedLogin:
    return Login(username, password) if provider is None else AskedLogin(provider, option)


def _shown(reply: object) -> str:
    return said(reply) if isinstance(reply, Exception) else repr(reply)
