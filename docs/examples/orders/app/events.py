from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from socketspec import Event, History, Room


class Which(BaseModel):
    id: int


class OrderStatus(Which):
    model_config = ConfigDict(from_attributes=True)
    item: str
    state: Literal["placed", "ready", "on_its_way", "cancelled"]


class Note(Which):
    text: str = Field(min_length=1, max_length=500)
    author: str | None = None


ROOMS = [Room("orders:{id}", history=History(size=50, ttl=86_400))]
order_changed = Event("order_changed", OrderStatus, room="orders:{id}")
noted = Event("noted", Note, room="orders:{id}")
