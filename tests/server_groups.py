"""Servers that belong together: Sentinel and Cluster. Import them from `tests.servers`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

from redis.crc import key_slot

from tests.server_process import HOST, Broken, Server, eventually, free_port

__all__ = ("Cluster", "Sentinels")

SLOTS = 16_384
AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A primary's first answer to a replica usually waits five seconds for others."""
PATIENT = 30.0
"""Seconds that a server may be silent where nobody kills any: a busy machine can keep one waiting for long."""


class _Group:
    """Servers that start and end together."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every server."""
        self._stack.close()


class Sentinels(_Group):
    """A primary and its replica, watched by three Sentinels that call a silent primary dead after a second."""

    name = "mymaster"

    def __init__(self, *options: str, binary: str | None = None, down_after: float = 1.0) -> None:
        super().__init__()
        self._down_after = down_after
        with ExitStack() as stack:
            first = stack.enter_context(Server(*AT_ONCE, *options, binary=binary))
            replication = ("--replicaof", f"{HOST} {first.port}", *AT_ONCE)
            second = stack.enter_context(Server(*replication, *options, binary=binary))
            self.servers: Sequence[Server] = (first, second)
            eventually(lambda: second.info("replication").get("master_link_status") == "up", "the replica follows")
            ids = {free_port(): secrets.token_hex(20) for _ in range(3)}
            self.sentinels: Sequence[Server] = tuple(
                stack.enter_context(
                    Server("--sentinel", binary=binary, port=port, config=self._config(port, ids, down_after))
                )
                for port in ids
            )
            self._stack = stack.pop_all()
        try:
            self._hurry()
            self.wait_ok()
        except Broken:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Its ``redis+sentinel://`` URL."""
        return f"redis+sentinel://{','.join(f'{HOST}:{sentinel.port}' for sentinel in self.sentinels)}/{self.name}"

    @property
    def primary(self) -> Server:
        """Whom the Sentinels call the primary."""
        _, port = self._ask("GET-MASTER-ADDR-BY-NAME", self.name)
        return next(server for server in self.servers if server.port == int(port))

    @property
    def replica(self) -> Server:
        """The other one."""
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def be_patient(self) -> None:
        """Call no server dead that is only slow, until they are healed."""
        self._call_dead_after(PATIENT)

    def failover(self) -> Server:
        """Kill the primary with SIGKILL; the new one, once it is writable and all Sentinels name it."""
        killed = self.primary
        killed.kill()
        return self.wait_failover(killed)

    def switch(self) -> Server:
        """Have the Sentinels make the replica the primary while both live; the new one as with `failover`."""
        old = self.primary
        eventually(lambda: self._ask("FAILOVER", self.name), "the Sentinels begin a failover", within=20)
        return self.wait_failover(old)

    def wait_failover(self, old: Server) -> Server:
        """The new primary, once it is writable and all Sentinels name it."""
        new = next(server for server in self.servers if server is not old)
        eventually(lambda: set(self._named()) == {new.port}, "all Sentinels name the new primary", within=20)
        eventually(lambda: new.info("replication")["role"] == "master", "the new primary takes writes")
        return new

    def wait_ok(self) -> None:
        """Return when the replica follows the primary, and every Sentinel sees that and the other Sentinels."""
        # asked first: after a restart, what the Sentinels say may still be from before it
        eventually(self._replica_follows, "the replica follows the primary", within=25)
        for sentinel in self.sentinels:
            eventually(partial(self._is_settled, sentinel), f"{sentinel!r} sees everybody", within=25)

    def heal(self) -> None:
        """Start what was killed, wake what was stopped, and wait until all is well again."""
        for server in (*self.sentinels, *self.servers):
            server.revive()
        self._hurry()
        self.wait_ok()

    def _hurry(self) -> None:
        self._call_dead_after(self._down_after)
        # how often they look and talk, not when they call a primary dead: healing takes 1 s instead of 20 s
        for sentinel in self.sentinels:
            sentinel.ask("SENTINEL", "DEBUG", "INFO-PERIOD", 300, "PUBLISH-PERIOD", 300)

    def _call_dead_after(self, seconds: float) -> None:
        for sentinel in self.sentinels:
            sentinel.ask("SENTINEL", "SET", self.name, "down-after-milliseconds", round(seconds * 1000))

    def _named(self) -> Iterator[int]:
        for sentinel in self.sentinels:
            yield int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])

    def _ask(self, *words: str) -> Any:
        for sentinel in self.sentinels:
            if sentinel.is_running:
                return sentinel.ask("SENTINEL", *words)
        raise Broken("no Sentinel runs")

    def _replica_follows(self) -> bool:
        primary = self.primary
        said = self.replica.info("replication")
        follows = said["role"] == "slave" and said["master_port"] == str(primary.port)
        named = set(self._named()) == {primary.port}
        return named and follows and said["master_link_status"] == "up"

    def _is_settled(self, sentinel: Server) -> bool:
        primary = _fields(sentinel.ask("SENTINEL", "MASTER", self.name))
        replicas = [_fields(item) for item in sentinel.ask("SENTINEL", "REPLICAS", self.name)]
        follows = [item for item in replicas if item["flags"] == "slave" and item["master-link-status"] == "ok"]
        others = primary["num-other-sentinels"] == str(len(self.sentinels) - 1)
        return primary["flags"] == "master" and others and len(follows) == len(self.servers) - 1

    def _config(self, port: int, ids: dict[int, str], down_after: float) -> str:
        first, second = self.servers
        # named in advance, so that they need not find each other: that takes them seconds
        known = [f"known-sentinel {self.name} {HOST} {other} {ids[other]}" for other in ids if other != port]
        lines = [
            f"myid {ids[port]}",
            f"monitor {self.name} {HOST} {first.port} 2",
            f"down-after-milliseconds {self.name} {round(down_after * 1000)}",
            f"failover-timeout {self.name} 4000",
            f"known-replica {self.name} {HOST} {second.port}",
            *known,
        ]
        return "".join(f"sentinel {line}\n" for line in lines)


