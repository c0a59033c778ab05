"""Whether this process serves whoever writes the app: then docs and debug are on where the app does not say.

``socketspec dev`` says so in its own process, before the app is imported. Nothing outside a process can, no environment
variable either, so it cannot be left on in production.
"""

from __future__ import annotations

__all__ = ("begin", "end", "unless_given")

_state = {"on": False}


def begin() -> None:
    """From now on, apps are made for their developer."""
    _state["on"] = True


def end() -> None:
    """Apps are made for everybody again."""
    _state["on"] = False


def unless_given(option: bool | None) -> bool:
    """The option; where the app does not say, whether it is made for its developer."""
    return _state["on"] if option is None else option
