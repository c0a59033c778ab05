"""Payload types: what is accepted as one, what fits it, and what is said about what does not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_validator
from typing_extensions import TypedDict

from socketspec.declaration.payloads import MAX_DEPTH, MAX_ERRORS, PayloadType
from socketspec.errors import ConfigurationError, ErrorCode, ValidationFailed

if TYPE_CHECKING:
    from decimal import Decimal


class Message(BaseModel):
    room: str
    count: int = 1


@dataclass
class Point:
    x: int


class Typed(TypedDict):
    x: int


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Scores(RootModel[dict[str, int]]):
    pass


class Numbers(RootModel[list[int]]):
    pass


class Pair(NamedTuple):
    x: int


class Sent(BaseModel):
    at: datetime


class Opaque:
    pass


class Bad(BaseModel):
    later: Decimal


Renamed = NewType("Renamed", Message)


def errors_of(error: pytest.ExceptionInfo[ValidationFailed]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = error.value.details["errors"]
    return found


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Message, {"room": "a"}, Message(room="a")),
        (Point, {"x": "1"}, Point(1)),
        (Typed, {"x": 1}, {"x": 1}),
        (dict[str, int], {"x": "1"}, {"x": 1}),
        (Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "dog"}, Dog(kind="dog")),
        (Scores, {"x": 1}, Scores({"x": 1})),
        (Renamed, {"room": "a"}, Message(room="a")),
        (dict, {"x": [1, None]}, {"x": [1, None]}),
        (dict[str, Any], {}, {}),
        (Mapping[str, Any], {"x": 1}, {"x": 1}),
        (Any, {"x": 1}, {"x": 1}),
    ],
)
def test_an_object_is_validated_into_its_type(annotation: Any, value: dict[str, Any], expected: Any) -> None:
    assert PayloadType(annotation).validate(value) == expected


@pytest.mark.parametrize(
    "annotation", [str, int, list[int], Numbers, Pair, Message | None, Message | int, Opaque, Literal["a"], set[str]]
)
def test_what_is_no_object_cannot_be_a_payload(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"a payload is always an object.*Pydantic model"):
        PayloadType(annotation)


def test_a_model_pydantic_cannot_handle_is_refused_with_pydantics_reason() -> None:
    @dataclass
    class Holder:
        it: Opaque

    with pytest.raises(ConfigurationError, match=r"'Holder' cannot be a payload.*Opaque"):
        PayloadType(Holder)


def test_a_field_known_only_to_type_checkers_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'Bad' has a field whose annotation needs 'Decimal'"):
        PayloadType(Bad)


def test_a_namespace_completes_models_that_name_later_local_ones() -> None:
    class Early(BaseModel):
        later: Late

    class Late(BaseModel):
        x: int

    @dataclass
    class EarlyData:
        later: Late

    class EarlyTyped(TypedDict):
        later: Late

    for annotation in (Early, EarlyData, EarlyTyped):
        with pytest.raises(ConfigurationError, match="Late"):
            PayloadType(annotation)
    for annotation in (Early, EarlyData, EarlyTyped):
        payload = PayloadType(annotation, namespace=locals())
        with pytest.raises(ValidationFailed):
            payload.validate({"later": {"x": "no number"}})


def test_a_model_with_a_deferred_build_is_built_at_once() -> None:
    class Lazy(BaseModel):
        model_config = ConfigDict(defer_build=True)
        x: int

    assert PayloadType(Lazy).validate_python({"x": 1}) == Lazy(x=1)


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (Message, "Message"),
        (dict, "dict"),
        (dict[str, Any], "dict[str, Any]"),
        (Annotated[Cat | Dog, Field(discriminator="kind")], "Cat | Dog"),
        (Any, "Any"),
    ],
)
def test_a_payload_type_has_a_name_for_people(annotation: Any, name: str) -> None:
    assert PayloadType(annotation).name == name
    assert repr(PayloadType(annotation)) == f"PayloadType({name})"


def test_a_misfit_is_told_by_place_and_reason_without_its_values() -> None:
    with pytest.raises(ValidationFailed) as error:
        PayloadType(Message).validate({"room": ["hunter2"], "count": "hunter2"})

    assert error.value.code is ErrorCode.VALIDATION_ERROR
    assert errors_of(error) == [
        {"loc": ["room"], "msg": "Input should be a valid string", "type": "string_type"},
        {
            "loc": ["count"],
            "msg": "Input should be a valid integer, unable to parse string as an integer",
            "type": "int_parsing",
        },
    ]
    assert "2 errors" in error.value.message


def test_no_more_than_twenty_errors_are_listed() -> None:
    with pytest.raises(ValidationFailed) as error:
        PayloadType(dict[str, int]).validate({str(i): "x" for i in range(1000)})

    assert len(errors_of(error)) == MAX_ERRORS == 20
    assert "1000 errors, of which the first 20" in error.value.message


def test_errors_by_the_thousand_are_counted_and_not_listed() -> None:
    with pytest.raises(ValidationFailed) as error:
        PayloadType(dict[str, int]).validate({str(i): "x" for i in range(1001)})

    assert errors_of(error) == [{"loc": [], "msg": "1001 errors are too many to list", "type": "too_many_errors"}]


def test_long_names_from_the_client_are_cut() -> None:
    with pytest.raises(ValidationFailed) as error:
        PayloadType(dict[str, int]).validate({"k" * 60_000: "x"})

    assert len(json.dumps(error.value.details)) < 1000


class Strict(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def judge(cls, value: int) -> int:
        match value:
            case 0:
                raise ValueError("not zero")
            case 1:
                raise RecursionError
            case 2:
                raise KeyError("a bug of the validator")
            case _:
                return value


def test_a_validators_value_error_is_a_misfit_and_can_be_sent() -> None:
    with pytest.raises(ValidationFailed) as error:
        PayloadType(Strict).validate({"x": 0})
    assert json.loads(json.dumps(errors_of(error))) == [
        {"loc": ["x"], "msg": "Value error, not zero", "type": "value_error"}
    ]


def test_a_recursion_error_is_a_misfit() -> None:
    with pytest.raises(ValidationFailed) as error:
        PayloadType(Strict).validate({"x": 1})
    assert errors_of(error)[0]["type"] == "recursion_loop"


def test_a_validators_bug_is_not_swallowed() -> None:
    with pytest.raises(KeyError):
        PayloadType(Strict).validate({"x": 2})


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for level in range(levels - 1):
        value = {"d": value} if level % 2 else {"l": [value]}
    return value


def depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth, children), default=0)


def test_a_plain_dict_may_be_nested_sixty_four_levels_and_no_more() -> None:
    deepest: dict[str, Any] = {}
    for _ in range(MAX_DEPTH - 1):
        deepest = {"d": deepest}
    assert PayloadType(dict).validate(deepest) is deepest
    with pytest.raises(ValidationFailed) as error:
        PayloadType(dict).validate({"e": deepest})
    assert errors_of(error)[0]["type"] == "too_deep"
    assert errors_of(error)[0]["loc"] == ["e", *["d"] * (MAX_DEPTH - 1)]


def test_a_plain_dict_deeper_than_the_interpreters_stack_is_refused_without_recursion() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"d": deep}
    with pytest.raises(ValidationFailed, match="does not fit"):
        PayloadType(dict).validate(deep)
    while deep:  # taken apart step by step: so deep a value overflows the stack when it is freed at once
        deep = deep["d"]


def test_a_plain_dict_may_be_wide() -> None:
    wide = {str(i): [i] * 10 for i in range(1000)}
    assert PayloadType(dict).validate(wide) is wide


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (math.nan, "finite_number"),
        (-math.inf, "finite_number"),
        (2**64, "int_out_of_range"),
        (-(2**63) - 1, "int_out_of_range"),
        (b"bytes", "not_json"),
        (("tuple",), "not_json"),
        ({1: "x"}, "not_json"),
    ],
)
def test_what_could_not_be_sent_on_is_refused_in_a_plain_dict(value: Any, kind: str) -> None:
    with pytest.raises(ValidationFailed) as error:
        PayloadType(dict).validate({"list": [0, {"key": value}]})
    assert errors_of(error)[0]["loc"] == ["list", 1, "key"]
    assert errors_of(error)[0]["type"] == kind


@pytest.mark.parametrize("value", [2**64 - 1, -(2**63), 1.5, True, None, "text"])
def test_the_outermost_values_that_can_be_sent_on_are_accepted(value: Any) -> None:
    assert PayloadType(dict).validate({"x": value}) == {"x": value}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.text(max_size=3)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_every_json_object_passes_a_plain_dict_unchanged(value: dict[str, Any]) -> None:
    assert PayloadType(dict).validate(value) is value


@given(st.integers(1, 130))
def test_the_walk_measures_depth_as_a_recursive_definition_does(levels: int) -> None:
    value = nested(levels)
    if depth(value) <= MAX_DEPTH:
        assert PayloadType(dict).validate(value) is value
    else:
        with pytest.raises(ValidationFailed):
            PayloadType(dict).validate(value)


def test_the_json_schema_follows_the_mode() -> None:
    class Defaulted(BaseModel):
        x: int = 1

    assert PayloadType(Message).json_schema()["required"] == ["room"]
    assert "required" not in PayloadType(Defaulted).json_schema("validation")
    assert PayloadType(dict).json_schema()["type"] == "object"


def test_a_type_without_a_json_schema_says_so() -> None:
    class Callback(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        it: Opaque

    with pytest.raises(ConfigurationError, match="'Callback' has no JSON Schema"):
        PayloadType(Callback).json_schema()
