"""`Publisher`: sends to the clients of an app from code that is no part of it, such as a Celery worker or a script.

It needs neither FastAPI nor a node of the app in its process, only the URL of its backend. What it sends is encoded,
checked and kept as if a node had sent it. For code with an event loop: `async_publisher`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar, overload

from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.options import RedisOptions, Servers, check_seconds
from socketspec.cluster.publishers.blocking_executor import BlockingExecutor
from socketspec.cluster.publishers.events import PublisherEvent, event_of
from socketspec.cluster.publishers.requests import Request, Requests
from socketspec.cluster.urls import configured
from socketspec.declaration.contracts import Broadcasts
from socketspec.declaration.events import Event
from socketspec.declaration.rooms import Room
from socketspec.errors import CloseCode, ConfigurationError
from socketspec.protocol.publications import Position, Receipt, RoomMessage
from socketspec.session.revocation import REVOKED_FOR

__all__ = ("Publisher", "configuration")

T = TypeVar("T")
M = TypeVar("M")


class Publisher:
    """Sends from code without an event loop. Connects with the first call; safe in threads, and after a fork.

    Args:
        url: the app's backend, as in ``SocketApp(backend=…)``. None: what ``SOCKETSPEC_BACKEND`` says.
        prefix: what the app's keys begin with. None: as in the URL, else ``"socketspec"``.
        namespace: the app's, unless a call names another.
        rooms: the app's declarations, so that what is sent to rooms with history is kept. For other rooms a message is
            kept if the nodes have kept one before and still do.
        broadcasts: what this publisher may send; anything else raises `ContractError`.
        timeout: seconds any call may take before it raises `BackendError`. None: the URL's ``command_timeout``, else 5.
        options: any field of `socketspec.cluster.options.RedisOptions`.

    Every method raises `BackendError` in time, whose text says whether the message may have been sent; `ValueError` for
    a name or an event that cannot be one; `TypeError` for a payload that cannot be encoded. Raises
    `ConfigurationError` for options that cannot work.
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
        keys = Keys(self._options.prefix, self._servers.db)
        self._requests = Requests(keys, namespace=namespace, rooms=rooms, broadcasts=broadcasts)
        self._executor = BlockingExecutor(self._servers, self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Publisher {self._servers} prefix={self._options.prefix!r}>"

    def close(self) -> None:
        """Close the connections. It cannot be used again."""
        self._executor.close()

    @overload
    def event(self, event: Event[M], /) -> PublisherEvent[M]: ...
    @overload
    def event(self, event: str, model: type[M], /, *, room: str | None = None) -> PublisherEvent[M]: ...

    def event(self, event: str | Event[Any], model: Any = None, /, **options: Any) -> PublisherEvent[Any]:
        """Declare an event that this publisher sends, by name, model and room, or as an `Event` made elsewhere.

        What it returns sends it: ``publisher.event(order_changed).broadcast(order, id=42)``.
        """
        return PublisherEvent(event_of(event, model, options), self)

    def broadcast(
        self,
        room: str,
        event: str,
        payload: object = None,
        *,
        exclude: str | Iterable[str] = (),
        idempotency_key: str | None = None,
        namespace: str | None = None,
    ) -> Receipt:
        """Send an event to every member of `room`, on every node, at most once.

        `exclude` holds ids of connections that do not get it. What has the same `idempotency_key` (the id of a task
        that may be retried) within 5 minutes is sent once. ``Receipt.nodes == 0``: nobody is there.
        """
        return self._run(self._requests.broadcast(room, event, payload, exclude, idempotency_key, namespace))

    def broadcast_many(
        self, messages: Iterable[tuple[str, str, object]], *, namespace: str | None = None
    ) -> list[Receipt]:
        """Send many ``(room, event, payload)``, up to 500 in one round trip, each of which may take `timeout` seconds.

        All are encoded before the first is sent. Where one cannot be sent, those of later round trips are not sent, and
        the error says how many of all were sent, how many were not, and of how many nobody knows.
        """
        many = self._requests.broadcast_many(messages, namespace)
        for commands in many.batches:
            many.took(self._executor.run_stages([commands])[0])
        return many.receipts()

    def broadcast_all(
        self,
        event: str,
        payload: object = None,
        *,
        exclude: str | Iterable[str] = (),
        namespace: str | None = None,
    ) -> Receipt:
        """Send an event to every connection of the namespace, on every node."""
        return self._run(self._requests.broadcast_all(event, payload, exclude, namespace))

    def send_to_user(
        self, user_id: str, event: str, payload: object = None, *, namespace: str | None = None
    ) -> Receipt:
        """Send an event to every connection of a user. ``Receipt.nodes == 0``: the user is not connected."""
        return self._run(self._requests.send_to_user(user_id, event, payload, namespace))

    def disconnect_user(
        self,
        user_id: str,
        *,
        reason: str = "disconnected",
        code: int = CloseCode.DISCONNECTED,
        namespace: str | None = None,
    ) -> int:
        """Close every connection of a user; how many there were. The user may come back: see `revoke`."""
        return self._run(self._requests.disconnect_user(user_id, code, reason, namespace))

    def revoke(
        self,
        *,
        session: str | None = None,
        user: str | None = None,
        token_id: str | None = None,
        ttl: float = REVOKED_FOR,
        reason: str = "revoked",
        namespace: str | None = None,
    ) -> None:
        """Refuse a session, a user or a token for `ttl` seconds, and close what they have open, with 4005.

        May be called again after a `BackendError`.
        """
        self._run(self._requests.revoke(session, user, token_id, ttl, reason, namespace))

    def count(self, room: str, *, namespace: str | None = None) -> int:
        """How many connections are in `room`, on every node."""
        return self._run(self._requests.count(room, namespace))

    def history(
        self,
        room: str,
        *,
        limit: int | None = None,
        since: Position | None = None,
        namespace: str | None = None,
    ) -> list[RoomMessage]:
        """What a room keeps, oldest first: the newest `limit` messages, or those after `since`.

        Raises `LookupError` when `since` is no longer there, and `ValueError` for a room declared without history.
        """
        return self._run(self._requests.history(room, limit, since, namespace))

    def _run(self, request: Request[T]) -> T:
        return request.result(self._executor.run_stages(request.stages))


def configuration(
    url: str | None, prefix: str | None, timeout: float | None, options: dict[str, Any]
) -> tuple[Servers, RedisOptions]:
    """The servers and options of a publisher, by its arguments. Raises `ConfigurationError`."""
    given: Any = url if url is not None else os.environ.get("SOCKETSPEC_BACKEND") or None
    if given is None:
        raise ConfigurationError(
            "A publisher needs the URL of the app's backend, such as redis://host:6379: pass it, or set "
            "SOCKETSPEC_BACKEND."
        )
    if isinstance(given, str) and given.strip().lower().partition(":")[0] == "memory":
        raise ConfigurationError(
            "A publisher needs a backend that the app's nodes share, such as redis://host:6379; the memory backend is "
            "inside one process."
        )
    if prefix is not None:
        options["prefix"] = prefix
    if timeout is not None:
        check_seconds("command_timeout", timeout, "timeout")
        options["command_timeout"] = timeout
    return configured("A publisher", given, options)
