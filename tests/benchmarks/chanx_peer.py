"""The application on chanx and fast_channels. Run where those are installed only: in their own environment."""

# mypy: disable-error-code="import-not-found,misc,untyped-decorator"
# The checks' environment has no chanx, so its base classes and decorators are unknown there.

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from chanx.core.decorators import channel, event_handler, ws_handler
from chanx.fast_channels.websocket import AsyncJsonWebsocketConsumer
from chanx.messages.base import BaseMessage
from fast_channels.layers import InMemoryChannelLayer, register_channel_layer
from pydantic import BaseModel

Send = Callable[[str, dict[str, Any]], Awaitable[object]]


class EchoPayload(BaseModel):
    room: str
    text: str


class Echo(BaseMessage):
    action: Literal["echo"] = "echo"
    payload: EchoPayload


class Echoed(BaseMessage):
    action: Literal["echoed"] = "echoed"
    payload: EchoPayload


class TickPayload(BaseModel):
    text: str


class Tick(BaseMessage):
    action: Literal["tick"] = "tick"
    payload: TickPayload


@channel(name="bench")
class BenchConsumer(AsyncJsonWebsocketConsumer):
    channel_layer_alias = "default"
    groups = ["r0"]  # noqa: RUF012 - as its documentation has it
    joined = [0]  # noqa: RUF012 - one for all of them

    @ws_handler(output_type=Echoed)
    async def echo(self, message: Echo) -> Echoed:
        return Echoed(payload=message.payload)

    @event_handler(input_type=Tick, output_type=Tick)
    async def tick(self, event: Tick) -> Tick:
        return event

    async def post_authentication(self) -> None:
        self.joined[0] += 1


async def _send(room: str, payload: dict[str, Any]) -> None:
    await BenchConsumer.broadcast_event(Tick(payload=TickPayload(**payload)), room)


def build(url: str) -> tuple[Any, Send]:
    """The consumer, in memory or on its Redis layer where there is a URL, and how to publish to its groups."""
    if url:
        from fast_channels.layers.redis import RedisPubSubChannelLayer

        register_channel_layer("default", RedisPubSubChannelLayer(hosts=[url]))
    else:
        register_channel_layer("default", InMemoryChannelLayer())
    return BenchConsumer, _send
