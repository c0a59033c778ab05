"""What every `HistoryStore` promises about positions that clients make up, limits behind a position, and resizing."""

from __future__ import annotations

import pytest

from socketspec.backend.protocols import Backend
from socketspec.protocol.publications import History, Position
from tests.contract.test_history import fill, publish, read


@pytest.mark.parametrize("offset", [-1, 5, 2**53, 2**53 + 1, 2**63, 2**70])
async def test_an_offset_that_cannot_be_is_refused(backend: Backend, offset: int) -> None:
    positions = await fill(backend, 4)
    with pytest.raises(LookupError):
        await read(backend, since=positions[0]._replace(offset=offset))


@pytest.mark.parametrize(
    ("limit", "events"), [(0, []), (1, ["event2"]), (2, ["event2", "event3"]), (9, ["event2", "event3", "event4"])]
)
async def test_behind_a_position_a_limit_takes_what_followed_first(
    backend: Backend, limit: int, events: list[str]
) -> None:
    positions = await fill(backend, 4)
    assert await read(backend, since=positions[0], limit=limit) == events


async def test_a_limit_of_nothing_still_verifies_the_position(backend: Backend) -> None:
    positions = await fill(backend, 4)
    with pytest.raises(LookupError):
        await read(backend, since=positions[0]._replace(tag="other"), limit=0)


async def test_from_zero_the_tag_does_not_matter_but_the_epoch_does(backend: Backend) -> None:
    positions = await fill(backend, 2)
    assert await read(backend, since=Position(0, positions[0].epoch, "any"), limit=1) == ["event1"]
    with pytest.raises(LookupError):
        await read(backend, since=Position(0, "other"))


async def test_a_smaller_size_keeps_fewer_from_the_next_publication_on(backend: Backend) -> None:
    positions = await fill(backend, 5)
    await publish(backend, "event6", history=History(size=2, ttl=60))
    assert await read(backend) == ["event5", "event6"]
    assert await read(backend, since=positions[3]) == ["event5", "event6"]
    with pytest.raises(LookupError):
        await read(backend, since=positions[2])


async def test_a_larger_size_keeps_more_from_the_next_publication_on(backend: Backend) -> None:
    await fill(backend, 6)
    for number in range(4):
        await publish(backend, f"more{number}", history=History(size=8, ttl=60))
    kept = await read(backend)
    assert kept[-4:] == [f"more{number}" for number in range(4)]
    assert len(kept) <= 8
