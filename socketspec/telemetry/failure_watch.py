"""What the app's own code raised though nothing of the kind is expected of it. The log has it, and who watches."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ("FailureWatch",)


class FailureWatch:
    """The unexpected exceptions of one engine's handlers, hooks and dependencies."""

    __slots__ = ("watch",)

    def __init__(self) -> None:
        self.watch: Callable[[Exception], None] | None = None
        """Called with each of them, in the event loop; None: nobody watches. A test client does."""

    def note(self, error: Exception) -> None:
        """Tell who watches."""
        if self.watch is not None:
            self.watch(error)
