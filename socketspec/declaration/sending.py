"""Encodes what an app sends, by what it declares of it: the handler that sends it, or else anything of the app's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from socketspec.declaration.contracts import Contract, Declared, encode_as, named
from socketspec.protocol.encoding import encode_payload
from socketspec.protocol.publications import Topic

__all__ = ("Contracts", "DeclaredSends")


class DeclaredSends:
    """Everything that an app, or a publisher, declares to send, by event."""

    def __init__(self) -> None:
        self.by_event: dict[str, tuple[Declared, ...]] = {}
        """Only of events of which something is said: of which some declaration has a model."""

    def add(self, declared: Iterable[Declared] | None) -> None:
        """Take more declarations."""
        for item in declared or ():
            if item.model is not None:
                known = self.by_event.get(item.event, ())
                if not any(_say_the_same(item, other) for other in known):
                    self.by_event[item.event] = (*known, item)

    def emitted(self, event: str) -> Sequence[Declared]:
        """What is said of an event for one client: as such, or else at all."""
        known = self.by_event.get(event, ())
        return [item for item in known if item.to != "room"] or known

    def broadcast(self, topic: Topic, event: str) -> Sequence[Declared]:
        """What is said of an event for the members of `topic`: as such, or else at all."""
        known = self.by_event.get(event, ())
        room = topic.name if topic.kind == "room" else None
        return [item for item in known if item.to != "client" and item.fits_room(room)] or known


def _say_the_same(one: Declared, other: Declared) -> bool:
    models = one.model, other.model
    annotations = [None if model is None else model.annotation for model in models]
    return (one.to, one.room) == (other.to, other.room) and annotations[0] is annotations[1]


_handling: ContextVar[tuple[object, Contract | None] | None] = ContextVar("socketspec_handling", default=None)
"""The `Contracts` of the app whose handler is running, and what that handler declares."""


class Contracts:
    """Encodes what an app's handlers, hooks and other code send.

    A model that is declared for an event always validates and filters. Where `strict`, a handler that declares `emits`
    (or `broadcasts`) may send just that; one that does not may send anything. `contract`, if given, binds all that is
    sent, whoever sends it.
    """

    def __init__(self, sends: DeclaredSends, *, strict: bool, contract: Contract | None = None) -> None:
        self.strict = strict
        self._sends = sends
        self._contract = contract

    @contextmanager
    def handling(self, contract: Contract | None) -> Iterator[None]:
        """What is sent inside is held to `contract`; with None, to none of a handler's."""
        if not self.strict and not self._sends.by_event:
            yield
            return
        token = _handling.set((self, contract))
        try:
            yield
        finally:
            _handling.reset(token)

    def emitted(self, event: str, payload: object) -> bytes:
        """Encode what is sent to one client.

        Raises `ContractError` for what differs from its declaration, `TypeError` for what cannot be encoded.
        """
        if not self.strict and event not in self._sends.by_event:
            return encode_payload(payload)
        contract = self._current()
        declared = () if contract is None else contract.emitted(event)
        if contract is not None and contract.emits is not None and not declared and self.strict:
            raise contract.refuse_emit(event)
        who = "It" if contract is None else contract.who
        return encode_as(declared or self._sends.emitted(event), payload, f"{who} emits {event!r}")

    def broadcast(self, topic: Topic, event: str, payload: object) -> bytes:
        """Encode what is sent to the members of `topic`. Raises as `emitted` does."""
        if not self.strict and event not in self._sends.by_event:
            return encode_payload(payload)
        contract = self._current()
        declared = () if contract is None else contract.broadcast(topic, event)
        if contract is not None and contract.broadcasts is not None and not declared and self.strict:
            raise contract.refuse_broadcast(topic, event)
        who = "This" if contract is None else contract.who
        what = f"{who} broadcasts {event!r} to {named(topic)}"
        return encode_as(declared or self._sends.broadcast(topic, event), payload, what)

    def _current(self) -> Contract | None:
        if self._contract is not None:
            return self._contract
        handling = _handling.get()
        return handling[1] if handling is not None and handling[0] is self else None
