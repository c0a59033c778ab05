"""One app at work: makes its parts and joins them, starts and stops them. Adapters call it.

An adapter calls `admit` with the opening handshake, `open` once it has accepted, `receive` for every message,
`oversized` for one that is larger than it reads, and `lost` or `closed` when the transport is gone. Of the rest it
reads `settings` (paths, sizes, what may wait), `counters` and `waiting` (what its transports count in), `tasks` (which
own what it runs for the app), `requests` (for its log records) and `now`. Metrics read `hub`, `connections`, `stopping`
and `backend`, too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence

from socketspec.backend.protocols import Backend, LeasedPresence
from socketspec.concurrency import threads
from socketspec.concurrency.tasks import Tasks
from socketspec.concurrency.timing_wheel import Loop, TimingWheel
from socketspec.connection.connection import Connection, connection_id
from socketspec.connection.hooks import Hooks
from socketspec.connection.sender import Sender
from socketspec.connection.transport import Transport
from socketspec.connection.waiting import Waiting
from socketspec.declaration.registry import Hook, Registry
from socketspec.declaration.rooms import DeclaredRooms
from socketspec.declaration.sending import Contracts
from socketspec.fanout.broadcaster import Broadcaster
from socketspec.fanout.hub import Hub
from socketspec.identity import Identity
from socketspec.inbound.catching_up import CatchingUp
from socketspec.inbound.dispatch import Dispatcher, InboundLimits, Receive
from socketspec.inbound.event_limits import EventLimits
from socketspec.inbound.failures import Failures
from socketspec.inbound.limiter import Limiter
from socketspec.inbound.protocol_events import ProtocolEvents
from socketspec.inbound.resume import Resume
from socketspec.lifecycle.admission import Admission, Admissions, unavailable
from socketspec.lifecycle.closing import Closing
from socketspec.lifecycle.credentials import Credentials
from socketspec.lifecycle.deadlines import due
from socketspec.lifecycle.drain import Drain
from socketspec.lifecycle.opening import Opening
from socketspec.membership.directory import Directory
from socketspec.membership.leave_hooks import LeaveHooks
from socketspec.membership.node_orders import NodeOrders
from socketspec.membership.rooms import RoomMembership
from socketspec.membership.topics import Topics
from socketspec.membership.users import UserMembership
from socketspec.protocol.formats import Format
from socketspec.protocol.handshake import Handshake
from socketspec.protocol.publications import Publication, Topic
from socketspec.protocol.spans import HISTORY_LOST
from socketspec.runtime import engines
from socketspec.runtime.settings import Settings
from socketspec.session.lookup import SessionLookup
from socketspec.telemetry.context import Requests, log_context
from socketspec.telemetry.counters import Counters
from socketspec.telemetry.debug_feed import DebugFeed
from socketspec.telemetry.failure_watch import FailureWatch

__all__ = ("Engine",)


class Engine:
    """One app at work in one event loop.

    Its parts are made here, from the ground up: what stands in a line's parentheses is all that the part may touch.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        declared: DeclaredRooms,
        backend: Backend,
        clock: Loop | None = None,
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.pid: int = os.getpid()
        self.clock: Loop = self.loop if clock is None else clock
        self.now: Callable[[], float] = self.clock.time
        now, namespace, session = self.now, settings.namespace, settings.session

        self.counters: Counters = Counters()
        self.waiting: Waiting = Waiting(settings.max_node_buffer, now)
        self.requests: Requests = Requests(namespace)
        self.contracts: Contracts = Contracts(registry.sends, strict=settings.strict)
        self.feed: DebugFeed | None = DebugFeed() if settings.debug else None
        self.failures: FailureWatch = FailureWatch()
        self.tasks: Tasks = Tasks()
        self.handlers: Tasks = Tasks()
        self.everybody: Topic = Topic(namespace, "all", "")

        self.hub: Hub = Hub(backend.broker, self.tasks, self.counters)
        self.broadcaster: Broadcaster = Broadcaster(backend.broker, self.hub, self.contracts, self.counters, self.feed)
        sender = Sender(
            namespace, self.hub, self.contracts, self.requests, self.feed,
            max_buffer=settings.backpressure.max_buffer, now=now, hints=settings.debug or settings.public_schema,
        )  # fmt: skip
        hooks = Hooks(self.contracts, self.requests, self.failures)
        self.directory: Directory = Directory()
        self._leased = backend.presence if isinstance(backend.presence, LeasedPresence) else None
        topics = Topics(self.hub, backend.presence)
        self.rooms: RoomMembership = RoomMembership(
            namespace, declared, registry, topics, self.hub, hooks, self.counters,
            max_rooms=settings.max_rooms_per_connection,
        )  # fmt: skip
        self.orders: NodeOrders = NodeOrders(
            namespace, backend.broker, backend.sessions, self.directory, self.tasks, now
        )
        users = UserMembership(
            namespace, topics, backend.presence, self.orders,
            limit=settings.max_connections_per_user, policy=settings.connection_limit_policy,
        )  # fmt: skip
        self._leave_hooks = LeaveHooks(registry, hooks, sender, self.tasks, session)
        self._wheel: TimingWheel[Connection] = TimingWheel(due, loop=self.clock)
        self._drain = Drain(self.directory, self.tasks, now)
        self._closing = Closing(
            self.everybody, self.directory, self._wheel, self.hub, self.rooms, users, hooks, registry, self.counters,
            self.requests, self.tasks,
        )  # fmt: skip
        lookup = SessionLookup(namespace, session, backend.sessions)
        credentials = Credentials(lookup, self.directory, self.orders, self._wheel, now)
        self._admissions = Admissions(
            settings.origins, settings.auth, registry.auth, lookup, self._drain, now, self.failures
        )
        self._opening = Opening(
            backend.node, self.everybody, sender, self.directory, self._wheel, self.hub, users, hooks, registry,
            lookup, credentials, self._closing, self._drain, config=session, auth_timeout=settings.auth_timeout,
        )  # fmt: skip
        limit = settings.rate_limit
        limiter = None if limit is None else Limiter(limit, backend.limits, shared=backend.shared)
        catching_up = CatchingUp(backend.history, self.hub, max_buffer=settings.backpressure.max_buffer)
        resume = Resume(
            self.rooms, backend.history, catching_up, credentials, limiter, self.counters, self.tasks, now,
            max_rooms=settings.max_rooms_per_connection,
        )  # fmt: skip
        protocol_events = ProtocolEvents(self._admissions, self._opening, credentials, resume)
        limits = InboundLimits(
            max_payload_size=settings.max_payload_size, max_payload_items=settings.max_payload_items,
            max_first_message=settings.max_first_message, max_in_flight=settings.max_in_flight,
        )  # fmt: skip
        event_limits = EventLimits(backend.limits, self.counters, shared=backend.shared)
        dispatcher = Dispatcher(
            registry, self.contracts, limiter, event_limits, protocol_events,
            Failures(registry, hooks, self.requests, debug=settings.debug), self.handlers, self.requests, self.counters,
            self.feed, limits, now,
        )  # fmt: skip

        self.receive: Receive = dispatcher.receive
        """Takes one message; await what it returns before reading on."""
        self.oversized: Callable[[Connection], None] = dispatcher.oversized
        """A message was larger than the adapter reads: close with 1009 where this has not closed the connection."""
        self._at_handshake: Hook | None = registry.at_handshake("SocketApp")
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect the backend. Raises `BackendError`."""
        await self.backend.start(self.settings.namespace, self.deliver, self._leave_hooks.take)
        try:
            if self._leased is not None:
                self._leased.watch(self.settings.namespace, self.orders.displaced)
            await self.hub.acquire(self.orders.topic)
            await self.hub.acquire(self.everybody)
        except BaseException:
            await self.backend.stop(self.settings.namespace, self.deliver)
            raise
        threads.retain(self.loop)
        engines.add(self)

    def deliver(self, topic: Topic, publications: Sequence[Publication]) -> Awaitable[None] | None:
        """Take what the backend heard: orders are carried out, the rest goes to the topic's members."""
        if topic.kind == "control":
            self.orders.receive(publications)
            return None
        if publications[0].event == HISTORY_LOST:
            publications = self._for_those_who_ask(topic, publications)
        return self.hub.deliver(topic, publications)

    def _for_those_who_ask(self, topic: Topic, publications: Sequence[Publication]) -> list[Publication]:
        """Not for clients that offered no subprotocol: these get nothing of which they were not told."""
        found = map(self.connections.get, self.hub.members(topic))
        plain = tuple(conn.id for conn in found if conn is not None and conn.format is Format.PLAIN)
        return [publication._replace(exclude=plain) for publication in publications]

    @property
    def connections(self) -> dict[str, Connection]:
        """This node's connections, by id."""
        return self.directory.connections

    @property
    def stopping(self) -> bool:
        """Whether it drains or has drained: nobody is let in any more."""
        return self._drain.stopping

    def begin_drain(self, window: float | None = None, grace: float | None = None) -> asyncio.Task[int]:
        """Begin to let every connection go (see `lifecycle.drain`). None: as the settings say.

        Calls after the first give the same task; its result is how many connections there were.
        """
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
        await self.hub.release(self.orders.topic)
        self._wheel.close()
        engines.remove(self)
        if self._leased is not None:
            self._leased.unwatch(self.settings.namespace, self.orders.displaced)
        try:
            await self.backend.stop(self.settings.namespace, self.deliver)
        finally:
            threads.release(self.loop)

    async def admit(self, handshake: Handshake, dependencies: Hook | None = None) -> Admission:
        """Decide about an opening handshake, after its `dependencies` have run; None: those of the app."""
        id = connection_id()  # made here already, so that log records of the handshake carry it as well
        with log_context(id, self.requests):
            admission = await self._admissions.admit(handshake, id, dependencies or self._at_handshake)
            if admission.refusal is None and (why := self._why_closed(admission)):
                await admission.abandon()
                admission = unavailable(id, why)
        if admission.refusal is not None:
            self.counters.count_refused(admission.refusal[0])
        return admission

    def _why_closed(self, admission: Admission) -> str:
        """Why nobody who is somebody can come in now; empty where they can."""
        identity = admission.identity
        if self._leased is None or identity is None or not identity.is_authenticated or identity.user_id is None:
            return ""
        return self._leased.why_closed(self.settings.namespace)

    async def identify(self, handshake: Handshake) -> Identity:
        """Who sends this, by the app's auth backends, unless revoked. Raises `AuthError` and `BackendError`."""
        return await self._admissions.identify(handshake)

    async def open(self, admission: Admission, handshake: Handshake, transport: Transport) -> Connection:
        """Make the connection of an accepted handshake and run the `on_connect` hooks."""
        self.counters.opened += 1
        with log_context(admission.connection, self.requests):
            return await self._opening.open(admission, handshake, transport)

    def lost(self, conn: Connection, code: int) -> None:
        """The transport is gone: begin to clean up after the connection."""
        self._closing.lost(conn, code)

    async def closed(self, conn: Connection, code: int) -> None:
        """As `lost`, and wait until the connection has been cleaned up after."""
        await self._closing.closed(conn, code)
