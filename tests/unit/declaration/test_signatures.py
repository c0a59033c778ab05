"""How signatures are read. Written without `from __future__ import annotations`; test_plans.py is written with it."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeVar

import fastapi
import pytest
from fastapi.security import SecurityScopes
from typing_extensions import TypeAliasType

from socketspec.declaration.dependencies import Depends
from socketspec.declaration.foreign import refuse_fastapi
from socketspec.declaration.markers import dependency_of
from socketspec.declaration.signatures import (
    EMPTY,
    Argument,
    Kind,
    Scope,
    bare,
    describe,
    enclosing_locals,
    kind_of,
    means,
    resolve,
)
from socketspec.errors import ConfigurationError

if TYPE_CHECKING:
    from decimal import Decimal


class Conn:
    pass


class SubConn(Conn):
    pass


Alias = TypeAliasType("Alias", Annotated[int, 1])
BoundConn = TypeVar("BoundConn", bound=Conn)


def annotations(call: Any, **options: Any) -> dict[str, Any]:
    return {argument.name: argument.annotation for argument in resolve(call, **options).arguments}


def argument(annotation: Any = EMPTY, default: Any = EMPTY) -> Argument:
    return Argument(name="it", position=1, annotation=annotation, default=default)


class Service:
    def method(self, conn: Conn) -> None: ...
    async def async_method(self, conn: Conn) -> None: ...
    def __call__(self, conn: "Conn") -> None: ...


class AsyncService:
    async def __call__(self) -> int:
        return 1


class GeneratorService:
    def __call__(self) -> Iterator[int]:
        yield 1


def test_annotations_are_resolved_and_metadata_is_kept() -> None:
    def handler(conn: "Conn", payload: "Annotated[int, 'seen']", other: Optional["Conn"] = None) -> "list[Conn]":
        return []

    signature = resolve(handler, returns=True)

    assert [a.annotation for a in signature.arguments] == [Conn, Annotated[int, "seen"], Optional[Conn]]  # noqa: UP045  # what was written
    assert signature.returns == list[Conn]
    assert signature.owner.endswith("test_annotations_are_resolved_and_metadata_is_kept.<locals>.handler")


def test_nothing_written_is_empty_and_none_is_none_type() -> None:
    def bare_function(conn): ...  # type: ignore[no-untyped-def]  # the case under test

    def returns_none() -> None: ...

    assert annotations(bare_function) == {"conn": EMPTY}
    assert resolve(bare_function, returns=True).returns is EMPTY
    assert resolve(returns_none, returns=True).returns is type(None)


@pytest.mark.parametrize(
    "call",
    [
        Service().method,
        Service(),
        functools.partial(Service.method, Service()),
        functools.partial(Service().method),
    ],
    ids=["bound method", "callable instance", "partial of a function", "partial of a method"],
)
def test_every_form_of_callable_is_read(call: Any) -> None:
    assert annotations(call) == {"conn": Conn}


def test_a_class_is_read_by_its_constructor() -> None:
    @dataclass
    class Made:
        conn: "Conn"

    class Written:
        def __init__(self, conn: "Conn") -> None: ...

    assert annotations(Made) == annotations(Written) == {"conn": Conn}


def test_a_decorated_function_is_read_through_functools_wraps() -> None:
    def inner(conn: "Conn") -> None: ...

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> None: ...

    assert annotations(outer) == {"conn": Conn}


def test_what_a_partial_binds_is_marked_as_bound() -> None:
    def function(a: int, b: int, c: int) -> None: ...

    signature = resolve(functools.partial(function, 1, b=2))

    assert [(a.name, a.bound) for a in signature.arguments] == [("b", True), ("c", False)]


def test_a_name_known_only_to_type_checkers_is_an_error_that_says_which() -> None:
    def handler(conn: Conn, amount: "Decimal") -> None: ...

    with pytest.raises(ConfigurationError, match=r"handler: the annotation of parameter 'amount' needs 'Decimal'.*run"):
        resolve(handler)


def test_an_unresolvable_return_annotation_counts_only_where_it_is_asked_for() -> None:
    def handler(conn: Conn) -> "Decimal":
        raise NotImplementedError

    assert annotations(handler) == {"conn": Conn}
    with pytest.raises(ConfigurationError, match="the return value needs 'Decimal'"):
        resolve(handler, returns=True)


def test_an_annotation_that_fails_in_another_way_is_a_configuration_error() -> None:
    def handler(conn: Conn) -> None: ...

    handler.__annotations__["conn"] = "functools.nothing_there"
    with pytest.raises(ConfigurationError, match=r"'conn' is 'functools\.nothing_there', which cannot be resolved"):
        resolve(handler)
    handler.__annotations__["conn"] = "1 +"
    with pytest.raises(ConfigurationError, match="cannot be resolved"):
        resolve(handler)


def test_names_come_from_the_closure_before_everything_else() -> None:
    def make() -> Any:
        class Conn:  # hides the module's
            pass

        def handler(conn: "Conn") -> Any:
            return Conn

        return handler

    handler = make()
    assert annotations(handler) == {"conn": handler(None)}


def test_local_names_are_found_in_the_frames_around_the_function_innermost_first() -> None:
    class Conn:  # hides the module's
        pass

    class Both:
        pass

    outer_both = Both

    def register() -> tuple[Any, Any]:
        class Both:
            pass

        def handler(conn: "Conn", payload: "Both") -> None: ...

        names = enclosing_locals(handler)
        return annotations(handler, scope=Scope(names, __name__)), Both

    found, inner_both = register()
    assert found == {"conn": Conn, "payload": inner_both}
    assert inner_both is not outer_both


def test_a_helper_of_a_decorator_may_stand_between() -> None:
    def helper(func: Any) -> dict[str, Any]:
        return enclosing_locals(func)

    class Local:
        pass

    def handler(conn: "Local") -> None: ...

    assert helper(handler)["Local"] is Local


def test_a_class_body_around_a_function_counts_as_enclosing() -> None:
    class Chat:
        class Message:
            pass

        def handler(conn: "Message") -> None: ...  # type: ignore[misc]  # a function, not yet a method

        found = annotations(handler, scope=Scope(enclosing_locals(handler), __name__))

    assert Chat.found == {"conn": Chat.Message}


def module_level(conn: "Conn") -> None: ...


def test_locals_of_a_caller_that_does_not_enclose_the_function_are_not_used() -> None:
    class Conn:
        pass

    assert Conn not in enclosing_locals(module_level).values()
    assert annotations(module_level, scope=Scope({"Conn": Conn}, __name__)) == {"conn": globals()["Conn"]}


def test_locals_serve_only_functions_of_the_registering_module() -> None:
    def handler(conn: "OnlyLocal") -> None: ...  # type: ignore[name-defined]  # noqa: F821  # given below

    assert annotations(handler, scope=Scope({"OnlyLocal": Conn}, __name__)) == {"conn": Conn}
    with pytest.raises(ConfigurationError, match="OnlyLocal"):
        resolve(handler, scope=Scope({"OnlyLocal": Conn}, "another.module"))


def test_a_closure_variable_without_a_value_yet_does_no_harm() -> None:
    def handler(conn: "Conn") -> Any:
        return later

    found = annotations(handler)
    later = 1
    assert found == {"conn": Conn}
    assert handler(Conn()) == later


@pytest.mark.parametrize(("call", "message"), [(3, "cannot be called"), (dict, "does not tell its parameters")])
def test_what_has_no_signature_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(call)


async def async_function() -> None: ...


async def async_generator() -> Any:
    yield 1


def generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (async_function, Kind.ASYNC),
        (functools.partial(async_function), Kind.ASYNC),
        (Service().async_method, Kind.ASYNC),
        (AsyncService(), Kind.ASYNC),
        (AsyncService, Kind.SYNC),
        (Service().method, Kind.SYNC),
        (lambda: None, Kind.SYNC),
        (len, Kind.SYNC),
        (generator, Kind.GENERATOR),
        (GeneratorService(), Kind.GENERATOR),
        (functools.partial(async_generator), Kind.ASYNC_GENERATOR),
    ],
)
def test_the_kind_of_a_callable_is_known(call: Any, kind: Kind) -> None:
    assert kind_of(call) is kind


def test_a_generator_behind_a_plain_wrapper_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Use the generator function itself"):
        kind_of(contextmanager(generator))


def test_callables_are_described_by_module_and_qualified_name() -> None:
    assert describe(functools.partial(async_function)) == f"{__name__}.async_function"
    assert describe(AsyncService()) == f"{__name__}.AsyncService"
    assert describe(Service().method) == f"{__name__}.Service.method"


def test_metadata_is_collected_from_nested_annotated_types() -> None:
    assert bare(Annotated[Annotated[int, 1], 2]) == (int, (1, 2))
    assert bare(int) == (int, ())
    assert bare(Annotated[Alias, 3]) == (int, (1, 3))


@pytest.mark.parametrize(
    "annotation",
    [Conn, SubConn, Conn | None, Annotated[Conn, 1], Annotated[SubConn | None, 1], BoundConn],
)
def test_a_connection_is_recognised_by_type(annotation: Any) -> None:
    assert means(annotation, Conn)


@pytest.mark.parametrize("annotation", [EMPTY, int, object, Any, list[Conn], int | None, TypeVar("T"), "Conn"])
def test_other_types_are_no_connection(annotation: Any) -> None:
    assert not means(annotation, Conn)


def test_a_dependency_is_found_as_default_or_in_annotated() -> None:
    for found in (
        dependency_of(argument(int, Depends(generator)), "f"),
        dependency_of(argument(Annotated[int, Depends(generator)]), "f"),
        dependency_of(argument(Annotated[int, fastapi.Depends(generator)]), "f"),
    ):
        assert found is not None
        assert found.dependency is generator
    assert dependency_of(argument(int, 3), "f") is None


@pytest.mark.parametrize("given", [argument(Service, Depends()), argument(Annotated[Service, Depends()])])
def test_depends_without_callable_takes_the_annotated_class(given: Argument) -> None:
    found = dependency_of(given, "f")
    assert found is not None
    assert found.dependency is Service


@pytest.mark.parametrize("annotation", [EMPTY, Any, Service | None])
def test_depends_without_callable_needs_a_class(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"f: parameter 'it' says Depends\(\) without what to call"):
        dependency_of(argument(annotation, Depends()), "f")


def test_an_annotated_dependency_with_a_default_value_is_ambiguous() -> None:
    with pytest.raises(ConfigurationError, match="both Depends in its Annotated type and a default"):
        dependency_of(argument(Annotated[int, Depends(generator)], 3), "f")


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (argument(fastapi.Request), "HTTPConnection"),
        (argument(fastapi.Request | None), "HTTPConnection"),
        (argument(fastapi.WebSocket | None, None), "that class alone"),
        (argument(int, fastapi.Body()), "field of the payload"),
        (argument(fastapi.BackgroundTasks), "in the handler"),
        (argument(fastapi.Response), "return the reply"),
        (argument(SecurityScopes), "that class alone"),
    ],
)
def test_what_only_fastapi_could_provide_is_refused_with_the_fix(given: Argument, fix: str) -> None:
    with pytest.raises(ConfigurationError, match=f"f: parameter 'it' .*not available on a WebSocket event; .*{fix}"):
        refuse_fastapi(given, "f")


@pytest.mark.parametrize("given", [argument(), argument(int, 3), argument(Conn | None), argument(Annotated[int, "x"])])
def test_ordinary_parameters_are_not_refused(given: Argument) -> None:
    refuse_fastapi(given, "f")
