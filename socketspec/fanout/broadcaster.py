"""From a payload to a publication on its way: checks, encodes, shows, counts, traces and publishes it."""

from __future__ import annotations

import asyncio
from typing import Final

from socketspec.backend.protocols import Broker
from socketspec.declaration.sending import Contracts
from socketspec.fanout.hub import Hub
from socketspec.protocol.names import check_outbound
from socketspec.protocol.publications import History, Publication, Receipt, Topic
from socketspec.telemetry.counters import Counters
from socketspec.telemetry.debug_feed import DebugFeed
from socketspec.telemetry.tracing import installed

__all__ = ("Broadcaster",)

BROADCASTS_A_TURN: Final = 64
"""Broadcasts of a node before the event loop gets its turn, though nothing of them waits: nobody may be listening."""


class Broadcaster:
    """Publishes what this node's own code broadcasts."""

    def __init__(
        self, broker: Broker, hub: Hub, contracts: Contracts, counters: Counters, feed: DebugFeed | None
    ) -> None:
        self._broker = broker
        self._hub = hub
        self._contracts = contracts
        self._counters = counters
        self._feed = feed

    async def broadcast(
        self,
        topic: Topic,
        event: str,
        payload: object,
        *,
        exclude: tuple[str, ...] = (),
        history: History | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Send an event to the members of `topic` on every node, except the connections with the ids `exclude`.

        Raises `TypeError` for a payload that cannot be encoded, `ValueError` for a reserved name, `ContractError`, and
        what `Broker.publish` raises.
        """
        check_outbound(event)
        publication = Publication(event, self._contracts.broadcast(topic, event, payload), exclude)
        if self._feed is not None:
            whom = f"user {topic.name}" if topic.kind == "user" else topic.name
            self._feed.add("broadcast", None, event, publication.payload, whom)
        receipt = await self._publish(topic, publication, history, idempotency_key)
        await self._hub.breathe(topic)
        if self._counters.broadcasts % BROADCASTS_A_TURN == 0:
            await asyncio.sleep(0)
        return receipt

    async def _publish(
        self, topic: Topic, publication: Publication, history: History | None, idempotency_key: str | None
    ) -> Receipt:
        self._counters.broadcasts += 1
        publish = self._broker.publish
        tracing = installed()
        if tracing is None:
            return await publish(topic, publication, history=history, idempotency_key=idempotency_key)
        with tracing.publishing(topic, publication.event) as trace:
            traced = publication._replace(trace=trace)
            return await publish(topic, traced, history=history, idempotency_key=idempotency_key)
