"""Makes an `EventSpec` of what ``socket.on(…)`` is given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

from socketspec.declaration.contracts import Broadcasts, Contract, Emits, compile_broadcasts, compile_emits
from socketspec.declaration.declared_errors import compile_errors
from socketspec.declaration.events import Event
from socketspec.declaration.groups import (
    Bucket,
    Given,
    Limit,
    Path,
    given_middleware,
    given_tags,
    given_timeout,
)
from socketspec.declaration.options import check_flag, check_text
from socketspec.declaration.plans import compile_handler
from socketspec.declaration.registry import EventSpec, Registry
from socketspec.declaration.signatures import EMPTY, listed
from socketspec.errors import ConfigurationError, EventError
from socketspec.protocol.encoding import encode_payload
from socketspec.protocol.names import check_event_name, is_reserved

__all__ = ("EventOptions",)


class EventOptions:
    """What ``on(event, …)`` says of an event, checked. Raises `ConfigurationError` for what cannot be meant.

    `where` is how it is declared, for errors: ``"on"``.
    """

    def __init__(
        self,
        event: str,
        *,
        description: str | None = None,
        tags: Sequence[str] = (),
        emits: Sequence[Emits | Event[Any]] | None = None,
        broadcasts: Sequence[Broadcasts | Event[Any]] | None = None,
        response_model: Any = EMPTY,
        errors: Sequence[type[EventError]] = (),
        dependencies: Sequence[Any] = (),
        middleware: Sequence[Callable[..., Any]] = (),
        rate_limit: Limit | None = None,
        timeout: float | timedelta | None = None,
        ordered: bool = False,
        deprecated: bool = False,
    ) -> None:
        where = f"on({event!r}"
        if description is not None:
            check_text(f"{where}, description", description)
        check_flag(f"{where}, ordered", ordered)
        check_flag(f"{where}, deprecated", deprecated)
        self._event = event
        self._description = description
        self._tags = given_tags(f"{where}, tags", tags)
        self._emits = compile_emits(f"{where}, emits", emits)
        self._broadcasts = compile_broadcasts(f"{where}, broadcasts", broadcasts)
        self._response_model = response_model
        self._errors = compile_errors(f"{where}, errors", errors)
        self._dependencies = listed(f"{where})", dependencies)
        self._middleware = given_middleware(f"{where}, middleware", middleware)
        self._rate_limit = rate_limit
        self._timeout = given_timeout(f"{where}, timeout", timeout)
        self._ordered = ordered
        self._deprecated = deprecated

    def name(self, path: Path) -> str:
        """The event as clients send it, where it came to an app by `path`. Raises `ConfigurationError`."""
        prefix = "".join(options.prefix for options in path)
        name = prefix + self._event if prefix else self._event
        try:
            check_event_name(name)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        if is_reserved(name):
            raise ConfigurationError(
                f"Event {name!r} is reserved for the protocol; choose a name without __ around it."
            )
        return name

    def spec(self, given: Given, registry: Registry, path: Path) -> EventSpec:
        """The event as `registry` has it, handled by `given`. Raises `ConfigurationError` for what cannot work."""
        name = self.name(path)
        dependencies = (*chain.from_iterable(options.dependencies for options in path), *self._dependencies)
        plan = compile_handler(
            given.function,
            connection_type=registry.connection_type,
            caller_locals=given.caller_locals,
            response_model=self._response_model,
            dependencies=dependencies,
        )
        reply = plan.reply
        groups = registry.groups(path)
        contract = Contract(f"The handler of {name!r}", self._emits, self._broadcasts)
        own = () if self._rate_limit is None else (Bucket(f"event {name}", self._rate_limit),)
        timeouts = (self._timeout, *(options.timeout for options in reversed(path)), registry.timeout)
        timeout = next((seconds for seconds in timeouts if seconds is not None), math.inf)
        return EventSpec(
            name=name,
            function=given.function,
            plan=plan,
            caller_locals=given.caller_locals or None,
            description=inspect.getdoc(given.function) or "" if self._description is None else self._description,
            tags=tuple(dict.fromkeys((*chain.from_iterable(options.tags for options in path), *self._tags))),
            contract=contract,
            contract_binds=contract.has_models,
            response_model=self._response_model,
            encode_reply=encode_payload if reply is None else reply.encode,
            always_replies=reply is not None and not reply.optional,
            errors=tuple(
                {error.kind: error for error in chain(*(options.errors for options in path), self._errors)}.values()
            ),
            ordered=self._ordered,
            deprecated=self._deprecated,
            dependencies=dependencies,
            groups=groups,
            middleware=tuple(map(registry.compiled_middleware, self._middleware)),
            buckets=(*(group.bucket for group in groups if group.bucket is not None), *own),
            timeout=None if timeout == math.inf else timeout,
        )
