"""A strict model takes from the wire what Pydantic takes from JSON for it, in either format; a lax one stays lax."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import msgpack
import pytest
from pydantic import BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict

from socketspec import Connection, SocketApp
from socketspec.declaration.payloads import PayloadType
from socketspec.errors import ValidationFailed
from socketspec.testing import TestClient


class Color(Enum):
    red = "red"


class Everything(BaseModel):
    model_config = ConfigDict(strict=True)

    id: UUID
    at: datetime
    day: date
    hour: time
    span: timedelta
    color: Color
    price: Decimal
    raw: bytes
    tags: set[str]
    frozen: frozenset[int]
    place: tuple[float, float]
    counts: dict[int, int]


WIRE: dict[str, Any] = {
    "id": "6f1c1f0e-0d7e-4a37-9d0b-1d4a5b7c8d9e",
    "at": "2024-01-01T00:00:00Z",
    "day": "2024-01-01",
    "hour": "12:30:00",
    "span": "PT5M",
    "color": "red",
    "price": "1.50",
    "raw": "né",
    "tags": ["a"],
    "frozen": [1],
    "place": [1.0, 2.0],
    "counts": {"1": 2},
}


@with_config(ConfigDict(strict=True))
class StrictTyped(TypedDict):
    at: datetime


@dataclass
class StrictData:
    __pydantic_config__ = ConfigDict(strict=True)
    at: datetime


class OneStrictField(BaseModel):
    at: Annotated[datetime, Strict()]
    strict: bool = True
    default: dict[str, bool] = {"strict": True}


class Inside(BaseModel):
    many: list[Everything]


class InADefinition(BaseModel):
    at: Annotated[datetime, Field(strict=True)]
    next: InADefinition | None = None


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Everything, WIRE),
        (StrictTyped, {"at": "2024-01-01T00:00:00Z"}),
        (StrictData, {"at": "2024-01-01T00:00:00Z"}),
        (OneStrictField, {"at": "2024-01-01T00:00:00Z"}),
        (Inside, {"many": [WIRE, WIRE]}),
        (InADefinition, {"at": "2024-01-01T00:00:00Z", "next": {"at": "2024-01-01T00:00:00Z"}}),
        (dict[str, Everything], {"a": WIRE}),
        (Everything | OneStrictField, WIRE),
    ],
)
def test_strictness_is_jsons_wherever_it_is_declared(annotation: Any, value: dict[str, Any]) -> None:
    payload_type = PayloadType(annotation)
    as_json = TypeAdapter(annotation).validate_json(json.dumps(value))
    assert payload_type.validate(from_json(json.dumps(value))) == as_json
    packed: Any = msgpack.packb(value)
    assert payload_type.validate(msgpack.unpackb(packed)) == as_json


@pytest.mark.parametrize("name", WIRE)
def test_each_kind_of_value_is_taken_as_pydantic_takes_it_from_json(name: str) -> None:
    one = {"it": WIRE[name]}
    annotation = Everything.model_fields[name].annotation
    model: Any = type(
        "One", (BaseModel,), {"__annotations__": {"it": annotation}, "model_config": ConfigDict(strict=True)}
    )
    assert PayloadType(model).validate(one) == model.model_validate_json(json.dumps(one))


@pytest.mark.parametrize(
    "value", [{"n": "1", "f": True}, {"n": 1, "f": "yes"}, {"n": 1.0, "f": True}, {"n": 1}, {"n": None, "f": True}]
)
def test_a_strict_model_still_takes_nothing_for_something_else(value: dict[str, Any]) -> None:
    class Numbers(BaseModel):
        model_config = ConfigDict(strict=True)
        n: int
        f: bool

    with pytest.raises(ValidationError):
        Numbers.model_validate_json(json.dumps(value))
    with pytest.raises(ValidationFailed) as refused:
        PayloadType(Numbers).validate(value)
    assert refused.value.details["errors"]


def test_bytes_are_read_as_the_model_says_they_are_written_in_json() -> None:
    class Blob(BaseModel):
        model_config = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")
        data: bytes

    sent = {"data": base64.b64encode(b"\x00\xff").decode()}
    assert PayloadType(Blob).validate(sent) == Blob(data=b"\x00\xff") == Blob.model_validate_json(json.dumps(sent))


def test_binary_data_of_messagepack_is_bytes() -> None:
    class Chunk(BaseModel):
        model_config = ConfigDict(strict=True)
        data: bytes
        number: int

    for data in (b"\xff\x00", b"text"):
        packed: Any = msgpack.packb({"data": data, "number": 1})
        assert PayloadType(Chunk).validate(msgpack.unpackb(packed)).data == data


def test_a_lax_model_is_validated_without_a_detour() -> None:
    class Lax(BaseModel):
        id: UUID
        at: datetime
        color: Color
        price: Decimal
        raw: bytes
        tags: set[str]
        counts: Mapping[int, int]

    payload_type = PayloadType(Lax)
    assert getattr(payload_type.validate_python, "__name__", "") == "validate_python", "the compiled validator itself"
    assert payload_type.validate(WIRE) == Lax.model_validate_json(json.dumps(WIRE))


def test_a_type_that_reads_json_otherwise_than_python_is_read_as_json() -> None:
    class Place(BaseModel):
        where: Path

    assert PayloadType(Place).validate({"where": "/srv"}).where == Path("/srv")


@pytest.mark.parametrize("subprotocols", [(), ("socketspec.v1.msgpack",)])
async def test_a_strict_payload_reaches_its_handler_in_both_formats(subprotocols: tuple[str, ...]) -> None:
    app = SocketApp()
    taken: list[Everything] = []

    @app.on("take")
    async def take(conn: Connection, payload: Everything) -> None:
        taken.append(payload)

    async with TestClient(app) as client:
        conn = await client.connect(subprotocols=subprotocols)
        await conn.send("take", WIRE, id=1)
        await conn.receive_event("__ack__")
    assert taken == [Everything.model_validate_json(json.dumps(WIRE))]
