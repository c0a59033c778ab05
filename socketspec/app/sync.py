"""`socket.sync`: what an app offers, for code that cannot await: `def` routes and handlers, threads, executors.

Each call runs in the app's event loop, in a copy of the caller's context variables, and the calling thread waits for
the result. What is not `async` and is called on the way, such as a `def` guard or dependency, runs in that thread
meanwhile: threads that wait here never wait for a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar

from socketspec.app.bridge import Bridge
from socketspec.app.rooms import Exclude, Rooms
from socketspec.app.sessions import Sessions
from socketspec.app.users import Users
from socketspec.connection.connection import Connection
from socketspec.declaration.events import Event, RoomValue
from socketspec.errors import CloseCode
from socketspec.protocol.publications import Member, Position, Receipt, RoomMessage
from socketspec.runtime.engine import Engine
from socketspec.session.revocation import REVOKED_FOR

__all__ = ("TIMEOUT", "Sync", "SyncEvent", "SyncRooms", "SyncSessions", "SyncUsers")

M = TypeVar("M")
T = TypeVar("T")

TIMEOUT: Final = 10.0
"""Seconds that a call waits for its result, unless it says otherwise."""


class SyncRooms:
    """`socket.sync.rooms`: the methods of `Rooms`, for code that cannot await."""

    def __init__(self, rooms: Rooms, bridge: Bridge) -> None:
        self._rooms = rooms
        self._bridge = bridge

    def join(self, conn: Connection, room: str, *, timeout: float = TIMEOUT) -> None:
        """As `Rooms.join`."""
        self._bridge.call("rooms.join", partial(self._rooms.join, conn, room), timeout)

    def leave(self, conn: Connection, room: str, *, timeout: float = TIMEOUT) -> None:
        """As `Rooms.leave`."""
        self._bridge.call("rooms.leave", partial(self._rooms.leave, conn, room), timeout)

    def broadcast(
        self,
        room: str,
        event: str,
        payload: object = None,
        *,
        exclude: Exclude = None,
        idempotency_key: str | None = None,
        timeout: float = TIMEOUT,
    ) -> Receipt:
        """As `Rooms.broadcast`."""
        work = partial(self._rooms.broadcast, room, event, payload, exclude=exclude, idempotency_key=idempotency_key)
        return self._bridge.call("rooms.broadcast", work, timeout)

    def broadcast_all(self, event: str, payload: object = None, *, timeout: float = TIMEOUT) -> Receipt:
        """As `Rooms.broadcast_all`."""
        return self._bridge.call("rooms.broadcast_all", partial(self._rooms.broadcast_all, event, payload), timeout)

    def broadcast_except(
        self, exclude: Exclude, event: str, payload: object = None, *, timeout: float = TIMEOUT
    ) -> Receipt:
        """As `Rooms.broadcast_except`."""
        work = partial(self._rooms.broadcast_except, exclude, event, payload)
        return self._bridge.call("rooms.broadcast_except", work, timeout)

    def members(self, room: str, *, timeout: float = TIMEOUT) -> Sequence[Member]:
        """As `Rooms.members`."""
        return self._bridge.call("rooms.members", partial(self._rooms.members, room), timeout)

    def count(self, room: str, *, timeout: float = TIMEOUT) -> int:
        """As `Rooms.count`."""
        return self._bridge.call("rooms.count", partial(self._rooms.count, room), timeout)

    def history(
        self, room: str, *, limit: int | None = None, since: Position | None = None, timeout: float = TIMEOUT
    ) -> Sequence[RoomMessage]:
        """As `Rooms.history`."""
        work = partial(self._rooms.history, room, limit=limit, since=since)
        return self._bridge.call("rooms.history", work, timeout)


class SyncUsers:
    """`socket.sync.users`: the methods of `Users`, for code that cannot await."""

    def __init__(self, users: Users, bridge: Bridge) -> None:
        self._users = users
        self._bridge = bridge

    def send(self, user_id: str, event: str, payload: object = None, *, timeout: float = TIMEOUT) -> Receipt:
        """As `Users.send`."""
        return self._bridge.call("users.send", partial(self._users.send, user_id, event, payload), timeout)

    def disconnect(
        self,
        user_id: str,
        *,
        reason: str = "disconnected",
        code: int = CloseCode.DISCONNECTED,
        timeout: float = TIMEOUT,
    ) -> int:
        """As `Users.disconnect`."""
        work = partial(self._users.disconnect, user_id, reason=reason, code=code)
        return self._bridge.call("users.disconnect", work, timeout)

    def count(self, user_id: str, *, timeout: float = TIMEOUT) -> int:
        """As `Users.count`."""
        return self._bridge.call("users.count", partial(self._users.count, user_id), timeout)


class SyncSessions:
    """`socket.sync.sessions`: the methods of `Sessions`, for code that cannot await."""

    def __init__(self, sessions: Sessions, bridge: Bridge) -> None:
        self._sessions = sessions
        self._bridge = bridge

    def revoke(
        self,
        *,
        session: str | None = None,
        user: str | None = None,
        token_id: str | None = None,
        ttl: float = REVOKED_FOR,
        reason: str = "revoked",
        timeout: float = TIMEOUT,
    ) -> None:
        """As `Sessions.revoke`."""
        work = partial(self._sessions.revoke, session=session, user=user, token_id=token_id, ttl=ttl, reason=reason)
        self._bridge.call("sessions.revoke", work, timeout)


class SyncEvent(Generic[M]):
    """A typed event, for code that cannot await: the methods of `Event`."""

    def __init__(self, event: Event[M], bridge: Bridge, timeout: float) -> None:
        self._event = event
        self._bridge = bridge
        self._timeout = timeout

    def broadcast(
        self, payload: M, /, *, exclude: Exclude = None, idempotency_key: str | None = None, **variables: RoomValue
    ) -> Receipt:
        """As `Event.broadcast`."""
        work = partial(self._event.broadcast, payload, exclude=exclude, idempotency_key=idempotency_key, **variables)
        return self._call("broadcast", work)

    def broadcast_all(self, payload: M, /, *, exclude: Exclude = None) -> Receipt:
        """As `Event.broadcast_all`."""
        return self._call("broadcast_all", partial(self._event.broadcast_all, payload, exclude=exclude))

    def send(self, user_id: str, payload: M, /) -> Receipt:
        """As `Event.send`."""
        return self._call("send", partial(self._event.send, user_id, payload))

    def emit(self, conn: Connection, payload: M, /) -> None:
        """As `Event.emit`."""
        self._call("emit", partial(self._event.emit, conn, payload))

    def _call(self, method: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._bridge.call(f"event({self._event.name!r}).{method}", work, self._timeout, awaited=f"its {method}")


class Sync:
    """`socket.sync`: for `def` routes, `def` handlers, threads and executors, while the app runs in this process.

    Every method waits for its result, `timeout` seconds at most, and raises what the awaited one raises; besides,

    - `RuntimeError` in the app's own event loop, which it would block for ever, and where the app does not run;
    - `TimeoutError` when the time is over. Then it may or may not have been done: a broadcast that must not come twice
      takes an `idempotency_key`. A `def` guard or dependency that runs at that moment is waited for.
    """

    def __init__(self, rooms: Rooms, users: Users, sessions: Sessions, engine: Callable[[], Engine | None]) -> None:
        self._bridge = Bridge(engine)
        self.rooms: SyncRooms = SyncRooms(rooms, self._bridge)
        self.users: SyncUsers = SyncUsers(users, self._bridge)
        self.sessions: SyncSessions = SyncSessions(sessions, self._bridge)

    def event(self, event: Event[M], *, timeout: float = TIMEOUT) -> SyncEvent[M]:
        """What sends a typed event: ``socket.sync.event(order_changed).broadcast(order, id=42)``."""
        return SyncEvent(event, self._bridge, timeout)

    def emit(self, conn: Connection, event: str, payload: object = None, *, timeout: float = TIMEOUT) -> None:
        """As `Connection.emit`."""
        self._bridge.call("emit", partial(conn.emit, event, payload), timeout, awaited="conn.emit")

    def disconnect(
        self,
        conn: Connection,
        reason: str = "disconnected",
        *,
        code: int = CloseCode.DISCONNECTED,
        timeout: float = TIMEOUT,
    ) -> None:
        """As `Connection.disconnect`."""
        work = partial(conn.disconnect, reason, code=code)
        self._bridge.call("disconnect", work, timeout, awaited="conn.disconnect")

    def run(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any, timeout: float = TIMEOUT) -> T:
        """The result of ``await work(*args)``, in the app's event loop: for async code of your own."""
        return self._bridge.call("run", partial(work, *args), timeout, awaited=getattr(work, "__name__", "work"))
