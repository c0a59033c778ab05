"""What is sent is what the declared type's schema says, whatever was given."""

from __future__ import annotations

import json
import math
import traceback
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field
from typing_extensions import TypedDict

from socketspec.declaration.outbound import OutboundType
from socketspec.errors import ConfigurationError, ContractError

T = TypeVar("T")


class Public(BaseModel):
    name: str


class Stored(Public):
    hashed_password: str = "s3cret"


class Twin(BaseModel):
    name: str
    hashed_password: str = "s3cret"


class Nested(BaseModel):
    one: Public
    many: list[Public] = []
    by_name: dict[str, Public] = {}


class Page(BaseModel, Generic[T]):
    items: list[T]


@dataclass
class Point:
    x: int


@dataclass
class SecretPoint(Point):
    hashed_password: str = "s3cret"


class Row(TypedDict):
    x: int


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str = "rex"


class SecretDog(Dog):
    hashed_password: str = "s3cret"


class Renamed(BaseModel):
    order_id: int = Field(alias="orderId")
    note: str = Field("", serialization_alias="Note")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime


class Loose(BaseModel):
    price: Decimal = 0  # type: ignore[assignment] # what Pydantic lets pass
    at: datetime | None = None

    @computed_field
    def twice(self) -> Decimal:
        return self.price * 2


