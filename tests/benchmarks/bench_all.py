"""All benchmarks in one run, one table of ratios, and a JSON file with every figure.

    python tests/benchmarks/bench_all.py [fanout round_trip idle stalled flood growth leak] [--rounds 5] [--quick]

`make bench` runs this. The server is on one core, the load on another; whoever is compared takes turns, and a ratio is
the median of those of the rounds. Peers are installed in environments of their own at the first run (``.bench/``).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks import (
    bench_fanout,
    bench_flood,
    bench_growth,
    bench_idle,
    bench_leak,
    bench_round_trip,
    bench_stalled,
)
from tests.benchmarks.suite import Benchmark, run

BENCHMARKS: dict[str, Benchmark] = {
    "fanout": bench_fanout.benchmark,
    "round_trip": bench_round_trip.benchmark,
    "idle": bench_idle.benchmark,
    "stalled": bench_stalled.benchmark,
    "flood": bench_flood.benchmark,
    "growth": bench_growth.benchmark,
    "leak": bench_leak.benchmark,
}

if __name__ == "__main__":
    run(BENCHMARKS, __doc__)
