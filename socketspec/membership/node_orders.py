"""Orders between nodes: which connections the others want closed here, and which this one wants closed there.

They go over one topic, which every node of a namespace subscribes to and no client hears.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from pydantic import ValidationError

from socketspec.backend.protocols import Broker, Sessions
from socketspec.concurrency.tasks import Tasks
from socketspec.connection.connection import Connection
from socketspec.errors import BackendError, CloseCode, check_close_code
from socketspec.membership.directory import Directory
from socketspec.protocol.orders import (
    DISCONNECT,
    KEPT,
    MAX_ORDER,
    REVOKE,
    control_topic,
    disconnect_order,
    revoke_order,
)
from socketspec.protocol.publications import Publication, Receipt, Topic
from socketspec.session.revocation import revocation_subjects
from socketspec.text import get_logger

__all__ = ("NodeOrders",)

logger: logging.Logger = get_logger("socketspec.control")

REMEMBERED: Final = 60.0
"""Seconds for which a revocation is remembered, for connections that are being opened when it arrives."""
MAX_REMEMBERED: Final = 10_000
"""Subjects that are remembered; beyond that the oldest are forgotten."""
SUBJECTS_A_TURN: Final = 500
"""Subjects about which the backend is asked at once."""
CHECK_AGAIN: Final = 0.5
"""Seconds until connections are checked again where the backend could not be asked."""
CONNECTIONS_A_TURN: Final = 256
"""Connections that are closed before the event loop gets a turn."""


class NodeOrders:
    """Gives orders to all nodes, this one included, and carries out those that arrive."""

    def __init__(
        self,
        namespace: str,
        broker: Broker,
        sessions: Sessions,
        directory: Directory,
        tasks: Tasks,
        now: Callable[[], float],
    ) -> None:
        self.topic: Topic = control_topic(namespace)
        self._broker = broker
        self._sessions = sessions
        self._directory = directory
        self._tasks = tasks
        self._now = now
        self._orders: dict[str, Callable[[bytes], None]] = {
            "disconnect": self._disconnect,
            "revoke": self._revoke,
            "check": self._check,
        }
        self._checking: asyncio.Task[None] | None = None
        self._checks_again = False
        self._revoked: OrderedDict[str, float] = OrderedDict()
        self._ignored: set[str] = set()

    async def disconnect(
        self, *, user: str | None = None, connections: Sequence[str] = (), code: int, reason: str
    ) -> Receipt:
        """Close connections on every node: those of `user`, and those with the ids `connections`.

        Raises `BackendError`, and `ValueError` for a close code that an app may not use.
        """
        head, rest = connections[:MAX_ORDER], connections[MAX_ORDER:]
        receipt = await self._publish(disconnect_order(user=user, connections=head, code=code, reason=reason))
        for start in range(0, len(rest), MAX_ORDER):
            part = rest[start : start + MAX_ORDER]
            await self._publish(disconnect_order(connections=part, code=code, reason=reason))
        return receipt

    async def revoke(self, subjects: Sequence[str], reason: str) -> Receipt:
        """Close the connections of `subjects` on every node. Raises `BackendError`."""
        return await self._publish(revoke_order(subjects, reason))

    async def _publish(self, order: Publication) -> Receipt:
        return await self._broker.publish(self.topic, order, history=KEPT)

    def receive(self, publications: Sequence[Publication]) -> None:
        """Carry out orders. One that is not understood comes from another version, and is ignored."""
        for publication in publications:
            carry_out = self._orders.get(publication.event)
            if carry_out is None:
                self._ignore(publication.event, "it is unknown")
                continue
            try:
                carry_out(publication.payload)
            except (ValidationError, ValueError) as error:
                self._ignore(publication.event, str(error))

    def _ignore(self, event: str, cause: str) -> None:
        if event not in self._ignored and len(self._ignored) < 100:
            self._ignored.add(event)
            logger.warning("Ignored the order %r of another node (said once): %s", event[:80], cause[:300])

    def has_revoked(self, subjects: Iterable[str], *, since: float) -> bool:
        """Whether one of `subjects` was revoked after `since`, on the event loop's clock.

        Pass the time at which you asked the backend: it may have answered before a revocation that we know of.
        """
        self._forget_old()
        return any(self._revoked.get(subject, -math.inf) >= since for subject in subjects)

    def _forget_old(self) -> None:
        now = self._now()
        while self._revoked and (
            len(self._revoked) > MAX_REMEMBERED or next(iter(self._revoked.values())) < now - REMEMBERED
        ):
            self._revoked.popitem(last=False)

    def _disconnect(self, payload: bytes) -> None:
        order = DISCONNECT.validate_json(payload)
        check_close_code(order.code)
        known = self._directory.connections
        conns = [known[id] for id in order.connections if id in known]
        if order.user is not None:
            for subject in revocation_subjects(self.topic.namespace, user=order.user):
                conns += self._directory.find(subject)
        self._close(conns, order.code, order.reason)

    def _revoke(self, payload: bytes) -> None:
        order = REVOKE.validate_json(payload)
        for subject in order.subjects:
            self._revoked[subject] = self._now()
            self._revoked.move_to_end(subject)
        self._forget_old()
        conns = [conn for subject in order.subjects for conn in self._directory.find(subject)]
        self._close(conns, CloseCode.REVOKED, order.reason)

    def _check(self, _payload: bytes) -> None:
        """Check all connections for revocations: their orders may have been missed."""
        self._checks_again = True
        if self._checking is None or self._checking.done():
            self._checking = self._tasks.spawn(self._check_all(), name="checking for revocations")

    async def _check_all(self) -> None:
        while self._checks_again:
            self._checks_again = False
            subjects = self._directory.subjects()
            for start in range(0, len(subjects), SUBJECTS_A_TURN):
                if not await self._close_revoked(subjects[start : start + SUBJECTS_A_TURN]):
                    self._checks_again = True
                    await asyncio.sleep(CHECK_AGAIN)
                    break

    async def _close_revoked(self, subjects: Sequence[str]) -> bool:
        """Close the connections of those that are revoked; whether the backend could be asked."""
        try:
            if not await self._sessions.is_revoked(subjects):
                return True
        except BackendError as error:
            logger.debug("Checking for revocations is tried again: %s", error)
            return False
        if len(subjects) == 1:
            self._close(self._directory.find(subjects[0]), CloseCode.REVOKED, "revoked")
            return True
        half = len(subjects) // 2
        return await self._close_revoked(subjects[:half]) and await self._close_revoked(subjects[half:])

    def displaced(self, topic: Topic, ids: Sequence[str]) -> None:
        """Close connections that have lost their place in a room: their clients come back, and join it anew."""
        known = self._directory.connections
        conns = [known[id] for id in ids if id in known]
        logger.warning("%d connections have lost their place in %s %r", len(conns), topic.kind, topic.name)
        self._close(conns, CloseCode.SERVICE_RESTART, "place_lost")

    def _close(self, conns: Sequence[Connection], code: int, reason: str) -> None:
        for conn in conns[:CONNECTIONS_A_TURN]:
            conn.close(code, reason)
        if len(conns) > CONNECTIONS_A_TURN:
            self._tasks.spawn(self._close_in_turns(conns[CONNECTIONS_A_TURN:], code, reason), name="closing by order")

    async def _close_in_turns(self, conns: Sequence[Connection], code: int, reason: str) -> None:
        for start in range(0, len(conns), CONNECTIONS_A_TURN):
            await asyncio.sleep(0)
            for conn in conns[start : start + CONNECTIONS_A_TURN]:
                conn.close(code, reason)
