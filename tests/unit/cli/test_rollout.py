"""A rolling deploy as the calculator has it, against a simulated Kubernetes Deployment."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socketspec.cli.capacity import Capacity, Demand, plan
from socketspec.cli.costs import COSTS
from socketspec.cli.rollout import drain_rate, rollout, surge_nodes

STEP = 0.5
Deal = Callable[[list["Pod"], float], None]


@dataclass(eq=False)
class Pod:
    """A pod; `ready` is when it is, or was before all began."""

    ready: float = -1e9
    connections: float = 0.0
    ended: float | None = None
    held: float = 0.0
    """Connections when its drain began."""


def by_chance(pods: list[Pod], connections: float) -> None:
    """As kube-proxy does it, and a proxy that takes one after the other."""
    for pod in pods:
        pod.connections += connections / len(pods)


def to_the_emptiest(pods: list[Pod], connections: float) -> None:
    for _ in range(20):
        min(pods, key=lambda pod: pod.connections).connections += connections / 20


@dataclass
class Deployment:
    """A rollout with ``maxUnavailable: 0``. What it counts is documented: ready for so long, and not ending."""

    nodes: int
    surge: int
    window: float
    min_ready: float
    start: Callable[[], float]
    deal: Deal
    each: float = 20_000.0
    old: list[Pod] = field(default_factory=list)
    new: list[Pod] = field(default_factory=list)
    ending: list[Pod] = field(default_factory=list)
    peak: float = 0.0
    """Reconnects a second at most, in all."""
    node_peak: float = 0.0
    """The same of one pod."""
    draining: int = 0
    """Pods that drained at once, at most."""
    took: float = 0.0

    def run(self) -> Deployment:
        self.old = [Pod(connections=self.each) for _ in range(self.nodes)]
        now = 0.0
        while self.old or any(pod.connections > 1e-6 for pod in self.ending):
            self._reconcile(now)
            self._drain(now)
            now += STEP
        return self

    def _reconcile(self, now: float) -> None:
        while len(self.old) + len(self.new) < self.nodes + self.surge and len(self.new) < self.nodes:
            self.new.append(Pod(ready=now + self.start()))
        available = len(self.old) + sum(pod.ready + self.min_ready <= now for pod in self.new)
        for _ in range(min(available - self.nodes, len(self.old))):
            pod = self.old.pop()
            pod.ended, pod.held = now, pod.connections
            self.ending.append(pod)
            self.took = now

    def _drain(self, now: float) -> None:
        leaving = 0.0
        draining = [pod for pod in self.ending if pod.connections > 1e-6]
        for pod in draining:
            amount = min(pod.connections, pod.held * STEP / self.window)
            pod.connections -= amount
            leaving += amount
        takers = [pod for pod in self.old + self.new if pod.ready <= now]
        before = [pod.connections for pod in takers]
        self.deal(takers, leaving)
        for pod, had in zip(takers, before, strict=True):
            self.node_peak = max(self.node_peak, (pod.connections - had) / STEP)
        self.peak = max(self.peak, leaving / STEP)
        self.draining = max(self.draining, len(draining))


CLUSTERS = pytest.mark.parametrize(
    ("nodes", "surge", "window", "start"),
    [(21, "25%", 60.0, 10.0), (4, 1, 300.0, 20.0), (10, "100%", 30.0, 5.0), (7, 2, 20.0, 40.0), (1, "25%", 30.0, 5.0)],
)


@CLUSTERS
def test_what_drains_at_once_and_how_long_it_takes_is_that_of_a_simulated_deployment(
    nodes: int, surge: int | str, window: float, start: float
) -> None:
    found = rollout(nodes, nodes * 20_000, surge=surge, start=start, window=window, accepting=0)
    seen = Deployment(nodes, found.nodes, window, window, lambda: start, to_the_emptiest).run()
    assert seen.draining == found.nodes
    assert seen.peak == pytest.approx(found.rate, rel=0.1)
    assert seen.took == pytest.approx(found.seconds, rel=0.1)


@CLUSTERS
def test_pods_that_start_as_fast_as_they_may_never_make_it_worse(
    nodes: int, surge: int | str, window: float, start: float
) -> None:
    chance = random.Random(4)  # noqa: S311 - a simulation
    found = rollout(nodes, nodes * 20_000, surge=surge, start=start, window=window, accepting=0)
    for _ in range(5):
        seen = Deployment(
            nodes, found.nodes, window, window, lambda: chance.uniform(0.3, 1) * start, to_the_emptiest
        ).run()
        assert seen.draining <= found.nodes
        assert seen.peak <= found.rate * 1.1
        assert seen.took <= found.seconds * 1.1


@CLUSTERS
def test_dealt_out_by_chance_reconnects_come_no_faster_than_is_said(
    nodes: int, surge: int | str, window: float, start: float
) -> None:
    found = rollout(nodes, nodes * 20_000, surge=surge, start=start, window=window, accepting=0)
    seen = Deployment(nodes, found.nodes, window, window, lambda: start, by_chance).run()
    assert seen.peak <= found.rate * found.crowding * 1.01
    assert max(pod.held for pod in seen.ending) / seen.each == pytest.approx(found.crowding, rel=0.2)
    assert seen.node_peak <= found.node_rate * found.crowding * 1.01


def test_pods_that_need_not_be_ready_for_the_window_let_nearly_all_old_ones_drain_at_once() -> None:
    """Why ``minReadySeconds`` is the window: a Deployment does not count the pods that still drain."""
    found = rollout(20, 400_000, surge="25%", start=10, window=300, accepting=0)
    seen = Deployment(20, found.nodes, 300, 5, lambda: 10, to_the_emptiest).run()
    assert seen.draining == 20
    assert seen.peak > 3.5 * found.rate


def test_in_the_window_that_is_named_no_node_accepts_more_than_it_has_time_for() -> None:
    demand = Demand(connections=400_000, rate=10)
    coming = COSTS.accept + COSTS.join
    shortest = plan(demand).rollout.window
    for factor, fits in ((1.0, True), (0.5, False)):
        found = plan(demand, Capacity(drain_window=shortest * factor))
        window = shortest * factor
        each = demand.connections / found.nodes
        seen = Deployment(found.nodes, found.rollout.nodes, window, window, lambda: 10, by_chance, each=each).run()
        assert (seen.node_peak * coming <= 1 - found.node_cpu) == fits


@given(st.integers(1, 10_000), st.one_of(st.integers(1, 10_000), st.integers(1, 100).map("{}%".format)))
def test_some_nodes_are_replaced_at_once_and_never_more_than_there_are(nodes: int, surge: int | str) -> None:
    at_once = surge_nodes(surge, nodes)
    assert 1 <= at_once <= nodes
    found = rollout(nodes, nodes * 20_000, surge=surge, start=10, window=10, accepting=0)
    assert (found.times - 1) * at_once < nodes <= found.times * at_once
    assert 1 <= found.crowding < math.e
    if isinstance(surge, str):
        percent = int(surge[:-1])
        assert (at_once - 1) * 100 < percent * nodes <= at_once * 100, "rounded up, as Kubernetes does"


def test_a_node_with_few_connections_does_not_take_the_whole_window_to_drain() -> None:
    assert drain_rate(100, 300) == 20
    assert drain_rate(30_000, 300) == 100


def test_old_nodes_that_may_outgrow_their_memory_are_warned_of_and_a_larger_surge_mends_it() -> None:
    demand = Demand(connections=5_000_000, rate=10)
    slow = plan(demand, Capacity(surge=1, headroom=1.5, drain_window=60))
    assert any("the last old node of a rolling deploy may hold 2.7 times" in each for each in slow.warnings)
    fast = plan(demand, Capacity(surge="100%", headroom=1.5, drain_window=60))
    assert not any("last old node" in each for each in fast.warnings)
