"""What tests put in the place of dependencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

__all__ = ("Overrides", "OverridesProvider")

Call = Callable[..., Any]


class OverridesProvider(Protocol):
    """An application with a `dependency_overrides` of its own, as FastAPI's have."""

    dependency_overrides: Any


class Overrides:
    """An app's `dependency_overrides`, and those of the applications it is mounted on. Its own come first."""

    def __init__(self) -> None:
        self.own: dict[Call, Call] = {}
        self._providers: list[OverridesProvider] = []
        self._seen: list[dict[Call, Call]] = [{}]
        self._version = 0

    def add(self, provider: OverridesProvider) -> None:
        """Respect the overrides of `provider` as well: an application that the app is mounted on."""
        if not any(known is provider for known in self._providers):
            self._providers.append(provider)

    @property
    def version(self) -> int:
        """A number that changes with what is replaced."""
        # The hot path of an event: two comparisons of empty dicts, where there are no overrides.
        if self.own != self._seen[0] or (self._providers and self._foreign() != self._seen[1:]):
            self._seen = [dict(self.own), *map(dict, self._foreign())]
            self._version += 1
        return self._version

    @property
    def current(self) -> Mapping[Call, Call]:
        """What is called in whose place."""
        found: dict[Call, Call] = {}
        for overrides in (*reversed(self._foreign()), self.own):
            found.update(overrides)
        return found

    def _foreign(self) -> list[dict[Call, Call]]:
        return [provider.dependency_overrides or {} for provider in self._providers]