class Record:
    """As an object of a database."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def sent(annotation: Any, value: object, **options: Any) -> Any:
    return json.loads(OutboundType(annotation, what="it", **options).encode(value))


ADA, SECRET = Public(name="ada"), Stored(name="ada")


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Public, ADA, {"name": "ada"}),
        (Public, SECRET, {"name": "ada"}),
        (Public, Twin(name="ada"), {"name": "ada"}),
        (Public, {"name": "ada", "hashed_password": "s3cret"}, {"name": "ada"}),
        (Public, Record(name="ada", hashed_password="s3cret"), {"name": "ada"}),
        (Nested, Nested(one=SECRET, many=[SECRET], by_name={"a": SECRET}), None),
        (Nested, {"one": SECRET, "many": [{"name": "ada", "more": 1}], "by_name": {"a": Record(name="ada")}}, None),
        (Page[Public], Page[Public](items=[SECRET]), {"items": [{"name": "ada"}]}),
        (Page[Public], Page[Stored](items=[SECRET]), {"items": [{"name": "ada"}]}),
        (Page[Public], Page(items=[{"name": "ada", "more": 1}]), {"items": [{"name": "ada"}]}),
        (Point, SecretPoint(1), {"x": 1}),
        (Row, {"x": 1, "hashed_password": "s3cret"}, {"x": 1}),
        (Row, Point(1), {"x": 1}),
        (Cat | Dog, SecretDog(), {"kind": "dog", "name": "rex"}),
        (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "cat", "name": "x"}, {"kind": "cat"}),
        (dict[str, Public], {"a": SECRET}, {"a": {"name": "ada"}}),
        (RootModel[dict[str, Public]], {"a": SECRET}, {"a": {"name": "ada"}}),
        (Renamed, Renamed(orderId=1, note=""), {"orderId": 1, "Note": ""}),
        (Renamed, {"orderId": 1, "note": "n"}, {"orderId": 1, "Note": "n"}),
        (Renamed, {"order_id": 1}, {"orderId": 1, "Note": ""}),
        (Renamed, Record(order_id=1, note="n"), {"orderId": 1, "Note": "n"}),
        (Strict, {"at": datetime(2024, 1, 1)}, {"at": "2024-01-01T00:00:00"}),
        (Strict, {"at": "2024-01-01T00:00:00"}, {"at": "2024-01-01T00:00:00"}),
        (Loose, Loose(), {"price": "0", "at": None, "twice": "0"}),
        (Loose, {}, {"price": "0", "at": None, "twice": "0"}),
        (dict, {"x": 1}, {"x": 1}),
        (dict, ADA, {"name": "ada"}),
    ],
)
def test_what_is_declared_is_sent_and_nothing_else(annotation: Any, value: object, expected: Any) -> None:
    found = sent(annotation, value)
    if expected is None:
        expected = {"one": {"name": "ada"}, "many": [{"name": "ada"}], "by_name": {"a": {"name": "ada"}}}
    assert found == expected
    jsonschema.validate(found, OutboundType(annotation, what="it").json_schema())


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Public, {"name": 1}, "it: 'dict' does not fit 'Public': name: Input should be a valid string"),
        (Public, Point(1), "'Point' does not fit 'Public': name: Field required"),
        (Public, "text", "'str' does not fit 'Public': the payload: "),
        (Public, None, "'NoneType' does not fit 'Public'"),
        (Public, Public.model_construct(name=5), "'Public' does not fit 'Public': name: "),
        (Nested, Nested.model_construct(one=Public.model_construct(name=5)), "one.name: "),
        (Point, Point("far"), "'Point' does not fit 'Point': x: "),  # type: ignore[arg-type] # a dataclass looks at nothing
        (Cat | Dog, {"kind": "cow"}, "does not fit 'Cat | Dog'"),
        (dict[str, int], {"a": "b"}, "does not fit 'dict[str, int]': a: "),
        (dict, None, "'NoneType' does not fit 'dict'"),
        (None, {"x": 1}, "'dict' does not fit 'None'"),
    ],
)
def test_what_does_not_fit_is_told_without_its_values(annotation: Any, value: object, says: str) -> None:
    with pytest.raises(ContractError) as refused:
        OutboundType(annotation, what="it", optional=annotation is None).encode(value)
    assert says in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("annotation", [Public | None, None, dict[str, Any] | None, Cat | Dog | None])
def test_none_is_an_empty_object_where_it_is_declared(annotation: Any) -> None:
    assert sent(annotation, None, optional=True) == {}


@pytest.mark.parametrize(
    "annotation", [str, int, list[Public], Public | str, str | None, tuple[int, ...], RootModel[int]]
)
def test_what_is_no_object_on_the_wire_is_refused(annotation: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"it: .* cannot be a payload: .*always an object.*put a single value or a list"
    ):
        OutboundType(annotation, what="it", optional=True)
    with pytest.raises(ConfigurationError, match="always an object"):
        OutboundType(Public | None, what="an event has no such thing")


def test_what_cannot_be_written_is_a_type_error() -> None:
    class Anything(BaseModel):
        it: Any

    for it in (object(), "\ud800"):
        with pytest.raises(TypeError, match="Cannot send this payload"):
            OutboundType(Anything, what="it").encode(Anything(it=it))


def test_a_serializer_of_the_models_own_cannot_make_something_else_of_it() -> None:
    class Text(BaseModel):
        model_config = ConfigDict(ser_json_inf_nan="constants")
        x: float

    assert sent(Text, Text(x=math.inf)) == {"x": None}
    assert json.loads(OutboundType(Text, what="it").encode(Text(x=1)), parse_constant=pytest.fail) == {"x": 1.0}


def test_a_model_that_asks_to_be_validated_again_is() -> None:
    class Checked(BaseModel):
        model_config = ConfigDict(revalidate_instances="always")
        n: int = Field(ge=0)

    wrong = Checked(n=1)
    wrong.n = -1
    with pytest.raises(ContractError, match="n: Input should be greater"):
        OutboundType(Checked, what="it").encode(wrong)


def values(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """JSON-like values with instances of models in them."""
    keys = st.sampled_from(["name", "one", "x"])
    return st.recursive(
        leaves | st.just(ADA) | st.just(SECRET),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )


LEAVES = st.booleans() | st.integers() | st.floats() | st.text()
NOT_VALIDATED = values(LEAVES)
"""Without None: Pydantic writes it as null in the place of anything."""


@given(
    value=values(LEAVES | st.none())
    | st.builds(Nested.model_construct, one=NOT_VALIDATED, many=NOT_VALIDATED, by_name=NOT_VALIDATED),
    annotation=st.sampled_from([Public, Nested, Point, Row, Cat | Dog, dict[str, Public], Renamed, Page[Public]]),
)
def test_whatever_is_given_what_is_sent_is_what_the_schema_allows(value: Any, annotation: Any) -> None:
    outbound = OutboundType(annotation, what="it")
    try:
        found = json.loads(outbound.encode(value))
    except (ContractError, TypeError):
        return
    jsonschema.validate(found, outbound.json_schema())
    assert "s3cret" not in json.dumps(found)


@pytest.mark.parametrize("stored", [False, True])
def test_what_does_not_fit_is_not_shown_with_its_values_by_a_traceback_either(stored: bool) -> None:
    value = Secretive.model_construct(pin="not for logs") if stored else {"pin": "not for logs"}
    with pytest.raises(ContractError) as raised:
        OutboundType(Secretive, what="here").encode(value)
    assert "not for logs" not in "".join(traceback.format_exception(raised.value))


class Secretive(BaseModel):
    pin: int
