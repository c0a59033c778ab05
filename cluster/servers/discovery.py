"""How the servers are found: one by its address, the primary by the Sentinels, a cluster's slots by its nodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

from redis.exceptions import ClusterDownError, ResponseError

from socketspec.cluster.options import Address, Mode, RedisOptions, Servers, tls_context
from socketspec.cluster.servers.greeting import Hello, as_dict
from socketspec.cluster.servers.layout import Layout
from socketspec.cluster.servers.login import AskedLogin
from socketspec.cluster.servers.shard import LinkOptions, RefusedError, ReplicaError, Shard
from socketspec.errors import BackendError

__all__ = ("Connector", "Find", "finder_for")

OLDEST: Final = 7
"""The first version of Redis, and so of Valkey, with sharded pub/sub."""
MAX_ASKED: Final = 9
"""Known nodes of a cluster that are asked for the slots at the same time, beside those of the URL."""
STRAGGLERS: Final = 0.1
"""Seconds that the rest get when more than half have answered."""
ANEW_EVERY: Final = 12.0
"""Seconds after which the address of a single server is connected to anew, to see whether it leads to another one."""

T = TypeVar("T")


class Connector:
    """Makes connections to servers, with what the URL and the options say about them."""

    def __init__(self, servers: Servers, options: RedisOptions) -> None:
        self.servers: Servers = servers
        self.options: RedisOptions = options
        self._met: set[Address] = set()
        self._finders: dict[Address, Shard] = {}
        """They keep their connections: a search each few seconds opens none."""
        self._run = (Address("", 0), "")
        self._anew_at = 0.0
        self.is_anew: bool = True
        """Whether this search connects anew."""
        self.is_another: bool = False
        """Whether the search led to another run of a server than the one before, or nobody can tell."""
        self.link: LinkOptions = LinkOptions(
            username=options.username or servers.username,
            password=options.password or servers.password,
            ssl=tls_context(options) if servers.tls else None,
            connect_timeout=options.connect_timeout,
            client_name=options.client_name,
            has_certificate=options.certfile is not None,
            asked=None if options.credential_provider is None else AskedLogin(options.credential_provider),
        )
        provider = options.sentinel_credential_provider
        self._sentinel_link = replace(
            self.link,
            username=options.sentinel_username,
            password=options.sentinel_password,
            client_name="",
            asked=None if provider is None else AskedLogin(provider, "sentinel_credential_provider"),
        )

    def shard(self, address: Address, confirm: Callable[[Address, float], Awaitable[None]]) -> Shard:
        """One for the commands of this node; `confirm` as `Shard` takes it."""
        return self._make(address, self.link, self.servers.db, self.options.command_timeout, confirm)

    def finder(self, address: Address) -> Shard:
        """One for questions about the servers, which are answered fast or not at all."""
        return self._finder(address, self.link)

    def sentinel(self, address: Address) -> Shard:
        """As `finder`, with the login of the Sentinels."""
        return self._finder(address, self._sentinel_link)

    def _finder(self, address: Address, link: LinkOptions) -> Shard:
        if address not in self._finders:
            self._finders[address] = self._make(address, link, 0, self.options.connect_timeout)
        return self._finders[address]

    async def begin_search(self, *, routine: bool) -> None:
        """Prepare a search. Where a name or a virtual address may lead to another server by now, connect anew.

        That is the case outside of a cluster, after trouble, and now and then where the search is `routine`.
        """
        now = asyncio.get_running_loop().time()
        self.is_anew = self.servers.mode != "cluster" and not (routine and now < self._anew_at)
        self.is_another = False
        if self.is_anew:
            self._anew_at = now + ANEW_EVERY
            for finder in self._finders.values():
                finder.renew()

    async def end_search(self, asked: Collection[Address]) -> None:
        """Close the connections to servers that a later search will not ask."""
        for address in self._finders.keys() - set(asked):
            await self._finders.pop(address).close()

    def found(self, address: Address, run: str) -> None:
        """This run of a server was found, or one that does not say which it is."""
        before, self._run = self._run, (address, run)
        self.is_another = not run or self._run != before

    async def close(self) -> None:
        """Close the connections for questions."""
        await self.end_search(())

    def _make(
        self,
        address: Address,
        link: LinkOptions,
        db: int,
        timeout: float,
        confirm: Callable[[Address, float], Awaitable[None]] | None = None,
    ) -> Shard:
        return Shard(address, link, db=db, timeout=timeout, met=self._met, confirm=confirm)


Find = Callable[[Connector, Sequence[Address]], Awaitable[Layout]]
"""Finds the servers, given the primaries that were known so far. Raises `BackendError`."""


def finder_for(mode: Mode) -> Find:
    """The way to find servers of this kind."""
    finders: dict[Mode, Find] = {
        "standalone": _find_one,
        "sentinel": _find_by_sentinels,
        "cluster": _find_cluster,
    }
    return finders[mode]


async def _find_one(connector: Connector, _known: Sequence[Address]) -> Layout:
    (address,) = connector.servers.hosts
    return await _find_primary(connector, address)


async def _find_primary(connector: Connector, address: Address) -> Layout:
    finder = connector.finder(address)
    await _check(finder, "standalone")
    if connector.is_anew:
        connector.found(address, await finder.run_id())
    await connector.end_search((*connector.servers.hosts, address))
    return Layout.of_one(address)


async def _find_by_sentinels(connector: Connector, _known: Sequence[Address]) -> Layout:
    name = connector.servers.name
    found = await _ask_most([_ask_sentinel(connector.sentinel(host), name) for host in connector.servers.hosts])
    # The newest configuration counts: a Sentinel that was cut off knows an older one.
    newest, address, _, _ = max(found)
    about = [answer for answer in found if (answer.epoch, answer.address) == (newest, address)]
    if 2 * sum(answer.is_down for answer in about) > len(found) or any(answer.is_replaced for answer in about):
        raise BackendError(
            f"{address} is down, say the Sentinels, or is being replaced: it is not used before they have made another "
            "one the primary, or reach it again. If that lasts, look at what they log (and at their auth-pass)."
        )
    return await _find_primary(connector, address)


class _Named(NamedTuple):
    """Whom a Sentinel names."""

    epoch: int
    address: Address
    is_down: bool
    """Whether it does not reach that primary."""
    is_replaced: bool
    """Whether it was elected to replace that primary, and is about to."""


REPLACING: Final = ("select_slave", "send_slaveof_noone", "wait_promotion")
"""States of a failover before which its leader was elected, and after which it names the new primary."""


async def _ask_sentinel(sentinel: Shard, name: str) -> _Named:
    await _check(sentinel, "sentinel")
    # While replicas are told of a promoted one, MASTER gives the old address and GET-MASTER-ADDR-BY-NAME the new one.
    reply, named = await sentinel.execute([("SENTINEL", "MASTER", name), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)])
    if isinstance(reply, ResponseError) and "no such master" in str(reply).lower():
        raise RefusedError(
            f"The Sentinel at {sentinel.address} knows no primary called {name!r}: correct the name after the hosts "
            "in the URL (redis+sentinel://hosts/name)."
        )
    if isinstance(reply, Exception):
        raise sentinel.explain(reply) from reply
    fields = as_dict(reply)
    of_fields = Address(fields["ip"], int(fields["port"]))
    address = Address(named[0].decode(), int(named[1])) if isinstance(named, list) else of_fields
    is_same = address == of_fields
    return _Named(
        int(fields.get("config-epoch", 0)),
        address,
        is_same and "s_down" in fields.get("flags", "").split(","),
        is_same and fields.get("failover-state") in REPLACING,
    )


async def _find_cluster(connector: Connector, known: Sequence[Address]) -> Layout:
    # The names of the URL every time: all known nodes may be gone, and back under addresses that only names lead to.
    # Of many known ones it is others each time, as those that were asked last may be the dead ones.
    named = connector.servers.hosts
    others = [host for host in known if host not in named]
    hosts = (*named, *random.sample(others, min(len(others), MAX_ASKED)))
    found = await _ask_most([_ask_node(connector.finder(host)) for host in hosts])
    await connector.end_search((*named, *others))
    _, _, layout = max(found, key=lambda item: item[:2])
    if not layout.covered():
        raise BackendError(f"The cluster of {connector.servers} has assigned no slots yet.")
    return layout


async def _ask_node(node: Shard) -> tuple[bool, int, Layout]:
    """Ask a node whether the cluster is well, for the newest epoch it has heard of, and who owns which slots."""
    await _check(node, "cluster")
    info, slots = await node.execute([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")])
    for reply in (info, slots):
        if isinstance(reply, ClusterDownError):
            raise BackendError(f"The cluster is down, says {node.address}: {reply}") from reply
        if isinstance(reply, Exception):
            raise node.explain(reply) from reply
    lines = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    is_well = lines.get("cluster_state") == "ok"
    return is_well, int(lines.get("cluster_current_epoch", 0)), Layout.of_slots(slots, node.address)


async def _check(shard: Shard, mode: str) -> None:
    """Raise `RefusedError` for a server that cannot be used as `mode`, `ReplicaError` for a replica."""
    hello = await shard.hello()
    major = hello.version.partition(".")[0]
    if not major.isdecimal() or int(major) < OLDEST:
        raise RefusedError(
            f"{shard.address} runs {_name(hello)}: SocketSpec needs Redis 7 or Valkey 8 at least, for sharded pub/sub."
        )
    if hello.mode != mode:
        hint = _MISMATCHES.get((hello.mode, mode), "{} is not a server of the kind that the URL speaks of.")
        raise RefusedError(hint.format(shard.address))
    if mode == "standalone" and hello.role != "master":
        raise ReplicaError(shard.address)


def _name(hello: Hello) -> str:
    return f"{hello.server.capitalize()} {hello.version}"


_CLUSTER_HINT = "{} runs in cluster mode: use redis+cluster://hosts (rediss+cluster:// with TLS)."
_SENTINEL_HINT = "{} is a Sentinel: use redis+sentinel://hosts/name."
_MISMATCHES: Final = {
    ("cluster", "standalone"): _CLUSTER_HINT,
    ("sentinel", "standalone"): _SENTINEL_HINT,
    ("standalone", "cluster"): "{} does not run in cluster mode: use redis://host (rediss:// with TLS).",
    ("sentinel", "cluster"): _SENTINEL_HINT,
    ("standalone", "sentinel"): "{} is no Sentinel but the server itself: use redis://host, or give a Sentinel's port.",
    ("cluster", "sentinel"): _CLUSTER_HINT,
}


async def _ask_most(questions: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The answers, as soon as more than half have come or nobody is left to wait for: one silent server delays nothing.

    Raises the first error where there is no answer.
    """
    tasks = [asyncio.ensure_future(question) for question in questions]
    answers: list[T] = []
    errors: list[BackendError] = []
    try:
        for task in asyncio.as_completed(tasks):
            try:
                answers.append(await task)
            except BackendError as error:
                errors.append(error)
            if 2 * len(answers) > len(tasks):
                break
        # Cancelled, those that are about to answer would lose their connections.
        await asyncio.wait(tasks, timeout=STRAGGLERS)
        answers = [task.result() for task in tasks if task.done() and task.exception() is None]
    finally:
        for unanswered in tasks:
            unanswered.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if answers:
        return answers
    raise next((error for error in errors if isinstance(error, RefusedError)), errors[0])
