"""Pauses between tries."""

from __future__ import annotations

from socketspec.cluster.servers.backoff import Backoff


def test_pauses_grow_from_50_ms_to_about_a_second() -> None:
    backoff = Backoff()
    pauses = [backoff.next() for _ in range(10)]
    for pause, least in zip(pauses, [0.05, 0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1, 1], strict=True):
        assert least <= pause <= least * 1.25
    backoff.reset()
    assert backoff.next() <= 0.0625


def test_the_first_pauses_stay_short_where_others_wait() -> None:
    backoff = Backoff(5)
    pauses = [backoff.next() for _ in range(9)]
    for pause, least in zip(pauses, [0.05, 0.1, 0.2, 0.3, 0.3, 0.6, 1, 1, 1], strict=True):
        assert least <= pause <= least * 1.25
