"""Tests of presence do not wait for as long as a node does."""

from __future__ import annotations

import pytest

from socketspec.cluster.presence import dead_nodes, leases, members


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dead_nodes, leases, members):
        monkeypatch.setattr(module, "RETRY", 0.002)
    monkeypatch.setattr(members, "LEAVE_PATIENCE", 0.02)
    monkeypatch.setattr(members, "LAST_PATIENCE", 0.05)
