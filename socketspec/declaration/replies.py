"""What a handler's return annotation, or ``on(response_model=…)``, says of its replies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Never, NoReturn, get_args, get_origin

from socketspec.declaration.outbound import OutboundType
from socketspec.declaration.signatures import EMPTY, Signature, bare

__all__ = ("reply_type", "settled")


def reply_type(signature: Signature, response_model: Any = EMPTY) -> OutboundType | None:
    """What a handler's replies are held to; None: nothing is declared, or ``response_model=None`` says so.

    Raises `ConfigurationError` for a type that is no object on the wire.
    """
    if response_model is None:
        return None
    by_annotation = response_model is EMPTY
    declared = _awaited(signature.returns) if by_annotation else response_model
    if declared in (EMPTY, NoReturn, Never) or bare(declared)[0] in (Any, object):
        return None
    what = f"{signature.owner}: the return annotation" if by_annotation else f"{signature.owner}: response_model"
    return OutboundType(declared, what=what, optional=True, namespace=signature.namespace)


def _awaited(returns: Any) -> Any:
    """What a handler that is not `async`, but returns something to be awaited, replies in the end."""
    origin, arguments = get_origin(bare(returns)[0]), get_args(bare(returns)[0])
    return arguments[-1] if origin in (Awaitable, Coroutine) and arguments else returns


def settled(bound: Callable[..., Any], reply: OutboundType | None, *, is_async: bool) -> Callable[..., Any]:
    """`bound`, whose result is validated before it returns, while its dependencies are still there.

    An object of a database, for one, may have to ask its session for what the reply declares.
    """
    if reply is None:
        return bound
    fit = reply.fit

    if is_async:

        async def answer(values: Any) -> Any:
            return fit(await bound(values))

        return answer

    def answer_in_thread(values: Any) -> Any:
        result = bound(values)
        return result if asyncio.iscoroutine(result) else fit(result)

    return answer_in_thread
