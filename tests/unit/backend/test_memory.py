"""What is particular to the memory backend: its bounds. What it shares with others is in the contract suite."""

from __future__ import annotations

import pytest

from socketspec.backend import memory
from socketspec.backend.memory import MemoryBackend, from_url
from socketspec.protocol.publications import History, Publication, Topic


async def test_a_publication_is_delivered_within_the_call() -> None:
    backend = MemoryBackend()
    heard: list[str] = []
    await backend.start("/", lambda _, items: heard.extend(item.event for item in items), lambda *_: None)
    topic = Topic("/", "room", "a")
    await backend.broker.subscribe(topic)
    await backend.broker.publish(topic, Publication(event="x", payload=b"{}"))
    assert heard == ["x"]


async def test_no_more_idempotency_keys_are_remembered_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_KEYS", 2)
    backend = MemoryBackend()
    topic, keep = Topic("/", "room", "a"), History(size=2)
    item = Publication(event="x", payload=b"{}")
    for key in ("a", "b", "c", "a"):
        receipt = await backend.broker.publish(topic, item, history=keep, idempotency_key=key)
    assert receipt.position is not None
    assert receipt.position.offset == 4, "the first key had been forgotten"


async def test_every_url_makes_a_backend_of_its_own_that_is_not_shared() -> None:
    one, two = from_url("memory"), from_url("memory")
    assert one is not two
    assert not one.shared
    assert (await one.health()).ready
