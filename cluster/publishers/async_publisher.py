"""`AsyncPublisher`: `socketspec.cluster.publishers.publisher.Publisher` for code with an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar, overload

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.events import AsyncPublisherSender, event_of
from socketspec.cluster.publishers.lives import Lives
from socketspec.cluster.publishers.publisher import configuration
from socketspec.cluster.publishers.requests import Request, Requests
from socketspec.cluster.publishers.wording import has_failed, not_sent
from socketspec.cluster.servers.topology import make_topology
from socketspec.declaration.contracts import Broadcasts
from socketspec.declaration.events import Event
from socketspec.declaration.rooms import Room
from socketspec.errors import BackendError, CloseCode
from socketspec.protocol.publications import Position, Receipt, RoomMessage
from socketspec.session.revocation import REVOKED_FOR

__all__ = ("AsyncPublisher",)

T = TypeVar("T")
M = TypeVar("M")


class AsyncPublisher:
    """`Publisher` for event loops: the same options, methods and promises. Calls made at once share round trips.

    Each event loop that calls it has connections of its own, which close when the loop ends, or with `close`. At most
    64 event loops have some at the same time; another one waits for its turn.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str | None = None,
        namespace: str = "/",
        rooms: Sequence[Room | str] = (),
        broadcasts: Sequence[Broadcasts | Event[Any]] = (),
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        self._servers, self._options = configuration(url, prefix, timeout, options)
        make_topology(self._servers, self._options)  # refuses what cannot work, here and not with the first call
        keys = Keys(self._options.prefix, self._servers.db)
        self._requests = Requests(keys, namespace=namespace, rooms=rooms, broadcasts=broadcasts)
        self._lives = Lives(self._servers, self._options)
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
        await self._lives.close()

    @overload
    def event(self, event: Event[M], /) -> Event[M]: ...
    @overload
    def event(self, event: str, model: type[M], /, *, room: str | None = None) -> Event[M]: ...

    def event(self, event: str | Event[Any], model: Any = None, /, **options: Any) -> Event[Any]:
        """See `Publisher.event`."""
        return event_of(event, model, options).bound_to(AsyncPublisherSender(self))

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
        many = self._requests.broadcast_many(messages, namespace)
        for commands in many.batches:
            many.took((await self._outcomes([commands]))[0])
        return many.receipts()

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
        return request.result(await self._outcomes(request.stages))

    async def _outcomes(self, stages: Sequence[Sequence[Command]]) -> list[list[Any]]:
        """See `BlockingExecutor.run_stages`."""
        if self._is_closed:
            return [[BackendError("This publisher is closed, so nothing was sent.")] * len(stages[0])]
        deadline = asyncio.get_running_loop().time() + self._options.command_timeout
        try:
            runner = await self._lives.runner()
        except BackendError as error:  # of the connecting
            return [[not_sent([command], error) for command in stages[0]]]
        outcomes: list[list[Any]] = []
        for commands in stages:
            try:
                # One command alone is the usual case, and `run` costs less.
                one = len(commands) == 1
                outcomes.append(
                    [await runner.run(commands[0], deadline)] if one else await runner.outcomes(commands, deadline)
                )
            except BackendError as error:
                outcomes.append([error] * len(commands))
            if has_failed(outcomes[-1]):
                break
        return outcomes
