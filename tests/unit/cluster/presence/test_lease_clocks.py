"""Until when a command may be carried out, where the servers of a cluster have a clock each."""

from __future__ import annotations

import pytest

from socketspec.cluster.presence.lease import Lease

LENGTH, PATIENCE = 8.0, 5.0
LOCAL = 100.0
"""What the node's own clock shows."""
SERVER = 50_000.0
"""What the clock of the server shows that has the lease, at the same time."""


class Clock:
    def __init__(self) -> None:
        self.now = LOCAL

    def __call__(self) -> float:
        return self.now


def renewed(clock: Clock, lease: Lease, server: float, name: bytes = b"one") -> None:
    lease.renewed(clock.now, name, round(server * 1000), is_unbroken=True)


def held() -> tuple[Clock, Lease]:
    clock = Clock()
    lease = Lease(LENGTH, PATIENCE, clock)
    renewed(clock, lease, SERVER)
    return clock, lease


def test_a_command_may_be_carried_out_while_somebody_waits_for_it_and_the_lease_stands() -> None:
    clock, lease = held()
    assert lease.until() == (SERVER + PATIENCE) * 1000
    clock.now += LENGTH - 1
    assert lease.until() == (SERVER + LENGTH) * 1000


@pytest.mark.parametrize("ahead", [PATIENCE + 1, 60.0, 3600.0])
def test_a_server_whose_clock_is_ahead_carries_the_next_command_out_in_time(ahead: float) -> None:
    clock, lease = held()
    shows = SERVER + ahead
    assert shows * 1000 > lease.until()
    assert lease.came_late(-round(shows * 1000))
    assert lease.until() == (shows + PATIENCE) * 1000
    clock.now += 1
    renewed(clock, lease, SERVER + 1)  # the clock of the server with the lease says nothing of the other one's
    assert lease.until() == (shows + 1 + PATIENCE) * 1000


def test_of_several_servers_the_clock_that_is_most_ahead_counts() -> None:
    _, lease = held()
    for ahead in (30.0, 60.0, 10.0):
        assert lease.came_late(-round((SERVER + ahead) * 1000))
    assert lease.until() == (SERVER + 60 + PATIENCE) * 1000


@pytest.mark.parametrize("reply", [0, 1, 12])
def test_what_was_carried_out_says_nothing_of_a_clock(reply: int) -> None:
    _, lease = held()
    assert not lease.came_late(reply)
    assert lease.until() == (SERVER + PATIENCE) * 1000


def test_where_the_clock_of_the_lease_jumps_what_was_known_of_others_is_void() -> None:
    clock, lease = held()
    assert lease.came_late(-round((SERVER + 3600) * 1000))
    renewed(clock, lease, SERVER + 3600, b"two")  # a replica took over whose clock is that of the other server
    assert lease.until() == (SERVER + 3600 + PATIENCE) * 1000
