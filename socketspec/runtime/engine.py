"""What runs between an app's start and its stop: connections, fan-out, timers and tasks, in one event loop.

An adapter calls `admit` with the opening handshake, `open` once it has accepted, `receive` for every message, and
`closed` when the transport is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from socketspec.app.rooms import Rooms
from socketspec.backend.protocols import Backend
from socketspec.concurrency.cancellation import unless_cancelled
from socketspec.concurrency.tasks import Tasks
from socketspec.concurrency.timing_wheel import TimingWheel
from socketspec.connection.connection import Connection, connection_id
from socketspec.connection.states import State
from socketspec.connection.transport import Transport
from socketspec.declaration.contracts import Contracts
from socketspec.declaration.registry import Hook, Registry
from socketspec.errors import BackendError
from socketspec.fanout.hub import Hub
from socketspec.inbound.dispatch import Dispatcher
from socketspec.inbound.limiter import Limiter
from socketspec.inbound.protocol_events import ClientEvents
from socketspec.lifecycle.admission import Admission
from socketspec.lifecycle.deadlines import Keeper
from socketspec.lifecycle.drain import Drain
from socketspec.lifecycle.opening import Opening
from socketspec.membership import users
from socketspec.membership.lost_members import LostMembers
from socketspec.membership.node_orders import Control
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.publications import History, Member, Publication, Receipt, Topic
from socketspec.runtime import engines
from socketspec.runtime.settings import Settings
from socketspec.telemetry.context import Requests, about, telling
from socketspec.telemetry.counters import Counters
from socketspec.telemetry.debug_feed import DebugFeed
from socketspec.telemetry.tracing import installed

__all__ = ("Engine",)

logger: logging.Logger = logging.getLogger("socketspec")


LEAVE_TIMEOUT: Final = 10.0
"""Seconds that leaving its rooms may take a connection, all together."""
HOOK_TIMEOUT: Final = 30.0
"""Seconds a hook that cleans up after a connection may take."""

CLIENT_REASONS: Final = {
    1000: "client_closed",
    1001: "client_going_away",
    1005: "connection_lost",
    1006: "connection_lost",
    1009: "message_too_big",
    1012: "server_shutdown",
}


class Engine:
    """One app at work in one event loop."""

    def __init__(self, settings: Settings, registry: Registry, rooms: Rooms, backend: Backend) -> None:
        self.settings = settings
        self.registry: Registry = registry
        self.rooms = rooms
        self.backend = backend
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.now: Callable[[], float] = self.loop.time
        self.connections: dict[str, Connection] = {}
        self.counters: Counters = Counters()
        self.requests: Requests = Requests(settings.namespace)
        self.contracts: Contracts = Contracts(strict=settings.strict)
        self.tasks: Tasks = Tasks()
        self.handlers: Tasks = Tasks()
        self.wheel: TimingWheel = TimingWheel()
        self.hub: Hub = Hub(backend.broker, self.tasks, self.counters)
        self.everybody: Topic = Topic(settings.namespace, "all", "")
        self.control: Control = Control(self)
        self.opening: Opening = Opening(self)
        self.lost_members: LostMembers = LostMembers(self)
        self.keeper: Keeper = Keeper(self)
        self.client_events: ClientEvents = ClientEvents(self)
        self.dispatcher: Dispatcher = Dispatcher(self)
        self.feed: DebugFeed | None = DebugFeed() if settings.debug else None
        self.stopping: bool = False
        self.emptied: asyncio.Event = asyncio.Event()
        """Set from when the last connection has been cleaned up after until there is another one."""
        self._drain = Drain(self)
        self._ending: asyncio.Task[None] | None = None
        self.limiter: Limiter | None = (
            Limiter(settings.rate_limit, backend.limits, shared=backend.shared) if settings.rate_limit else None
        )

    async def start(self) -> None:
        """Connect the backend. Raises `BackendError`."""
        await self.backend.start(self.settings.namespace, self.deliver, self._lost)
        try:
            await self.hub.acquire(self.control.topic)
            await self.hub.acquire(self.everybody)
        except BaseException:
            await self.backend.stop(self.settings.namespace, self.deliver)
            raise
        engines.add(self)

    def deliver(self, topic: Topic, publications: Sequence[Publication]) -> Awaitable[None] | None:
        """Take what the backend heard: orders are carried out, the rest goes to the topic's members."""
        if topic.kind == "control":
            self.control.receive(publications)
            return None
        return self.hub.deliver(topic, publications)

    def _lost(self, topic: Topic, members: Sequence[Member]) -> None:
        """Members of a room or of a user whose node died."""
        logger.info("%d members of %s %r are gone with their node", len(members), topic.kind, topic.name)
        self.lost_members.take(topic, members)

    def begin_drain(self, window: float | None = None, grace: float | None = None) -> asyncio.Task[int]:
        """Begin to let every connection go (see `lifecycle.drain`), once; None: as the settings say."""
        return self._drain.begin(
            self.settings.drain_window if window is None else window,
            self.settings.drain_grace if grace is None else grace,
        )

    async def stop(self, *, grace: float | None = None, window: float | None = None) -> None:
        """Drain, and end everything. Handlers that do not finish within `grace` seconds after the window are cancelled,
        and so are hooks that do not finish within another `grace`.

        Calls after the first wait for the same end.
        """
        if self._ending is None:
            self._ending = self.loop.create_task(self._stop(grace, window), name="stop")
        await asyncio.shield(self._ending)

    async def _stop(self, grace: float | None, window: float | None) -> None:
        await asyncio.shield(self.begin_drain(window, grace))
        await self.handlers.close(max(self._drain.deadline - self.now(), 0.0))
        await self.tasks.close(self.settings.drain_grace if grace is None else grace)
        await self.hub.release(self.everybody)
        await self.hub.release(self.control.topic)
        self.wheel.close()
        engines.remove(self)
        await self.backend.stop(self.settings.namespace, self.deliver)

    async def admit(self, handshake: Handshake) -> Admission:
        """Decide about an opening handshake."""
        id = connection_id()  # so that what is logged from here on can be told to belong together
        with telling(id, self.requests):
            admission = await self.opening.admit(handshake, id)
        if admission.refusal is not None:
            self.counters.count_refused(admission.refusal[0])
        return admission

    async def open(self, admission: Admission, handshake: Handshake, transport: Transport) -> Connection:
        """Make the connection of an accepted handshake and run the `on_connect` hooks."""
        self.counters.opened += 1
        with telling(admission.connection, self.requests):
            return await self.opening.open(admission, handshake, transport)

    async def publish(
        self,
        topic: Topic,
        publication: Publication,
        *,
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Publish for this node's own code, counted and traced. Raises as `Broker.publish` does."""
        self.counters.broadcasts += 1
        publish = self.backend.broker.publish
        tracing = installed()
        if tracing is None:
            return await publish(topic, publication, history=history, idempotency_key=idempotency_key)
        with tracing.publishing(topic, publication.event) as trace:
            traced = publication._replace(trace=trace)
            return await publish(topic, traced, history=history, idempotency_key=idempotency_key)

    def receive(self, conn: Connection, data: str | bytes, *, binary: bool) -> Coroutine[Any, Any, None] | None:
        """Take one message; await what it returns before reading on."""
        return self.dispatcher.receive(conn, data, binary=binary)

    def lost(self, conn: Connection, code: int) -> None:
        """The transport is gone. The clean-up after the connection has begun when this returns."""
        if conn.state is not State.CLOSED:
            if conn.state is not State.CLOSING:
                conn.close_code = code
                conn.close_reason = CLIENT_REASONS.get(code, f"client:{code}")
            conn.move(State.CLOSED)
        self.finish(conn)

    async def closed(self, conn: Connection, code: int) -> None:
        """As `lost`, and wait until the connection has been cleaned up after."""
        self.lost(conn, code)
        await asyncio.shield(self.finish(conn))

    def finish(self, conn: Connection) -> asyncio.Task[None]:
        """Start cleaning up after a connection, once."""
        if conn.finished is None:
            conn.finished = self.tasks.spawn(self._clean_up(conn), name=f"clean-up of {conn.id}")
        return conn.finished

    async def _clean_up(self, conn: Connection) -> None:
        about.set((conn.id, self.requests, None, 0))  # ends with this task, which another connection may have caused
        self.wheel.cancel(conn)
        self.hub.remove(self.everybody, conn)
        self.control.directory.discard(conn)
        conn.departed = conn.rooms
        topics, conn.topics = conn.topics, {}
        try:
            deadline = self.now() + LEAVE_TIMEOUT
            await self._leave(deadline, conn, "its user", users.leave(self, conn))
            for topic in topics.values():
                await self._leave(deadline, conn, f"room {topic.name!r}", self.rooms.exit(self, conn, topic))
            for room in topics:
                await self.run_final_hooks(self.registry.on_room_leave, conn, room)
            if conn.welcomed:
                await self.run_final_hooks(self.registry.on_disconnect, conn, conn.close_reason)
        finally:
            self.connections.pop(conn.id, None)
            self.counters.count_closed(conn.close_reason)
            if not self.connections:
                self.emptied.set()

    async def _leave(self, deadline: float, conn: Connection, what: str, leaving: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await leaving
        except (BackendError, TimeoutError) as error:
            logger.error("Leaving %s failed for connection %s: %r", what, conn.id, error)
        except Exception:
            logger.exception("Leaving %s failed for connection %s", what, conn.id)

    def telling(self, conn: Connection) -> AbstractContextManager[None]:
        """What is logged inside is about `conn`, and about what it asked for where that is being handled here."""
        found = about.get()
        if found is not None and found[0] == conn.id:
            return nullcontext()
        return telling(conn.id, self.requests)

    async def run_final_hooks(self, hooks: Sequence[Hook], conn: Connection, *arguments: Any) -> None:
        """Like `run_hooks`, for at most `HOOK_TIMEOUT` seconds."""
        with self.telling(conn):
            try:
                async with asyncio.timeout(HOOK_TIMEOUT):
                    await self.run_hooks(hooks, conn, *arguments)
            except TimeoutError:
                logger.error("A hook took longer than %.0f s and was cancelled", HOOK_TIMEOUT)

    async def run_hooks(self, hooks: Sequence[Hook], conn: Connection, *arguments: Any) -> None:
        """Call hooks one after the other; one that fails is logged and does not stop the others."""
        if not hooks:
            return
        with self.telling(conn), self.contracts.handling(None):  # what a hook sends is not the handler's that caused it
            for hook in hooks:
                try:
                    await unless_cancelled(hook(conn, *arguments))
                except BackendError as error:
                    logger.error("The hook %s failed: %s", getattr(hook, "__qualname__", hook), error)
                except Exception:
                    logger.exception("The hook %s failed", getattr(hook, "__qualname__", hook))

    def observe(
        self, direction: str, conn: Connection | None, event: str, payload: str | bytes, *, room: str | None = None
    ) -> None:
        """Show an event in the debug feed, if there is one."""
        if self.feed is not None:
            self.feed.add(direction, conn.id if conn is not None else None, event, payload, room)
