"""Which apps of this process get a namespace's publications. Every `Broker` has such a list."""

from __future__ import annotations

from collections.abc import Sequence

from socketspec.backend.protocols import Deliver

__all__ = ("Listeners",)


class Listeners:
    """The apps of one process, by namespace."""

    def __init__(self) -> None:
        self._delivers: dict[str, list[Deliver]] = {}

    def __bool__(self) -> bool:
        return bool(self._delivers)

    def attach(self, namespace: str, deliver: Deliver) -> None:
        """Hand `namespace`'s publications to `deliver` as well."""
        self._delivers.setdefault(namespace, []).append(deliver)

    def detach(self, namespace: str, deliver: Deliver) -> None:
        """Undo one `attach`; no error if there was none."""
        delivers = self._delivers.get(namespace, [])
        if deliver in delivers:
            delivers.remove(deliver)
        if not delivers:
            self._delivers.pop(namespace, None)

    def of(self, namespace: str) -> Sequence[Deliver]:
        """What to call with publications of `namespace`."""
        return self._delivers.get(namespace, ())
