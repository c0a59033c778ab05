"""What publishers ask of the servers, as data: no server is needed here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from socketspec.cluster.commands.command import Command
from socketspec.cluster.commands.envelope import decode, decode_body
from socketspec.cluster.commands.failures import UnsureError
from socketspec.cluster.commands.keys import Keys
from socketspec.cluster.publishers.async_publisher import AsyncPublisher
from socketspec.cluster.publishers.publisher import Publisher
from socketspec.cluster.publishers.requests import MAX_BATCH, MAX_BATCH_BYTES, Request, Requests
from socketspec.declaration.contracts import Broadcasts
from socketspec.declaration.rooms import Room
from socketspec.errors import BackendError, ConfigurationError, ContractError, SocketSpecError
from socketspec.protocol.orders import KEPT, control_topic
from socketspec.protocol.publications import History, Position, Receipt, Topic
from socketspec.session.revocation import revocation_subjects

KEYS = Keys("p")
NO_OPTIONS: tuple[tuple[str, ...], None, None] = ((), None, None)
KEEP = Room("log:{n}", history=History(size=7, ttl=60))


class Price(BaseModel):
    symbol: str
    price: float


def requests(**options: Any) -> Requests:
    return Requests(KEYS, **options)


def only(request: Request[Any]) -> Command:
    ((command,),) = request.stages
    return command


def room(name: str) -> Topic:
    return Topic("/", "room", name)


def broadcast(made: Requests, name: str, event: str = "e", payload: object = None) -> Command:
    return only(made.broadcast(name, event, payload, (), None, None))


def test_a_room_declared_without_history_is_sent_to_and_nothing_else() -> None:
    command = broadcast(requests(rooms=["plain"]), "plain", payload={"a": 1})
    assert (command.name, command.script, command.keys) == ("SPUBLISH", None, (KEYS.channel(room("plain")),))
    (frame,) = command.args
    assert isinstance(frame, bytes)
    publication = decode(frame)
    assert publication is not None
    assert (publication.event, publication.payload, publication.exclude) == ("e", b'{"a":1}', ())


def test_a_room_declared_with_history_is_kept_by_its_policy() -> None:
    made = requests(rooms=[KEEP, "{any}"])
    command = only(made.broadcast("log:1", "e", None, (), "once", None))
    assert command.name == "publish"
    assert command.args[:2] == (7, 60_000)
    assert KEYS.idempotency(room("log:1"), "once") in command.keys


def test_the_most_specific_declaration_counts() -> None:
    rooms = [Room("{any}:{n}", history=History(size=3, ttl=5)), Room("log:{n}"), Room("log:1", history=History(size=9))]
    made = requests(rooms=rooms)
    assert broadcast(made, "log:1").args[0] == 9
    assert broadcast(made, "log:2").name == "SPUBLISH"
    assert broadcast(made, "other:2").args[0] == 3


def test_a_room_that_is_not_declared_here_is_kept_as_the_nodes_keep_it() -> None:
    for made in (requests(), requests(rooms=[KEEP])):
        command = broadcast(made, "unknown")
        assert (command.name, command.args[:2]) == ("publish", (0, 0))


def test_every_publication_has_a_tag_of_its_own() -> None:
    made = requests(rooms=[KEEP])
    assert len({broadcast(made, "log:1").args[3] for _ in range(50)}) == 50


def test_who_is_left_out_is_named_one_or_several() -> None:
    made = requests(rooms=["r"])
    for exclude, expected in (("abc", ("abc",)), (["a", "b"], ("a", "b")), ((), ())):
        (frame,) = only(made.broadcast("r", "e", None, exclude, None, None)).args
        assert isinstance(frame, bytes)
        publication = decode(frame)
        assert publication is not None
        assert publication.exclude == expected


def test_a_namespace_is_the_publishers_or_the_calls() -> None:
    made = requests(namespace="/chat", rooms=["r"])
    assert broadcast(made, "r").keys == (KEYS.channel(Topic("/chat", "room", "r")),)
    assert only(made.broadcast("r", "e", None, (), None, "/")).keys == (KEYS.channel(room("r")),)
    assert only(made.broadcast_all("e", None, (), None)).keys == (KEYS.channel(Topic("/chat", "all", "")),)
    assert only(made.send_to_user("u", "e", None, None)).keys == (KEYS.channel(Topic("/chat", "user", "u")),)


def test_disconnecting_counts_first_and_then_tells_every_node() -> None:
    request = requests().disconnect_user("alice", 4000, "bye", None)
    (counting,), (order,) = request.stages
    assert (counting.name, counting.keys) == ("count_members", (KEYS.nodes(Topic("/", "user", "alice")),))
    topic = control_topic("/")
    assert order.keys == (KEYS.meta(topic), KEYS.stream(topic))
    assert order.args[6] == KEYS.channel(topic)
    assert order.args[:2] == (KEPT.size, 1000 * KEPT.ttl)
    assert request.parse([[3, 0], 3]) == 3


def test_revoking_records_every_subject_before_it_tells_the_nodes() -> None:
    request = requests(namespace="/x").revoke("s", "u", "t", 60.0, "stolen", None)
    records, orders = request.stages
    subjects = revocation_subjects("/x", session="s", user="u", token_id="t")
    assert [command.keys for command in records] == [(KEYS.revoked(subject),) for subject in subjects]
    body = orders[0].args[4]
    assert isinstance(body, bytes)
    order = decode_body(body, None)
    assert order is not None
    assert order.event == "revoke"
    assert all(subject.encode() in order.payload for subject in subjects)
    assert b"stolen" in order.payload


def test_replies_become_receipts_counts_and_messages() -> None:
    made = requests(rooms=["r"])
    assert made.broadcast("r", "e", None, (), None, None).parse([2]) == Receipt(2)
    kept = made.broadcast("other", "e", None, (), None, None).parse([[1, 4, b"ep", b"tg", 1]])
    assert kept == Receipt(1, Position(4, "ep", "tg"))
    assert made.count("r", None).parse([[5, 0]]) == 5
    assert made.count("r", None).parse([[0, 1]]) == 0
    assert made.history("other", None, None, None).parse([None]) == []


def test_a_room_declared_without_history_has_none_to_read() -> None:
    with pytest.raises(ValueError, match="keeps no history"):
        requests(rooms=["r"]).history("r", None, None, None)


@given(st.integers(min_value=0, max_value=3 * MAX_BATCH + 1))
def test_many_messages_become_full_batches_in_order(count: int) -> None:
    made = requests(rooms=["{r}"])
    batches = made.broadcast_many(((str(n), "e", {"n": n}) for n in range(count)), None).batches
    sizes = [len(batch) for batch in batches]
    assert sizes == [MAX_BATCH] * (count // MAX_BATCH) + [count % MAX_BATCH] * (count % MAX_BATCH > 0)
    keys = [command.keys for batch in batches for command in batch]
    assert keys == [(KEYS.channel(room(str(n))),) for n in range(count)]


def test_a_batch_of_large_messages_is_sent_earlier() -> None:
    text = "x" * (MAX_BATCH_BYTES // 3)
    many = requests().broadcast_many((("r", "e", {"text": text}) for _ in range(7)), None)
    assert [len(batch) for batch in many.batches] == [3, 3, 1]


def test_a_message_that_cannot_be_encoded_is_found_before_any_is_sent() -> None:
    good: list[tuple[str, str, object]] = [("r", "e", None)] * (2 * MAX_BATCH)
    with pytest.raises(TypeError) as caught:
        requests().broadcast_many([*good, ("r", "e", {"x": object()})], None)
    assert caught.value.__notes__ == [f"broadcast_many: message {len(good) + 1}; none was sent"]


SENT, UNSENT, UNSURE = 1, BackendError("refused"), UnsureError("it may have been executed")


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        ([UNSENT] * 2, "None of 1000 messages was sent. The first that was not sent is number 1: refused"),
        ([SENT, UNSENT], "999 of 1000 messages were not sent, 1 were sent. The first .* not sent is number 2: refused"),
        (
            [UNSENT, SENT, UNSURE, UNSURE],
            "2 of 1000 messages may have been sent, or not; 997 were not sent, 1 were sent. "
            "The first that may have been sent is number 3: it may have been executed",
        ),
    ],
)
def test_an_error_of_many_counts_over_all_that_were_given_and_the_worst_case_names_it(
    outcomes: list[Any], text: str
) -> None:
    many = requests(rooms=["r"]).broadcast_many([("r", "e", None)] * 1000, None)
    with pytest.raises(BackendError, match=f"^{text}"):
        many.took(outcomes)
    later = requests(rooms=["r"]).broadcast_many([("r", "e", None)] * 1500, None)
    later.took([SENT] * 500)
    with pytest.raises(BackendError, match=r"^1000 of 1500 messages .* 500 were sent.*number 501"):
        later.took([UNSENT] * 500)


def test_an_error_of_two_stages_says_what_the_first_has_done() -> None:
    request = requests().revoke(None, "u", None, 60.0, "", None)
    with pytest.raises(BackendError, match=r"^refused"):
        request.result([[UNSENT]])
    with pytest.raises(BackendError, match=r"^The revocation is recorded.* may have stayed open.* refused"):
        request.result([[1], [UNSENT]])
    with pytest.raises(BackendError, match=r"^Nobody was disconnected.* refused"):
        requests().disconnect_user("u", 4000, "", None).result([[UNSENT]])


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda made: made.broadcast("", "e", None, (), None, None), "room name '' is empty"),
        (lambda made: made.broadcast("r\n", "e", None, (), None, None), "control character"),
        (lambda made: made.broadcast("r", "", None, (), None, None), "event name '' is empty"),
        (lambda made: made.broadcast("r", "__ack__", None, (), None, None), "reserved"),
        (lambda made: made.broadcast("r", "e", None, (), "", None), "idempotency_key"),
        (lambda made: made.broadcast("r", "e", None, (), None, "chat"), "does not start with"),
        (lambda made: made.broadcast_all("__x__", None, (), None), "reserved"),
        (lambda made: made.send_to_user("", "e", None, None), "user id '' is empty"),
        (lambda made: made.disconnect_user("u", 1001, "", None), "close code 1001"),
        (lambda made: made.disconnect_user("", 4000, "", None), "user id"),
        (lambda made: made.revoke(None, None, None, 60.0, "", None), "say what"),
        (lambda made: made.revoke(None, "u", None, 0, "", None), "more than 0 seconds"),
        (lambda made: made.revoke(None, "u", None, float("nan"), "", None), "more than 0 seconds"),
        (lambda made: made.count(" r", None), "white space"),
        (lambda made: made.broadcast_many([("r", "e", None), ("", "e", None)], None), "room name"),
        (lambda made: made.broadcast_many([("r", "e", None), ("r", "e")], None), "message 2 must be .room, event, pay"),
        (lambda made: made.broadcast_many(["ree"], None), "message 1 must be .*not 'ree'"),
        (lambda made: made.history("r", -1, None, None), r"history\(limit=-1\) must be a whole number"),
        (lambda made: made.history("r", True, None, None), r"history\(limit=True\) must be a whole number"),
    ],
)
def test_what_an_app_would_refuse_is_refused_here_in_a_sentence(
    call: Callable[[Requests], object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        call(requests())


@pytest.mark.parametrize("payload", ["text", 1, [1], object(), {"x": object()}])
def test_a_payload_that_cannot_be_sent_is_a_type_error(payload: object) -> None:
    with pytest.raises(TypeError):
        broadcast(requests(), "r", payload=payload)


def test_whoever_is_left_out_must_be_named_by_id() -> None:
    for exclude in ([1], 5):
        with pytest.raises(TypeError, match="ids of connections, not int"):
            requests().broadcast("r", "e", None, exclude, None, None)  # type: ignore[arg-type] # what untyped code passes


def test_a_history_is_read_from_a_position() -> None:
    with pytest.raises(TypeError, match=r"history\(since=5\) must be a Position"):
        requests().history("r", None, 5, None)  # type: ignore[arg-type] # what untyped code passes


def declared() -> Requests:
    return requests(
        broadcasts=[Broadcasts("price", room="prices:{symbol}", model=Price), Broadcasts("note"), Broadcasts("news")]
    )


def test_what_is_declared_may_be_sent_as_a_model_or_as_a_dict() -> None:
    for payload in (Price(symbol="A", price=1.5), {"symbol": "A", "price": 1.5}):
        assert b"1.5" in bytes(broadcast(declared(), "prices:A", "price", payload).args[4])  # type: ignore[arg-type] # the body
    broadcast(declared(), "anywhere", "note", {"any": "thing"})
    only(declared().broadcast_all("note", None, (), None))
    only(declared().send_to_user("u", "news", {}, None))


@pytest.mark.parametrize(
    ("name", "event", "payload", "complaint"),
    [
        ("prices:A", "price", {"symbol": "A", "price": "dear"}, "does not fit 'Price': price: "),
        ("prices:A", "price", None, "does not fit 'Price': symbol: "),
        ("orders:A", "price", {"symbol": "A", "price": 1}, "'price' to room 'orders:A'"),
        (
            "prices:A",
            "prise",
            {"symbol": "A", "price": 1},
            r"'prise' to room .* price → prices:\{symbol\}, note",
        ),
    ],
)
def test_anything_else_is_a_contract_error_that_says_how_it_differs(
    name: str, event: str, payload: object, complaint: str
) -> None:
    with pytest.raises(ContractError, match=complaint):
        broadcast(declared(), name, event, payload)


def test_an_event_declared_for_rooms_is_for_no_user_and_not_for_everybody() -> None:
    payload = {"symbol": "A", "price": 1}
    with pytest.raises(ContractError, match="'price' to a user, which it does not declare"):
        declared().send_to_user("u", "price", payload, None)
    with pytest.raises(ContractError, match="'price' to everybody, which it does not declare"):
        declared().broadcast_all("price", payload, (), None)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"namespace": "chat"}, "does not start with"),
        ({"rooms": "chat"}, "must be a list"),
        ({"rooms": [1]}, "must be a list"),
        ({"rooms": ["{"]}, "never closed"),
        ({"rooms": ["chat", Room("chat")]}, "declared twice"),
        ({"broadcasts": ["price"]}, "Broadcasts"),
        ({"broadcasts": [Broadcasts("__x__")]}, "reserved"),
        ({"broadcasts": [Broadcasts("")]}, "is empty"),
        ({"broadcasts": [Broadcasts("a", room="{")]}, "never closed"),
        ({"broadcasts": [Broadcasts("a", model=int)]}, "cannot be a payload"),
        ({"prefix": "a b"}, "prefix"),
        ({"timeout": 0}, "^timeout=0 must be a number of seconds from 0.05 to 60"),
        ({"retries": 3}, "no option 'retries'; the options are: .*connect_timeout"),
        ({"ca_certs": "/nowhere.pem"}, "ca_certs"),
        ({"ca_certs": 5}, "ca_certs"),
        ({"url": 5}, "must be a str"),
    ],
)
@pytest.mark.parametrize("kind", [Publisher, AsyncPublisher])
def test_options_that_cannot_work_are_refused_at_once(
    options: dict[str, Any], complaint: str, kind: type[Publisher | AsyncPublisher]
) -> None:
    url = "rediss://localhost" if "ca_certs" in options else "redis://localhost"
    with pytest.raises(ConfigurationError, match=complaint):
        kind(**{"url": url, **options})


def test_without_a_url_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCKETSPEC_BACKEND", "redis://from-environment:7000?prefix=shop")
    assert repr(Publisher()) == "<Publisher from-environment:7000 prefix='shop'>"
    assert repr(Publisher("redis://given", prefix="x")) == "<Publisher given:6379 prefix='x'>"


@pytest.mark.parametrize(
    ("value", "complaint"), [(None, "SOCKETSPEC_BACKEND"), ("", "pass it"), ("memory", "share"), (" Memory", "share")]
)
def test_without_a_shared_backend_there_is_nobody_to_send_to(
    value: str | None, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("SOCKETSPEC_BACKEND", raising=False)
    else:
        monkeypatch.setenv("SOCKETSPEC_BACKEND", value)
    with pytest.raises(ConfigurationError, match=complaint):
        Publisher()


def test_a_password_is_in_no_text() -> None:
    publisher = Publisher("redis://user:s3cret@localhost", timeout=0.2)
    assert "s3cret" not in repr(publisher)
    publisher.close()
    with pytest.raises(SocketSpecError) as caught:
        publisher.count("r")
    assert "s3cret" not in str(caught.value)
