"""`FirstSeen`: when something was first seen, and how long ago, by one clock."""

from __future__ import annotations

__all__ = ("FirstSeen",)


class FirstSeen(float):
    """Seconds since the epoch, by the clock of whoever remembers it: no other clock can tell how long ago that is."""

    age: float
    """Seconds since then, when it was asked for, by the same clock."""

    def __new__(cls, seconds: float, age: float) -> FirstSeen:
        """`seconds` since the epoch, `age` seconds ago; an age below 0 counts as 0."""
        made = super().__new__(cls, seconds)
        made.age = max(age, 0.0)
        return made
