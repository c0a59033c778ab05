"""What every `Sessions` promises."""

from __future__ import annotations

import time

from socketspec.backend.first_seen import FirstSeen
from socketspec.backend.protocols import Backend
from tests.contract.conftest import Subject


async def test_a_session_began_when_it_was_first_seen(subject: Subject) -> None:
    sessions = subject.backend.sessions
    before = time.time()
    began = await sessions.begin("s", ttl=60)
    assert before - 5 <= began <= time.time() + 5
    await subject.outlive(30)
    assert await sessions.begin("s", ttl=60) == began


async def test_how_long_ago_a_session_began_is_told_by_one_clock(subject: Subject) -> None:
    sessions = subject.backend.sessions
    began = await sessions.begin("s", ttl=60)
    assert isinstance(began, FirstSeen)
    assert 0 <= began.age < 0.1
    await subject.wait(0.3)
    for again in (await sessions.begin("s", ttl=60), await sessions.began("s")):
        assert isinstance(again, FirstSeen)
        assert again == began
        assert 0.29 <= again.age < 5


async def test_a_session_is_remembered_for_its_ttl_from_the_beginning(subject: Subject) -> None:
    sessions = subject.backend.sessions
    await sessions.begin("s", ttl=60)
    await subject.outlive(61)
    again = await sessions.begin("s", ttl=60)
    await subject.outlive(59)
    assert await sessions.begin("s", ttl=60) == again


async def test_looking_a_session_up_finds_what_began_and_creates_nothing(subject: Subject) -> None:
    sessions = subject.backend.sessions
    assert await sessions.began("s") is None
    await subject.outlive(1)
    began = await sessions.begin("s", ttl=60)
    assert await sessions.began("s") == began
    await subject.outlive(59)
    assert await sessions.began("s") == began, "looking it up makes it last no shorter"
    await subject.outlive(2)
    assert await sessions.began("s") is None, "nor longer"
    for name in ("t", "s*", "", "x" * 10_000, "ünïcödé"):
        assert await sessions.began(name) is None


async def test_sessions_are_apart(backend: Backend) -> None:
    await backend.sessions.begin("one", ttl=60)
    await backend.sessions.revoke("one", ttl=60)
    assert await backend.sessions.is_revoked(["one"])
    assert not await backend.sessions.is_revoked(["two", "on", "one*"])


async def test_any_revoked_subject_is_enough(backend: Backend) -> None:
    await backend.sessions.revoke("user:ada", ttl=60)
    assert await backend.sessions.is_revoked(["session", "user:ada", "jti"])
    assert not await backend.sessions.is_revoked([])


async def test_a_revocation_ends_with_its_ttl(subject: Subject) -> None:
    sessions = subject.backend.sessions
    await sessions.revoke("s", ttl=60)
    await subject.outlive(59)
    assert await sessions.is_revoked(["s"])
    await subject.outlive(2)
    assert not await sessions.is_revoked(["s"])


async def test_a_shorter_revocation_does_not_shorten_a_longer_one(subject: Subject) -> None:
    sessions = subject.backend.sessions
    await sessions.revoke("s", ttl=600)
    await sessions.revoke("s", ttl=1)
    await subject.outlive(500)
    assert await sessions.is_revoked(["s"])


async def test_sessions_and_revocations_end_as_time_really_goes_by(subject: Subject) -> None:
    sessions = subject.backend.sessions
    began = await sessions.begin("s", ttl=0.3)
    await sessions.revoke("s", ttl=0.3)
    assert await sessions.is_revoked(["s"])
    await subject.wait(0.4)
    assert not await sessions.is_revoked(["s"])
    assert await sessions.begin("s", ttl=0.3) != began
