"""Orders that a node has not heard, where the history they are kept in is another one than before."""

from __future__ import annotations

from collections.abc import Sequence

from socketspec.backend.protocols import HistoryStore
from socketspec.cluster.missed_orders import MissedOrders
from socketspec.concurrency.tasks import Tasks
from socketspec.protocol.orders import CHECK, control_topic
from socketspec.protocol.publications import Position, Publication, Topic
from tests.watching import until


def order(offset: int, line: str = "") -> Publication:
    """The order at this offset; `line`: of the history that a failover put in the place of the first one."""
    return Publication(f"order{offset}{line}", b"{}", position=Position(offset, "epoch", f"tag{offset}{line}"))


class Kept(HistoryStore):
    """What Redis keeps; positions are verified as it does."""

    def __init__(self, *orders: Publication) -> None:
        self.orders = list(orders)

    async def read(
        self, topic: Topic, *, since: Position | None = None, limit: int | None = None
    ) -> Sequence[Publication]:
        if since is None:
            return self.orders if limit is None else self.orders[-limit:]
        positions = [each.position for each in self.orders]
        if since not in positions:
            raise LookupError("another line")
        return self.orders[positions.index(since) + 1 :]


async def carried_out(kept: Kept, heard: Sequence[Publication], later: Sequence[Publication]) -> list[str]:
    """What a node carries out that hears `heard`, then loses its link while the history becomes `later`."""
    done: list[Publication] = []
    tasks = Tasks()
    missed = MissedOrders(control_topic("/"), kept, tasks, done.extend)
    await missed.begin()
    done += missed.hear(heard)
    kept.orders = list(later)
    missed.look()
    await until(lambda: CHECK in done)
    missed.look()
    await until(lambda: done.count(CHECK) == 2)
    await tasks.close(0)
    return [each.event for each in done if each != CHECK]


async def test_orders_in_the_place_of_those_that_a_failover_lost_are_carried_out() -> None:
    kept = Kept(order(1), order(2))
    later = [order(1), order(2), order(3), order(4, "b"), order(5, "b")]
    heard = [order(3), order(4), order(5)]
    assert await carried_out(kept, heard, later) == ["order3", "order4", "order5", "order4b", "order5b"]


async def test_a_new_order_at_the_offset_of_the_only_lost_one_is_carried_out() -> None:
    assert await carried_out(Kept(order(1)), [order(2)], [order(1), order(2, "b")]) == ["order2", "order2b"]


async def test_orders_from_before_the_node_began_are_not_its_own_in_no_line() -> None:
    kept = Kept(order(1), order(2), order(3))
    assert await carried_out(kept, [], [order(1), order(2), order(3, "b")]) == ["order3b"]


async def test_what_was_missed_in_an_unbroken_line_is_carried_out_once() -> None:
    kept = Kept(order(1))
    assert await carried_out(kept, [order(2)], [order(1), order(2), order(3)]) == ["order2", "order3"]
