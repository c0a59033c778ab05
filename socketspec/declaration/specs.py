"""Makes an `EventSpec` of what ``socket.on(…)`` is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from socketspec.declaration.contracts import Broadcasts, Contract, Emits, compile_broadcasts, compile_emits
from socketspec.declaration.declared_errors import compile_errors
from socketspec.declaration.events import Event
from socketspec.declaration.plans import compile_handler
from socketspec.declaration.registry import EventSpec
from socketspec.declaration.signatures import EMPTY, enclosing_locals, listed
from socketspec.errors import ConfigurationError, EventError
from socketspec.protocol.encoding import encode_payload
from socketspec.protocol.names import check_event_name, is_reserved

__all__ = ("EventOptions",)


class EventOptions:
    """What ``on(event, …)`` says of an event, checked. Raises `ConfigurationError` for what cannot be meant."""

    def __init__(
        self,
        event: str,
        *,
        connection_type: type[Any],
        description: str | None = None,
        tags: Sequence[str] = (),
        emits: Sequence[Emits | Event[Any]] | None = None,
        broadcasts: Sequence[Broadcasts | Event[Any]] | None = None,
        response_model: Any = EMPTY,
        errors: Sequence[type[EventError]] = (),
        dependencies: Sequence[Any] = (),
        ordered: bool = False,
        deprecated: bool = False,
    ) -> None:
        try:
            check_event_name(event)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        if is_reserved(event):
            raise ConfigurationError(
                f"Event {event!r} is reserved for the protocol; choose a name without __ around it."
            )
        if isinstance(tags, str) or not isinstance(tags, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance] - what untyped code passes
            raise ConfigurationError(f"on({event!r}, tags={tags!r}): tags must be a list, such as tags=['chat'].")
        self._event = event
        self._connection_type = connection_type
        self._description = description
        self._tags = tuple(tags)
        self._contract = Contract(
            f"The handler of {event!r}",
            compile_emits(f"on({event!r}, emits", emits),
            compile_broadcasts(f"on({event!r}, broadcasts", broadcasts),
        )
        self._response_model = response_model
        self._errors = compile_errors(f"on({event!r}, errors", errors)
        self._dependencies = tuple(dependency for dependency, _ in listed(f"on({event!r})", dependencies))
        self._ordered = ordered
        self._deprecated = deprecated

    def spec(self, function: Callable[..., Any]) -> EventSpec:
        """The event, handled by `function`. Raises `ConfigurationError` for a signature that cannot work."""
        caller_locals: Mapping[str, Any] = enclosing_locals(function)
        plan = compile_handler(
            function,
            connection_type=self._connection_type,
            caller_locals=caller_locals,
            response_model=self._response_model,
            dependencies=self._dependencies,
        )
        reply = plan.reply
        return EventSpec(
            name=self._event,
            function=function,
            plan=plan,
            caller_locals=caller_locals or None,
            description=inspect.getdoc(function) or "" if self._description is None else self._description,
            tags=self._tags,
            contract=self._contract,
            contract_binds=self._contract.has_models,
            response_model=self._response_model,
            encode_reply=encode_payload if reply is None else reply.encode,
            always_replies=reply is not None and not reply.optional,
            errors=self._errors,
            ordered=self._ordered,
            deprecated=self._deprecated,
            dependencies=self._dependencies,
        )
