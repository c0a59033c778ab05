"""What every `Presence` promises."""

from __future__ import annotations

import asyncio

from socketspec.backend.protocols import Backend
from socketspec.protocol.publications import Member, Topic

ROOM = Topic("/", "room", "lobby")


def member(name: str, joined_at: float = 1.0) -> Member:
    return Member(name, f"user-{name}", joined_at)


async def test_a_room_nobody_entered_is_empty(backend: Backend) -> None:
    assert list(await backend.presence.members(ROOM)) == []
    assert await backend.presence.count(ROOM) == 0


async def test_members_come_in_the_order_they_joined(backend: Backend) -> None:
    for index, name in enumerate("cab"):
        assert await backend.presence.enter(ROOM, member(name, float(index)))
    assert list(await backend.presence.members(ROOM)) == [member("c", 0.0), member("a", 1.0), member("b", 2.0)]
    assert await backend.presence.count(ROOM) == 3


async def test_entering_twice_counts_once_even_where_the_room_is_full(backend: Backend) -> None:
    assert await backend.presence.enter(ROOM, member("a"), limit=1)
    assert await backend.presence.enter(ROOM, member("a"), limit=1)
    assert await backend.presence.count(ROOM) == 1


async def test_a_full_room_lets_nobody_in_until_somebody_leaves(backend: Backend) -> None:
    assert await backend.presence.enter(ROOM, member("a"), limit=1)
    assert not await backend.presence.enter(ROOM, member("b"), limit=1)
    assert [item.connection_id for item in await backend.presence.members(ROOM)] == ["a"]
    await backend.presence.leave(ROOM, "a")
    assert await backend.presence.enter(ROOM, member("b"), limit=1)


async def test_a_limit_holds_under_concurrency(backend: Backend) -> None:
    entered = await asyncio.gather(*(backend.presence.enter(ROOM, member(str(n)), limit=7) for n in range(40)))
    assert sum(entered) == 7
    assert await backend.presence.count(ROOM) == 7


async def test_leaving_is_no_error_where_nobody_is(backend: Backend) -> None:
    await backend.presence.leave(ROOM, "nobody")
    await backend.presence.enter(ROOM, member("a"))
    await backend.presence.leave(ROOM, "nobody")
    assert await backend.presence.count(ROOM) == 1


async def test_rooms_of_several_namespaces_are_apart(backend: Backend) -> None:
    await backend.presence.enter(ROOM, member("a"))
    assert await backend.presence.count(Topic("/other", "room", "lobby")) == 0
    await backend.presence.leave(Topic("/other", "room", "lobby"), "a")
    assert await backend.presence.count(ROOM) == 1


async def test_an_anonymous_member_has_no_user(backend: Backend) -> None:
    await backend.presence.enter(ROOM, Member("a", None, 1.0))
    assert [item.user_id for item in await backend.presence.members(ROOM)] == [None]
