"""The guard against slowness: what it compares with, when it fails, and that what it counts runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import guard
from tests.benchmarks.callgrind import ROOT, Counted, Unable, marks, median, surroundings
from tests.benchmarks.guard_numbers import FIGURES, FOREIGN, PLATFORM, SIMILAR, Kept, environment, load, save, written
from tests.benchmarks.guarded.cases import CASES

HERE = environment()
KEPT = {"event": 100_000, "fan-out": 2_000_000, "accept": 1_000_000, "publish": 300_000}


class Machine:
    """Counts what it is told to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.numbers = folder / "guard.json"
        self.percent: dict[str, float] = {}
        """How much more than kept is counted, by figure."""
        self.problem: Unable | None = None
        monkeypatch.setattr(guard, "count", self._count)

    def _count(self, figure: str) -> Counted:
        if self.problem is not None:
            raise self.problem
        return Counted(round(KEPT[figure] * (1 + self.percent.get(figure, 0) / 100)), 0.1)

    def keep(self, elsewhere: dict[str, str] | None = None, start: dict[str, int] = KEPT) -> None:
        """Have numbers that hold here but for `elsewhere`."""
        save(self.numbers, [Kept({**HERE, **(elsewhere or {})}, start, KEPT)])

    def run(self, *arguments: str) -> int:
        return guard.main([*arguments, "--numbers", str(self.numbers)])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_the_same_numbers_pass_without_a_word_of_doubt(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.keep()
    machine.percent = {"event": 2.9, "accept": -2.9}
    assert machine.run() == 0
    said = capsys.readouterr().out
    assert "102,900" in said
    assert "No kept numbers" not in said
    assert "more than" not in said


def test_a_figure_that_became_slower_fails_and_is_named(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.keep()
    machine.percent = {"publish": 3.2}
    assert machine.run() == 1
    said = capsys.readouterr().out
    assert (
        "publish: 309,600 instructions, 3.2 % more than the 300,000 of the last change; 3 % more are allowed." in said
    )
    assert "ARGS=publish" in said
    assert "event:" not in said


def test_many_small_steps_fail_together(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.keep(start={**KEPT, "event": 95_000})
    assert machine.run("event") == 1
    said = capsys.readouterr().out
    assert "event: 100,000 instructions, 5.3 % more than the 95,000 at the start; 5 % more are allowed in all." in said


def test_what_is_allowed_can_be_said(machine: Machine) -> None:
    machine.keep()
    machine.percent = {"event": 4}
    assert machine.run("--tolerance", "4.5") == 0
    assert machine.run("--tolerance", "4.5", "--in-all", "3.5") == 1


def test_what_became_faster_is_to_be_written_down(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.keep()
    machine.percent = {"event": -20}
    assert machine.run() == 0
    assert "event: 20.0 % less than the last change." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("elsewhere", "allowed"),
    [
        ({"redis": "0.1", "hiredis": "0.1"}, SIMILAR),
        ({"python": "CPython 3.9.0"}, FOREIGN),
        ({"machine": "riscv64"}, FOREIGN),
        ({"build": "another compiler"}, FOREIGN),
    ],
)
def test_an_unknown_key_is_said_and_compared_roughly(
    elsewhere: dict[str, str], allowed: float, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.keep(elsewhere)
    machine.percent = {"publish": allowed - 0.1}
    assert machine.run() == 0
    said = capsys.readouterr().out
    assert "No kept numbers for this key; ran and printed; write them with `make bench-guard ARGS=--write`." in said
    assert f"which may differ by {allowed:g} %." in said
    assert next(iter(elsewhere.values())) in said
    machine.percent = {"publish": allowed + 0.1}
    assert machine.run() == 1


def test_a_package_matters_only_to_what_it_is_part_of(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.keep({"redis": "0.1"})
    machine.percent = {"event": 4}
    assert machine.run("event") == 1
    assert "No kept numbers" not in capsys.readouterr().out


def test_the_nearest_environment_is_compared_with(machine: Machine) -> None:
    far = {figure: number // 2 for figure, number in KEPT.items()}
    near = Kept({**HERE, "pydantic": "0.1"}, KEPT, KEPT)
    others = [Kept({**HERE, "python": "CPython 3.9.0"}, far, far), near, Kept({**HERE, "machine": "riscv64"}, far, far)]
    save(machine.numbers, others)
    assert machine.run() == 0


def test_without_any_numbers_it_does_not_pass(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.run("event") == 1
    said = capsys.readouterr().out
    assert "No kept numbers for this key" in said
    assert "event: nothing is kept to compare it with." in said


def test_where_nothing_can_be_counted_it_does_not_pass(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.keep()
    machine.problem = Unable("valgrind is missing.")
    assert machine.run() == 2
    assert "Nothing was compared. valgrind is missing." in capsys.readouterr().err


def test_written_numbers_are_what_comes_next_is_compared_with(machine: Machine) -> None:
    machine.percent = {"event": 4}
    machine.keep()
    assert machine.run("--write") == 0
    (kept,) = load(machine.numbers)
    assert (kept.last["event"], kept.start["event"]) == (104_000, 100_000)
    machine.percent = {"event": 6}
    assert machine.run() == 1  # not for this step, but for both
    assert machine.run("--write-start") == 0
    assert machine.run() == 0


def test_only_all_figures_are_written(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        machine.run("event", "--write")
    assert "leave out the names" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        machine.run("evnet")
    assert "there is no figure evnet" in capsys.readouterr().err


def test_what_was_used_up_stays_used_up_with_another_package() -> None:
    here = {**HERE, "pydantic": "1.0"}
    before = Kept({**here, "pydantic": "0.9"}, {**KEPT, "event": 96_000}, KEPT)
    (kept,) = written({**KEPT, "event": 50_000}, here, [before])
    assert kept.start["event"] == 48_000
    assert kept.environment == here


def test_another_python_starts_with_its_own_numbers() -> None:
    before = Kept({**HERE, "python": "CPython 3.9.0"}, KEPT, KEPT)
    figures = {figure: number + 1 for figure, number in KEPT.items()}
    assert written(figures, HERE, [before]) == [before, Kept(HERE, figures, figures)]


def test_the_kept_numbers_are_complete() -> None:
    kept = load(guard.NUMBERS)
    assert kept
    for entry in kept:
        assert entry.start.keys() == entry.last.keys() == FIGURES.keys() == CASES.keys()
        assert entry.environment.keys() == HERE.keys()
    assert len({tuple(entry.environment[name] for name in PLATFORM) for entry in kept}) == len(kept)


def test_only_what_is_between_the_marks_counts(tmp_path: Path) -> None:
    parts = [("prepared", 5_000_000), ("counted", 1_000), ("counted", 1_030), ("counted", 1_010)]
    for number, (name, total) in enumerate(parts):
        text = f"desc: Trigger: Client Request: {name}\n\nevents: Ir\nfn=(1) x\n7 {total}\n\ntotals: {total}\n"
        (tmp_path / f"callgrind.out.{number}").write_text(text)
    (tmp_path / "callgrind.out").write_text("desc: Trigger: Program termination\ntotals: 77\n")
    found = median(tmp_path, 10)
    assert found.instructions == 101
    assert found.spread == pytest.approx(30 / 1010 * 100)
    with pytest.raises(Unable, match="written nothing"):
        median(tmp_path / "nowhere", 10)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind: scripts/tools")
@pytest.mark.parametrize("case", CASES)
def test_what_is_counted_runs(case: str) -> None:
    with surroundings(case) as variables:
        command = [sys.executable, "-m", "tests.benchmarks.guarded.cases", case, str(marks())]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
