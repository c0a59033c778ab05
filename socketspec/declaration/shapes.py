"""What hooks, guards, middleware and auth backends look like: what they are passed, and how they may annotate it."""

from __future__ import annotations

from dataclasses import dataclass

from socketspec.declaration.compiler import Stage

__all__ = ("Shape",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a hook, guard, middleware or auth backend is called."""

    what: str
    """For messages: "a room guard"."""
    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Those of `keywords` that it need not take."""
    stage: Stage = Stage.EVENT

    @property
    def names(self) -> tuple[str, ...]:
        """What is passed, in order."""
        return (*self.positional, *self.keywords)

    def shown(self, func: object) -> str:
        """The signature to write."""
        named = [name for name in self.keywords if name not in self.optional]
        expected = ", ".join([*self.positional, *(["*", *named] if named else [])])
        return f"{self.what} looks like this: async def {getattr(func, '__name__', 'hook')}({expected})"
