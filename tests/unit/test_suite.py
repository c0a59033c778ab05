"""What the tests themselves rely on: ports, and what a run says before and after."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from subprocess import PIPE

import pytest

from tests.account import duration, skipped
from tests.ports import free_port
from tests.support import ROOT

ASK = """
import sys
from tests.ports import free_port
print(*(free_port() for _ in range(50)), flush=True)
sys.stdin.read()
"""


def test_no_two_processes_are_given_the_same_port_and_the_system_gives_none_of_them_away() -> None:
    given = [{free_port() for _ in range(50)}]
    with ExitStack() as stack:
        for _ in range(2):  # which are there at the same time
            asked = subprocess.Popen([sys.executable, "-c", ASK], cwd=ROOT, stdin=PIPE, stdout=PIPE)
            stack.callback(asked.communicate, timeout=30)
            assert asked.stdout is not None
            given.append(set(map(int, asked.stdout.readline().split())))
    assert [len(ports) for ports in given] == [50, 50, 50]
    assert len(set.union(*given)) == 150
    assert max(set.union(*given)) < 32_768


def test_one_line_names_what_was_skipped_and_how_to_get_it_the_most_frequent_first() -> None:
    reasons = Counter(
        {
            "Helm 3: make deploy-tools; pip failed": 3,
            "Helm 3: make deploy-tools; pip failed otherwise": 2,
            "chromium: scripts/tools": 11,
            "open files are limited": 1,
        }
    )
    assert skipped(reasons) == (
        "17 skipped: chromium (11): scripts/tools; Helm 3 (5): make deploy-tools; open files are limited (1)"
    )


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "10 seconds"), (34, "30 seconds"), (90, "90 seconds"), (170, "3 minutes")]
)
def test_durations_are_round(seconds: float, said: str) -> None:
    assert duration(seconds) == said
