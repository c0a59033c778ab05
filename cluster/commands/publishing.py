"""How a publication becomes a command, and its reply a receipt. No I/O: nodes and publishers share it."""

from __future__ import annotations

from typing import Any, Final

from socketspec.cluster.commands.command import Argument, Command, Script, milliseconds
from socketspec.cluster.commands.envelope import encode_body, plain_frame
from socketspec.cluster.commands.keys import Keys
from socketspec.errors import BackendError
from socketspec.protocol.publications import ONCE_SECONDS, History, Position, Publication, Receipt, Topic

__all__ = (
    "parse_receipt",
    "publish_any_command",
    "publish_command",
    "still_to_send",
    "with_nodes",
)

_ONCE_MS: Final = milliseconds(ONCE_SECONDS)
_PUBLISH: Final = Script("publish")


def publish_command(
    keys: Keys,
    topic: Topic,
    publication: Publication,
    history: History | None,
    idempotency_key: str | None = None,
    *,
    epoch: str,
    tag: str,
) -> Command:
    """Send `publication` to the nodes and, with `history`, keep it in the same atomic step.

    `epoch` names the stream's life if a new one begins, `tag` this publication: random letters and digits. Raises
    `BackendError` for a publication that is too large. Where Redis refuses to write (its memory is full, it cannot
    save to its disk, or it lacks replicas), orders between nodes are only sent.
    """
    body = encode_body(publication)
    if history is None:
        if idempotency_key is None:
            return Command("SPUBLISH", None, (keys.channel(topic),), (plain_frame(body),))
        return _script(keys, topic, idempotency_key, (-1, 0, epoch, tag, body, _ONCE_MS, keys.channel(topic)))
    args: tuple[Argument, ...] = (
        history.size,
        milliseconds(history.ttl),
        epoch,
        tag,
        body,
        _ONCE_MS,
        keys.channel(topic),
    )
    if topic.kind == "control":
        args = (*args, 1)
    return _script(keys, topic, idempotency_key, args)


def publish_any_command(
    keys: Keys, topic: Topic, publication: Publication, idempotency_key: str | None = None, *, epoch: str, tag: str
) -> Command:
    """As `publish_command`, without the room's declaration: it is kept the way the nodes kept their last publication.

    Where the room keeps nothing at present it is only sent.
    """
    body = encode_body(publication)
    return _script(keys, topic, idempotency_key, (0, 0, epoch, tag, body, _ONCE_MS, keys.channel(topic)))


def parse_receipt(reply: Any) -> Receipt:
    """The receipt in the reply to either command. Raises `BackendError` for a reply that is none."""
    try:
        if isinstance(reply, int):
            return Receipt(reply)
        nodes, offset, epoch, tag, _is_new = reply
        if not int(offset):
            return Receipt(int(nodes))  # an idempotency key that was used for what was only sent
        return Receipt(int(nodes), Position(int(offset), _text(epoch), _text(tag)))
    except (TypeError, ValueError):
        raise BackendError(f"Redis answered a publish with {reply!r:.200}; is a proxy in between?") from None


def still_to_send(command: Command, reply: Any) -> Command | None:
    """What has to be sent where `command` was carried out by its slot's next owner, and answered with `reply`.

    While a slot migrates, new keys belong there already, but those who are subscribed are still with the present owner.
    """
    if command.script != _PUBLISH:
        return None
    body, channel = _bytes(command.args[4]), _bytes(command.args[6])
    if isinstance(reply, int):
        return Command("SPUBLISH", None, (channel,), (plain_frame(body),))
    _nodes, offset, epoch, tag, is_new = reply
    if not is_new:
        return None
    head = b"\2%d:%b:%b\n" % (offset, _bytes(epoch), _bytes(tag))
    return Command("SPUBLISH", None, (channel,), (head + body,))


def with_nodes(reply: Any, nodes: int) -> Any:
    """The reply to a publish, as if `nodes` had got it."""
    return nodes if isinstance(reply, int) else [nodes, *reply[1:]]


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _script(keys: Keys, topic: Topic, once: str | None, args: tuple[Argument, ...]) -> Command:
    names = [keys.meta(topic), keys.stream(topic)]
    if once is not None:
        names.append(keys.idempotency(topic, once))
    return _PUBLISH.command(names, *args)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
