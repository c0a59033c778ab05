"""Asks the tests about a change: those that run the changed lines, in a child process that stops at the first failure.

All modules are imported and all tests collected once. A child is a copy of that process: it puts the changed code into
the functions concerned and runs tests, so no file is written, and a change costs little more than its tests.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import select
import signal
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import BinaryIO, NamedTuple

import coverage
import pytest

from tests.mutation.changes import Change

__all__ = ("Judge", "Measured", "Verdict")

IDLE = 1.5
"""Seconds that a test may wait beyond three times what it took without a change: what it waits for does not come."""
BUSY = 15.0
"""Seconds that a test may run beyond ten times what it took: it will not end."""

MEMORY = 2 * 1024**3
"""Bytes of address space that a child may have: a loop without an end must not take the machine's."""


class Verdict(NamedTuple):
    """What the tests said about a change."""

    noticed: bool
    by: str
    """The test that failed; or why there is none."""


class Measured(NamedTuple):
    """What the tests do without a change."""

    lines: Mapping[str, Mapping[int, Sequence[int]]]
    """For each file and line, the tests that run it."""
    seconds: Mapping[int, float]
    failed: Sequence[int]


class _Watch:
    """A plugin that tells whether a test failed."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed


class Judge:
    """Runs the tests of a collected session in child processes."""

    def __init__(self, session: pytest.Session, files: Iterable[Path]) -> None:
        self._session = session
        self._items = session.items
        self._files = {str(file.resolve()) for file in files}
        self._functions = _functions_of(self._files)
        self._kills: Counter[int] = Counter()
        self._watch = _Watch()
        session.config.pluginmanager.register(self._watch)
        self.measured = self._measure()

    def about(self, file: Path, change: Change) -> Verdict:
        """Whether a test fails with `change`."""
        near, far = self._running(file, change.lines), self._running(file, change.scope)
        if not far:
            return Verdict(False, "no test comes here")
        # Where an exception is thrown into a coroutine, Python may not tell what runs then: ask the others as well.
        order = sorted(far, key=lambda test: (test not in near, -self._kills[test], self.measured.seconds[test]))
        outcome, culprit = _asked(lambda answer: self._try(file, change, order, answer), self.measured.seconds)
        if culprit is None:
            return Verdict(False, outcome or f"{len(order)} tests pass")
        if outcome == "fails":  # quick to ask first about the next change
            self._kills[culprit] += 1
        return Verdict(True, f"{outcome}: {self._items[culprit].nodeid}")

    def _running(self, file: Path, lines: range) -> set[int]:
        found = self.measured.lines.get(str(file.resolve()), {})
        return {test for line in lines for test in found.get(line, ())}

    def _try(self, file: Path, change: Change, order: Sequence[int], answer: BinaryIO) -> None:
        try:
            self._apply(file, change)
        except ValueError:  # it uses other variables of an outer function
            pickle.dump("cannot be applied", answer)
            return
        for test in order:
            pickle.dump(test, answer)
            answer.flush()
            if not self._passes(test):
                pickle.dump("fails", answer)
                return
        pickle.dump(None, answer)

    def _passes(self, test: int) -> bool:
        self._watch.failed = False
        item = self._items[test]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return not self._watch.failed

    def _apply(self, file: Path, change: Change) -> None:
        for filename, functions in self._functions.items():
            if str(Path(filename).resolve()) != str(file.resolve()):
                continue
            for code in _codes(compile(change.source, filename, "exec")):
                for function in functions.get((code.co_qualname, code.co_firstlineno), ()):
                    if function.__code__ != code:
                        function.__code__ = code

    def _measure(self) -> Measured:
        """Run every test once, and note which lines each runs."""
        child, answer = _forked(self._measure_in_child)
        with answer:
            measured: Measured = pickle.loads(answer.read())  # noqa: S301 - from our own child
        os.waitpid(child, 0)
        return measured

    def _measure_in_child(self, answer: BinaryIO) -> None:
        tracer = coverage.Coverage(data_file=None, include=sorted(self._files), config_file=False)
        seconds: dict[int, float] = {}
        failed: list[int] = []
        tracer.start()
        for test in range(len(self._items)):
            tracer.switch_context(str(test))
            began = time.perf_counter()
            if not self._passes(test):
                failed.append(test)
            seconds[test] = time.perf_counter() - began
        tracer.stop()
        data = tracer.get_data()
        lines: dict[str, dict[int, list[int]]] = {}
        for file in data.measured_files():
            found: dict[int, list[int]] = defaultdict(list)
            for line, contexts in data.contexts_by_lineno(file).items():
                found[line] = [int(name) for name in contexts if name and int(name) not in failed]
            lines[str(Path(file).resolve())] = dict(found)
        pickle.dump(Measured(lines, seconds, failed), answer)


def _functions_of(files: set[str]) -> dict[str, dict[tuple[str, int], list[FunctionType]]]:
    """Every function that lives in one of `files`, by the file's name as its code has it."""
    found: dict[str, dict[tuple[str, int], list[FunctionType]]] = {}
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and os.path.realpath(thing.__code__.co_filename) in files:
            code = thing.__code__
            of_file = found.setdefault(code.co_filename, {})
            of_file.setdefault((code.co_qualname, code.co_firstlineno), []).append(thing)
    return found


def _codes(code: CodeType) -> Iterable[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _forked(work: Callable[[BinaryIO], None]) -> tuple[int, BinaryIO]:
    """Run `work` in a copy of this process, with a pipe for its answer; the copy's id, and the end to read from."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()  # so that what a test has started ends with it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.close(reading)
        errors, silence = os.dup(2), os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        try:
            with os.fdopen(writing, "wb") as answer:
                work(answer)
        except BaseException:
            os.write(errors, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    return child, os.fdopen(reading, "rb", buffering=0)


def _asked(work: Callable[[BinaryIO], None], seconds: Mapping[int, float]) -> tuple[str, int | None]:
    """What a child that tries a change says: what a test does, and which; no test where all of them pass."""
    child, answer = _forked(work)
    test: int | None = None
    try:
        while True:
            if not _has_said(child, answer, 0.0 if test is None else seconds[test]):
                return "hangs", test
            try:
                said = pickle.load(answer)  # noqa: S301 - from our own child
            except (EOFError, pickle.UnpicklingError):
                return "ends the process", test
            if said is None:
                return "", None
            if isinstance(said, str):
                return (said, None) if test is None else (said, test)
            test = said
    finally:
        answer.close()
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _has_said(child: int, answer: BinaryIO, usual: float) -> bool:
    """Wait for the child to say something; False where it waits in vain, or runs and runs."""
    began = time.monotonic()
    while not select.select([answer], [], [], 0.1)[0]:
        passed = time.monotonic() - began
        if passed > BUSY + 10 * usual or (passed > IDLE + 3 * usual and _is_asleep(child)):
            return False
    return True


def _is_asleep(process: int) -> bool:
    """Whether it waits for something, and not for its turn on a busy machine."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "S"
    except OSError:
        return False
