"""Deliberate faults of the program, to see that the run notices them: each takes one promise out of a node.

They replace functions of the real program; a name that does not exist any more fails at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from socketspec.cluster.presence.dead_nodes import DeadNodes
from socketspec.cluster.presence.members import RedisPresence
from socketspec.membership.leave_hooks import LeaveHooks
from socketspec.membership.node_orders import NodeOrders

__all__ = ("BREAKS", "apply")


def _nothing(*_: Any, **__: Any) -> None:
    return


def _without_limit(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, topic, member, *, limit=None: original(self, topic, member)


def _twice(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any) -> Any:
        original(self, *arguments)
        return original(self, *arguments)

    return call


BREAKS: Final[dict[str, tuple[type, str, Callable[[Callable[..., Any]], Callable[..., Any]]]]] = {
    "dead-nodes-stay": (DeadNodes, "remove", lambda _: _nothing),
    "hooks-run-twice": (LeaveHooks, "take", _twice),
    "rooms-have-no-limit": (RedisPresence, "enter", _without_limit),
    "revocations-are-not-heard": (NodeOrders, "_revoke", lambda _: _nothing),
}
"""The class, its function, and what becomes of it."""


def apply(name: str) -> None:
    """Break what is called so; nothing, where the name is empty."""
    if name:
        owner, function, broken = BREAKS[name]
        setattr(owner, function, broken(getattr(owner, function)))
