"""The backends that the contract suite runs against. Another one is one more entry of `BACKENDS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from socketspec.backend import Backend
from socketspec.memory import MemoryBackend


@dataclass
class FakeClock:
    """A clock in seconds that moves when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Subject:
    """A backend under test. `pass_time` lets seconds go by for it: on a fake clock where it takes one."""

    backend: Backend
    pass_time: Callable[[float], None]
    clock: FakeClock = field(default_factory=FakeClock)


def _memory() -> Subject:
    clock = FakeClock()

    def pass_time(seconds: float) -> None:
        clock.now += seconds

    return Subject(MemoryBackend(clock=clock), pass_time, clock)


BACKENDS: dict[str, Callable[[], Subject]] = {"memory": _memory}


@pytest.fixture(params=BACKENDS)
def subject(request: pytest.FixtureRequest) -> Subject:
    """The backend under test with its clock."""
    return BACKENDS[request.param]()


@pytest.fixture
def backend(subject: Subject) -> Backend:
    """The backend under test."""
    return subject.backend
