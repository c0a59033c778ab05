"""Handlers compiled to plans. Every annotation here is a string, as in modules with this import:"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import fastapi
import pytest
from pydantic import BaseModel

from socketspec.declaration.dependencies import Depends
from socketspec.declaration.plans import HandlerPlan, compile_handler, compile_hook
from socketspec.declaration.shapes import Shape
from socketspec.declaration.signatures import enclosing_locals
from socketspec.errors import ConfigurationError

if TYPE_CHECKING:
    from decimal import Decimal


class Conn:
    def __init__(self) -> None:
        self.log: list[str] = []


class Db:
    pass


class Message(BaseModel):
    text: str


class Ack(BaseModel):
    ok: bool


Overrides = dict[Callable[..., Any], Callable[..., Any]]


def compiled(func: Any, overrides: Overrides | None = None) -> HandlerPlan:
    return compile_handler(
        func,
        connection_type=Conn,
        caller_locals=enclosing_locals(func),
        overrides=overrides or {},
        response_model=None,  # replies of all kinds are looked at here, not sent
    )


def refused(func: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        compiled(func)


# --- shapes


async def test_an_async_handler_without_dependencies_is_called_directly() -> None:
    async def handler(conn: Conn, payload: Message) -> Ack | None:
        return Ack(ok=payload.text == "hi")

    plan = compiled(handler)

    assert plan.call is handler
    assert plan.name.endswith("test_an_async_handler_without_dependencies_is_called_directly.<locals>.handler")
    assert plan.payload is not None
    assert plan.payload.annotation is Message
    assert plan.returns == Ack | None
    assert await plan.call(Conn(), Message(text="hi")) == Ack(ok=True)


async def test_a_handler_may_do_without_a_payload() -> None:
    async def handler(conn: Conn) -> Conn:
        return conn

    plan, conn = compiled(handler), Conn()

    assert plan.payload is None
    assert await plan.call(conn, {"ignored": 1}) is conn


async def test_models_local_to_a_function_are_found() -> None:
    class Local(BaseModel):
        x: int
        inner: Inner

    class Inner(BaseModel):
        y: int

    def get_inner(conn: Conn, inner: Annotated[Inner, Depends(make_inner)]) -> Inner:
        return inner

    def make_inner() -> Inner:
        return Inner(y=1)

    async def handler(conn: Conn, payload: Local, inner: Annotated[Inner, Depends(get_inner)]) -> list[Local]:
        return [payload, Local(x=2, inner=inner)]

    plan = compiled(handler)

    assert plan.payload is not None
    payload = plan.payload.validate({"x": 1, "inner": {"y": 2}})
    assert await plan.call(Conn(), payload) == [Local(x=1, inner=Inner(y=2)), Local(x=2, inner=Inner(y=1))]
    assert plan.returns == list[Local]


def test_an_unannotated_second_parameter_is_a_dict_and_nothing_returned_is_any() -> None:
    plan = compiled(lambda conn, payload: None)

    assert plan.payload is not None
    assert plan.payload.is_plain
    assert plan.returns is Any


def test_a_handler_that_returns_none_declares_none() -> None:
    async def handler(conn: Conn) -> None: ...

    assert compiled(handler).returns is type(None)


async def test_a_payload_may_follow_a_dependency_and_a_second_connection() -> None:
    async def handler(
        conn: Conn, n: Annotated[int, Depends(lambda: 1)], same: Conn | None, payload: Message, limit: int = 5
    ) -> object:
        return n, same is conn, payload.text, limit

    assert await compiled(handler).call(Conn(), Message(text="hi")) == (1, True, "hi", 5)


async def test_plain_defaults_and_keyword_only_parameters_are_left_alone() -> None:
    async def handler(conn: Conn, payload: Message, a: int = 1, *, b: int = 2, c: Conn) -> object:
        return payload.text, a, b, c is conn

    assert await compiled(handler).call(Conn(), Message(text="x")) == ("x", 1, 2, True)


class Chat:
    async def method(self, conn: Conn, payload: Message) -> str:
        return payload.text

    async def __call__(self, conn: Conn, payload: Message) -> str:
        return payload.text


async def with_option(option: int, conn: Conn, payload: Message, *, extra: int) -> str:
    return f"{payload.text}{option}{extra}"


@pytest.mark.parametrize(
    ("handler", "expected"),
    [(Chat().method, "x"), (Chat(), "x"), (functools.partial(with_option, 1, extra=2), "x12")],
    ids=["bound method", "callable instance", "partial"],
)
async def test_handlers_may_be_methods_objects_and_partials(handler: Any, expected: str) -> None:
    assert await compiled(handler).call(Conn(), Message(text="x")) == expected


async def test_a_sync_handler_runs_in_a_thread() -> None:
    def handler(conn: Conn, payload: Message) -> str:
        return threading.current_thread().name

    plan = compiled(handler)

    assert await plan.call(Conn(), Message(text="x")) != threading.current_thread().name


async def test_a_lambda_that_returns_a_coroutine_is_awaited() -> None:
    async def answer(text: str) -> str:
        return text

    assert await compiled(lambda conn, payload: answer(payload["text"])).call(Conn(), {"text": "hi"}) == "hi"


async def test_a_handler_wrapped_by_an_undeclared_async_wrapper_works() -> None:
    async def inner(conn: Conn, payload: Message) -> str:
        return payload.text

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    assert await compiled(outer).call(Conn(), Message(text="hi")) == "hi"


class View:
    async def handle(self, conn: Conn) -> None: ...


def no_parameters() -> None: ...
def variadic(*args: Any) -> None: ...
def variadic_payload(conn: Conn, *args: Any) -> None: ...
def keyword_only(*, conn: Conn) -> None: ...
def payload_first(payload: Message, conn: Conn) -> None: ...
def dependency_first(db: Annotated[Db, Depends(Db)]) -> None: ...
def websocket_first(ws: fastapi.WebSocket) -> None: ...
def generator(conn: Conn) -> Iterator[int]:
    yield 1


async def async_generator(conn: Conn) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (no_parameters, "takes no parameters"),
        (variadic, r"begins with \*args.*functools\.wraps"),
        (variadic_payload, r"\*args would stay empty"),
        (keyword_only, "by position, but 'conn' cannot"),
        (payload_first, "first parameter gets the connection, but 'payload'"),
        (dependency_first, "first parameter gets the connection, but 'db'"),
        (View, "is a class"),
        (View.handle, "bound method"),
        (generator, "is a generator"),
        (async_generator, "is an async generator"),
        (3, "3 is not a function"),
    ],
)
def test_wrong_shapes_are_refused_and_the_right_one_is_shown(handler: Any, message: str) -> None:
    refused(handler, rf"(?s)({message}).*async def handler\(conn: Connection, payload: Model\)")


def test_a_first_parameter_may_be_a_base_class_of_the_connection_or_anything() -> None:
    async def takes_object(conn: object) -> None: ...
    async def takes_any(conn: Any) -> None: ...
    async def takes_optional(conn: Conn | None) -> None: ...

    for handler in (takes_object, takes_any, takes_optional):
        assert compiled(handler).payload is None


@pytest.mark.parametrize("annotation", ["str", "int", "list[int]", "Message | None", "Db"])
def test_a_payload_that_is_no_object_is_refused_by_name(annotation: str) -> None:
    async def handler(conn: Conn, body: Any) -> None: ...

    handler.__annotations__["body"] = annotation
    refused(handler, r"handler: parameter 'body' is the payload\. .*always an object.*async def handler")


def test_types_known_only_to_type_checkers_are_refused_by_name() -> None:
    async def handler(conn: Conn, payload: Message, amount: Annotated[Decimal, Depends(Db)]) -> None: ...
    async def returning(conn: Conn) -> Decimal: ...  # type: ignore[empty-body]  # never called

    refused(handler, "parameter 'amount' needs 'Decimal'.*at run time")
    refused(returning, "the return value needs 'Decimal'")


def test_a_parameter_that_nothing_provides_is_refused() -> None:
    async def handler(conn: Conn, payload: Message, extra: int) -> None: ...
    def needy(db: Db) -> None: ...
    async def nested(conn: Conn, payload: Message, x: None = Depends(needy)) -> None: ...

    refused(handler, r"handler: nothing provides parameter 'extra'\. Give it a default or Depends")
    refused(nested, "needy: nothing provides parameter 'db'")


def test_fastapi_parameters_are_refused_wherever_they_are() -> None:
    def from_request(request: fastapi.Request) -> str:
        return request.method

    async def first(ws: fastapi.WebSocket) -> None: ...
    async def second(conn: Conn, request: fastapi.Request) -> None: ...
    async def nested(conn: Conn, method: str = Depends(from_request)) -> None: ...

    for handler in (first, second, nested):
        refused(handler, "not available on a WebSocket event; .*`conn: Connection`")


# --- dependencies


async def test_dependencies_of_every_form_are_provided() -> None:
    class Settings:
        def __init__(self, conn: Conn) -> None:
            self.conn = conn

    @dataclass(frozen=True)
    class Need:
        role: str

        async def __call__(self, conn: Conn) -> str:
            return self.role

    class Factory:
        def make(self) -> str:
            return "method"

    def scaled(factor: int, *, by: int) -> int:
        return factor * by

    async def handler(
        conn: Conn,
        payload: Message,
        settings: Annotated[Settings, Depends()],
        role: str = Depends(Need("admin")),
        made: str = Depends(Factory().make),
        part: int = Depends(functools.partial(scaled, 2, by=3)),
        theirs: int = fastapi.Depends(lambda: 7),
    ) -> object:
        return settings.conn is conn, role, made, part, theirs

    plan = compiled(handler)

    assert await plan.call(Conn(), Message(text="x")) == (True, "admin", "method", 6, 7)


async def test_one_event_calls_a_dependency_once_and_the_next_event_again() -> None:
    calls: list[str] = []

    async def base() -> int:
        calls.append("base")
        return len(calls)

    async def left(n: int = Depends(base)) -> int:
        return n

    async def right(n: int = Depends(base)) -> int:
        return n

    async def handler(conn: Conn, a: int = Depends(left), b: int = Depends(right), c: int = Depends(base)) -> object:
        return a, b, c

    plan = compiled(handler)

    assert await plan.call(Conn(), {}) == (1, 1, 1)
    assert await plan.call(Conn(), {}) == (2, 2, 2)


async def test_a_dependency_without_cache_is_called_for_each_parameter() -> None:
    calls: list[int] = []

    async def base() -> int:
        calls.append(1)
        return len(calls)

    async def handler(
        conn: Conn, a: int = Depends(base, use_cache=False), b: int = Depends(base, use_cache=False)
    ) -> object:
        return a, b

    assert await compiled(handler).call(Conn(), {}) == (1, 2)


async def test_bound_methods_of_one_object_share_the_cache_and_of_two_do_not() -> None:
    class Counter:
        def __init__(self) -> None:
            self.count = 0

        async def next(self) -> int:
            self.count += 1
            return self.count

    one, two = Counter(), Counter()

    async def handler(
        conn: Conn, a: int = Depends(one.next), b: int = Depends(one.next), c: int = Depends(two.next)
    ) -> None: ...

    await compiled(handler).call(Conn(), {})
    assert (one.count, two.count) == (1, 1)


async def test_dependencies_that_cannot_be_hashed_work() -> None:
    @dataclass
    class Unhashable:
        value: int

        async def __call__(self) -> int:
            return self.value

    one = Unhashable(1)

    async def handler(conn: Conn, a: int = Depends(one), b: int = Depends(Unhashable(2))) -> object:
        return a, b

    assert await compiled(handler).call(Conn(), {}) == (1, 2)


async def test_positional_only_and_defaulted_parameters_of_a_dependency_are_filled_rightly() -> None:
    db = Db()

    async def first(conn: Conn, /, kept: Db = db, *, other: Conn) -> object:
        return kept is db, other is conn

    async def handler(conn: Conn, got: object = Depends(first)) -> object:
        return got

    assert await compiled(handler).call(Conn(), {}) == (True, True)


def test_a_positional_only_parameter_after_a_default_is_refused() -> None:
    db = Db()

    async def odd(db: Db = db, conn: Conn | None = None, /) -> None: ...
    async def handler(conn: Conn, got: None = Depends(odd)) -> None: ...

    refused(handler, "odd: positional-only parameter 'conn'")


async def first_of_circle(x: Annotated[int, Depends(second_of_circle)]) -> int:
    return x


async def second_of_circle(x: Annotated[int, Depends(first_of_circle)]) -> int:
    return x


def test_a_circle_of_dependencies_is_shown() -> None:
    async def before(x: int = Depends(first_of_circle)) -> None: ...
    async def handler(conn: Conn, x: None = Depends(before)) -> None: ...

    refused(handler, r"circle: \S+\.first_of_circle -> \S+\.second_of_circle -> \S+\.first_of_circle\.$")


async def test_overrides_replace_dependencies_with_their_own_parameters() -> None:
    async def get_db() -> str:
        return "real"

    async def get_user(db: str = Depends(get_db)) -> str:
        return f"user of {db}"

    def fake_db(conn: Conn, suffix: str = Depends(lambda: "!")) -> str:
        return f"fake{suffix}"

    async def handler(conn: Conn, user: str = Depends(get_user), db: str = Depends(get_db)) -> object:
        return user, db

    assert await compiled(handler).call(Conn(), {}) == ("user of real", "real")
    assert await compiled(handler, {get_db: fake_db}).call(Conn(), {}) == ("user of fake!", "fake!")


# --- clean-up


async def outer_resource(conn: Conn) -> AsyncIterator[str]:
    conn.log.append("+outer")
    try:
        yield "outer"
    except BaseException as error:
        conn.log.append(f"outer saw {type(error).__name__}")
        raise
    finally:
        conn.log.append("-outer")


def inner_resource(conn: Conn, outer: str = Depends(outer_resource)) -> Iterator[str]:
    conn.log.append("+inner")
    try:
        yield f"inner of {outer}"
    except ValueError:
        conn.log.append("inner swallowed it")
    finally:
        conn.log.append("-inner")


async def use_resources(conn: Conn, payload: dict[str, Any], inner: str = Depends(inner_resource)) -> str:
    conn.log.append(inner)
    if wait := payload.get("wait"):
        wait.set()
        await asyncio.Event().wait()
    if payload.get("fail"):
        raise ValueError("the handler's")
    return "done"


async def test_clean_up_runs_in_reverse_order_before_the_call_returns() -> None:
    conn = Conn()
    assert await compiled(use_resources).call(conn, {}) == "done"
    assert conn.log == ["+outer", "+inner", "inner of outer", "-inner", "-outer"]


async def test_an_error_that_a_dependency_swallows_still_fails_the_event_and_reaches_outer_ones() -> None:
    conn = Conn()
    with pytest.raises(ValueError, match="the handler's"):
        await compiled(use_resources).call(conn, {"fail": True})
    assert conn.log[3:] == ["inner swallowed it", "-inner", "outer saw ValueError", "-outer"]


async def test_cancellation_cleans_up() -> None:
    conn, waiting = Conn(), asyncio.Event()
    task = asyncio.create_task(compiled(use_resources).call(conn, {"wait": waiting}))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert conn.log[3:] == ["-inner", "outer saw CancelledError", "-outer"]


async def test_a_dependency_may_replace_the_handlers_error() -> None:
    async def translate() -> AsyncIterator[None]:
        try:
            yield
        except KeyError as error:
            raise LookupError("translated") from error

    async def handler(conn: Conn, _: None = Depends(translate)) -> None:
        raise KeyError

    with pytest.raises(LookupError, match="translated"):
        await compiled(handler).call(Conn(), {})


@pytest.mark.parametrize("in_thread", [False, True])
async def test_an_error_in_a_clean_up_is_the_handlers_error(in_thread: bool) -> None:
    async def failing() -> AsyncIterator[None]:
        yield
        raise OSError("clean-up")

    def failing_in_thread() -> Iterator[None]:
        yield
        raise OSError("clean-up")

    async def handler(conn: Conn, _: None = Depends(failing)) -> str:
        return "done"

    plan = compiled(handler, {failing: failing_in_thread} if in_thread else None)
    with pytest.raises(OSError, match="clean-up"):
        await plan.call(Conn(), {})


async def test_what_was_entered_is_left_when_a_later_dependency_fails() -> None:
    async def broken(outer: str = Depends(outer_resource)) -> None:
        raise RuntimeError("broken")

    async def handler(conn: Conn, _: None = Depends(broken)) -> None: ...

    conn = Conn()
    with pytest.raises(RuntimeError, match="broken"):
        await compiled(handler).call(conn, {})
    assert conn.log == ["+outer", "outer saw RuntimeError", "-outer"]


# --- hooks


async def async_hook(conn: Conn, section: str) -> str:
    return section


def sync_hook(conn: Conn, *, section: str) -> str:
    return threading.current_thread().name


GUARD = Shape(what="a room guard", positional=("conn",), keywords=("section",))


def test_an_async_hook_that_gets_what_it_is_passed_is_called_directly() -> None:
    passed = Shape(what="a hook", positional=("conn", "section"))
    assert compile_hook(async_hook, passed, connection_type=Conn).call is async_hook


async def test_what_is_passed_by_name_reaches_a_hook_whichever_way_it_takes_it() -> None:
    async def variadic(conn: Conn, **variables: str) -> str:
        return variables["section"]

    async def with_default(conn: Conn, flag: int = 0, section: str = "") -> str:
        return section

    for hook in (async_hook, variadic, with_default):
        assert await compile_hook(hook, GUARD, connection_type=Conn).call(Conn(), "x") == "x"


async def test_a_sync_hook_runs_in_a_thread() -> None:
    plan = compile_hook(sync_hook, GUARD, connection_type=Conn)
    assert await plan.call(Conn(), "x") != threading.current_thread().name


def hook_without_section(conn: Conn) -> None: ...
def hook_that_wants_more(conn: Conn, section: str, more: int) -> None: ...


@pytest.mark.parametrize(
    "hook", [hook_without_section, hook_that_wants_more, generator, async_generator, View, 3, no_parameters]
)
def test_a_hook_that_cannot_be_called_so_is_refused_with_the_right_signature(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be a room guard.*async def \w+\(conn, \*, section\)"):
        compile_hook(hook, GUARD, connection_type=Conn)