def _fields(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Cluster(_Group):
    """Primaries that share the slots between them, each with a replica if `replicas`. `options` go to every server."""

    def __init__(self, *options: str, primaries: int = 3, replicas: bool = False, binary: str | None = None) -> None:
        super().__init__()
        self.servers: list[Server] = []
        with ExitStack() as stack:
            for _ in range(primaries * (2 if replicas else 1)):
                self.servers.append(stack.enter_context(_cluster_server(*options, binary=binary)))
            self._stack = stack.pop_all()
        try:
            self._form(primaries)
            self.wait_ok()
        except Broken:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Its ``redis+cluster://`` URL."""
        return f"redis+cluster://{','.join(f'{HOST}:{server.port}' for server in self.servers)}"

    @property
    def primaries(self) -> list[Server]:
        """Who holds slots now, in the order of their first slot."""
        owners = dict.fromkeys(int(item[2][1]) for item in sorted(self._slots()))
        return [self._at(port) for port in owners]

    @property
    def replicas(self) -> list[Server]:
        """Who holds none, and runs."""
        primaries = self.primaries
        return [server for server in self.servers if server.is_running and server not in primaries]

    def owner(self, slot: int) -> Server:
        """The primary of `slot`."""
        return next(self._at(int(item[2][1])) for item in self._slots() if item[0] <= slot <= item[1])

    def owner_of(self, key: str | bytes) -> Server:
        """The primary of `key`, or of a sharded channel."""
        return self.owner(key_slot(key.encode() if isinstance(key, str) else key))

    def move_slot(self, slot: int, to: Server) -> None:
        """Move `slot` with its keys to another primary, live, as a resharding does; all nodes know when it returns."""
        source = self.owner(slot)
        if source is to:
            return
        ids = {server: str(server.ask("CLUSTER", "MYID")) for server in (source, to)}
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 500):
            source.ask("MIGRATE", HOST, to.port, "", 0, 5000, "KEYS", *keys)
        for server in (to, source, *(item for item in self.primaries if item not in (to, source))):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[to])
        eventually(lambda: self._all_say(slot, to), f"every node knows that slot {slot} has moved")

    def be_patient(self) -> None:
        """From now on, no server that is only slow is called dead."""
        for server in self.servers:
            server.ask("CONFIG", "SET", "cluster-node-timeout", round(PATIENT * 1000))

    def kill_primary(self, which: Server | int = 0) -> Server:
        """Kill a primary with SIGKILL; it. Wait with `wait_failover` where it has a replica."""
        killed = self.primaries[which] if isinstance(which, int) else which
        killed.kill()
        return killed

    def wait_failover(self, old: Server) -> None:
        """Return when another server holds the slots of `old` and the cluster is whole."""
        eventually(lambda: old not in self.primaries, f"a replica takes over from {old!r}", within=25)
        self.wait_ok()

    def wait_ok(self) -> None:
        """Return when every running server calls the cluster whole and they agree on who holds what."""
        eventually(self._is_settled, "all nodes say cluster_state:ok and agree on the slots", within=25)

    def heal(self) -> None:
        """Start what was killed, wake what was stopped, and wait until all is well again. Moved slots stay moved."""
        for server in self.servers:
            server.revive()
        self.wait_ok()

    def _form(self, primaries: int) -> None:
        first, *others = self.servers
        for number, server in enumerate(self.servers, 1):
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", number)
        for server in others:
            server.ask("CLUSTER", "MEET", HOST, first.port, _bus_port(first))
        for index, server in enumerate(self.servers[:primaries]):
            begin, end = (SLOTS * number // primaries for number in (index, index + 1))
            server.ask("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        for server, primary in zip(self.servers[primaries:], self.servers, strict=False):
            name = str(primary.ask("CLUSTER", "MYID"))
            eventually(partial(_knows, server, name), "the nodes have met")
            server.ask("CLUSTER", "REPLICATE", name)

    def _is_settled(self) -> bool:
        running = [server for server in self.servers if server.is_running]
        views = [self._view(server) for server in running]
        followers = [server.info("replication") for server in running]
        linked = all(item["role"] == "master" or item["master_link_status"] == "up" for item in followers)
        whole = all("cluster_state:ok" in server.ask("CLUSTER", "INFO") for server in running)
        return linked and whole and len(views[0]) > 0 and all(view == views[0] for view in views)

    def _view(self, server: Server) -> list[Any]:
        return sorted([*item[:2], *sorted(node[1] for node in item[2:])] for item in server.ask("CLUSTER", "SLOTS"))

    def _all_say(self, slot: int, owner: Server) -> bool:
        views = (server.ask("CLUSTER", "SLOTS") for server in self.servers if server.is_running)
        return all(any(item[0] <= slot <= item[1] and int(item[2][1]) == owner.port for item in view) for view in views)

    def _slots(self) -> list[Any]:
        for server in self.servers:
            if server.is_running:
                found: list[Any] = server.ask("CLUSTER", "SLOTS")
                return found
        raise Broken("no server of the cluster runs")

    def _at(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)


def _knows(server: Server, name: str) -> bool:
    return name in server.ask("CLUSTER", "NODES")


def _bus_port(server: Server) -> int:
    return int(server.ask("CONFIG", "GET", "cluster-port")[1])


def _cluster_server(*options: str, binary: str | None) -> Server:
    # the bus' usual port is the server's plus 10,000, which a free port of the upper range cannot have
    cluster = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "1500")
    return Server(*cluster, *AT_ONCE, *options, binary=binary)
