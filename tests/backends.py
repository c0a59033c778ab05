"""Backends for tests of the core: the memory backend, with what a cluster does to it."""

from __future__ import annotations

from socketspec.backend.memory import MemoryBackend, MemoryLimits

__all__ = ("SharedBackend",)


class SharedBackend(MemoryBackend):
    """The memory backend, as if other nodes shared it: limits are asked of it."""

    shared = True

    def __init__(self, limits: MemoryLimits | None = None) -> None:
        super().__init__()
        if limits is not None:
            self.limits = limits
