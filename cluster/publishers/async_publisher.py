"""`AsyncPublisher`: `socketspec.cluster.publishers.publisher.Publisher` for code with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.commands.runner import Runner
from socketspec.cluster.options import RedisOptions, Servers
from socketspec.cluster.publishers.blocking_link import CHECK_EVERY, SIGN_OF_LIFE
from socketspec.cluster.publishers.publisher import configuration
from socketspec.cluster.publishers.requests import Request, Requests
from socketspec.cluster.servers.shard import ReplicaError
from socketspec.cluster.servers.topology import make_topology
from socketspec.concurrency.tasks import SeparateTasks
from socketspec.declaration.contracts import Broadcasts
from socketspec.declaration.rooms import Room
from socketspec.errors import BackendError, CloseCode
from socketspec.protocol.publications import Position, Receipt, RoomMessage
from socketspec.session.revocation import REVOKED_FOR

__all__ = ("AsyncPublisher",)

T = TypeVar("T")


class AsyncPublisher:
    """`Publisher` for an event loop: the same options, methods and promises. Calls made at once share round trips."""

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str | None = None,
        namespace: str = "/",
        rooms: Sequence[Room | str] = (),
        broadcasts: Sequence[Broadcasts] = (),
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        self._servers, self._options = configuration(url, prefix, timeout, options)
        make_topology(self._servers, self._options)  # refuses what cannot work, here and not with the first call
        keys = Keys(self._options.prefix, self._servers.db)
        self._requests = Requests(keys, namespace=namespace, rooms=rooms, broadcasts=broadcasts)
        self._life: _Life | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncPublisher {self._servers} prefix={self._options.prefix!r}>"

    async def close(self) -> None:
        """Close the connections. It cannot be used again."""
        self._is_closed = True
        life, self._life = self._life, None
        if life is not None and life.loop is asyncio.get_running_loop():
            await life.stop()

    async def broadcast(
        self,
        room: str,
        event: str,
        payload: object = None,
        *,
        exclude: str | Iterable[str] = (),
        idempotency_key: str | None = None,
        namespace: str | None = None,
    ) -> Receipt:
        """See `Publisher.broadcast`."""
        return await self._run(self._requests.broadcast(room, event, payload, exclude, idempotency_key, namespace))

    async def broadcast_many(
        self, messages: Iterable[tuple[str, str, object]], *, namespace: str | None = None
    ) -> list[Receipt]:
        """See `Publisher.broadcast_many`."""
        receipts: list[Receipt] = []
        for request in self._requests.batches(messages, namespace):
            batch: list[Receipt] = await self._run(request)
            receipts += batch
        return receipts

    async def broadcast_all(
        self,
        event: str,
        payload: object = None,
        *,
        exclude: str | Iterable[str] = (),
        namespace: str | None = None,
    ) -> Receipt:
        """See `Publisher.broadcast_all`."""
        return await self._run(self._requests.broadcast_all(event, payload, exclude, namespace))

    async def send_to_user(
        self, user_id: str, event: str, payload: object = None, *, namespace: str | None = None
    ) -> Receipt:
        """See `Publisher.send_to_user`."""
        return await self._run(self._requests.send_to_user(user_id, event, payload, namespace))

    async def disconnect_user(
        self,
        user_id: str,
        *,
        reason: str = "disconnected",
        code: int = CloseCode.DISCONNECTED,
        namespace: str | None = None,
    ) -> int:
        """See `Publisher.disconnect_user`."""
        return await self._run(self._requests.disconnect_user(user_id, code, reason, namespace))

    async def revoke(
        self,
        *,
        session: str | None = None,
        user: str | None = None,
        token_id: str | None = None,
        ttl: float = REVOKED_FOR,
        reason: str = "revoked",
        namespace: str | None = None,
    ) -> None:
        """See `Publisher.revoke`."""
        await self._run(self._requests.revoke(session, user, token_id, ttl, reason, namespace))

    async def count(self, room: str, *, namespace: str | None = None) -> int:
        """See `Publisher.count`."""
        return await self._run(self._requests.count(room, namespace))

    async def history(
        self,
        room: str,
        *,
        limit: int | None = None,
        since: Position | None = None,
        namespace: str | None = None,
    ) -> list[RoomMessage]:
        """See `Publisher.history`."""
        return await self._run(self._requests.history(room, limit, since, namespace))

    async def _run(self, request: Request[T]) -> T:
        runner = await self._runner()
        replies: list[Any] = []
        for commands in request.stages:
            # One command alone is the usual case, and `run` costs less.
            replies += [await runner.run(commands[0])] if len(commands) == 1 else await runner.run_all(commands)
        return request.parse(replies)

    async def _runner(self) -> Runner:
        if self._is_closed:
            raise BackendError("This publisher is closed.")
        loop = asyncio.get_running_loop()
        if self._life is None or self._life.loop is not loop:
            if self._life is not None and not self._life.loop.is_closed():
                raise RuntimeError(f"{self!r} is used in another event loop; give each loop a publisher of its own.")
            self._life = _Life(self._servers, self._options, loop)
        return await self._life.started()


class _Life:
    """The connections of a publisher in one event loop."""

    def __init__(self, servers: Servers, options: RedisOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._tasks = SeparateTasks()
        # A call may take `command_timeout`, and the first one connects.
        options = replace(options, start_timeout=min(options.start_timeout, options.command_timeout))
        self._timeout = options.command_timeout
        self._topology = make_topology(servers, options)
        self._runner = Runner(self._topology, options, self._tasks)
        self._starting = asyncio.Lock()
        self._is_started = False
        self._has_roles = servers.mode != "cluster"  # the replicas of a cluster answer where the primary is
        self._check_at = 0.0

    async def started(self) -> Runner:
        """The runner, started by whoever comes first."""
        if self._is_started:
            if self._has_roles and self.loop.time() >= self._check_at:
                await self._check_role()
            return self._runner
        try:
            async with asyncio.timeout(self._timeout), self._starting:
                if not self._is_started:
                    await self._start()
        except TimeoutError:
            raise BackendError(f"Redis could not be reached within {self._timeout:g} s, so nothing was sent.") from None
        return self._runner

    async def _start(self) -> None:
        try:
            await self._topology.start()
            await self._runner.start()
        except BaseException:
            await self._topology.stop()
            raise
        self._is_started = True
        self._check_at = self.loop.time() + CHECK_EVERY

    async def _check_role(self) -> None:
        """Raise `ReplicaError` where the server is no primary any more. Calls that come meanwhile wait."""
        async with self._starting:
            if self.loop.time() < self._check_at:
                return
            try:
                async with asyncio.timeout(SIGN_OF_LIFE):
                    await self._topology.refresh()
            except ReplicaError:
                raise
            except (BackendError, TimeoutError):
                pass  # the command that follows meets the same trouble, and says so
            self._check_at = self.loop.time() + CHECK_EVERY

    async def stop(self) -> None:
        """End everything."""
        if self._is_started:
            self._is_started = False
            await self._runner.stop()
            await self._tasks.close(1.0)
            await self._topology.stop()
