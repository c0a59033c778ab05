"""Names in Redis: each argument its own, nothing crosses, nothing forms a pattern."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from socketspec.cluster.commands.keys import Keys
from socketspec.errors import ConfigurationError
from socketspec.protocol.publications import Topic

KEYS = Keys("app")
text = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=30),
    st.text("ab:{}*?[]%~/\\ \r\n\0.", max_size=12),
    st.text("a", min_size=95, max_size=110),
    st.sampled_from(["%7B", "%2A", "a:b", "a}:channel", "x" * 300]),
)
topics = st.builds(Topic, text, st.sampled_from(["room", "all", "user", "control"]), text)

MAKERS: dict[str, Callable[[Keys, Topic, str], bytes]] = {
    "channel": lambda keys, topic, _: keys.channel(topic),
    "stream": lambda keys, topic, _: keys.stream(topic),
    "meta": lambda keys, topic, _: keys.meta(topic),
    "idempotency": lambda keys, topic, part: keys.idempotency(topic, part),
    "nodes": lambda keys, topic, _: keys.nodes(topic),
    "members": lambda keys, topic, part: keys.members(topic, part),
    "told": lambda keys, topic, part: keys.told(topic, part),
    "leases": lambda keys, topic, _: keys.leases(topic.namespace),
    "node_topics": lambda keys, topic, part: keys.node_topics(topic.namespace, part),
    "bucket": lambda keys, _, part: keys.bucket(part),
    "session": lambda keys, _, part: keys.session(part),
    "revoked": lambda keys, _, part: keys.revoked(part),
    "probe": lambda keys, _, part: keys.probe(part, "tag"),
}
OF_A_TOPIC = ("channel", "stream", "meta", "idempotency", "nodes", "members", "told")
USES_PART = ("idempotency", "members", "told", "node_topics", "bucket", "session", "revoked", "probe")
USES_NAMESPACE = ("leases", "node_topics")


def identity(maker: str, topic: Topic, part: str) -> tuple[object, ...]:
    """What the name made by `maker` stands for: names are to be equal exactly where this is."""
    place: object = topic if maker in OF_A_TOPIC else topic.namespace if maker in USES_NAMESPACE else None
    return (maker, place, part if maker in USES_PART else None)


def hash_tag(name: bytes) -> bytes:
    """What Redis Cluster hashes: what stands in the first pair of braces, if that is not empty."""
    start = name.find(b"{")
    end = name.find(b"}", start + 1)
    return name[start + 1 : end] if start >= 0 and end > start + 1 else name


makers = st.sampled_from(sorted(MAKERS))


@given(topic=topics)
@example(topic=Topic("", "all", ""))
@example(topic=Topic("/", "room", "\ud83d\ude00"))
def test_a_channel_says_which_topic_it_carries(topic: Topic) -> None:
    assert KEYS.topic(KEYS.channel(topic)) == topic


@given(one=st.tuples(makers, topics, text), other=st.tuples(makers, topics, text))
def test_two_names_are_equal_only_where_they_stand_for_the_same(
    one: tuple[str, Topic, str], other: tuple[str, Topic, str]
) -> None:
    names = [MAKERS[maker](KEYS, topic, part) for maker, topic, part in (one, other)]
    assert (names[0] == names[1]) == (identity(*one) == identity(*other))


@given(namespace=text, name=text, maker=st.sampled_from(OF_A_TOPIC))
def test_moving_the_border_between_parts_gives_another_name(namespace: str, name: str, maker: str) -> None:
    joined = namespace + ":" + name
    assume((joined, "") != (namespace, name))
    make = MAKERS[maker]
    assert make(KEYS, Topic(namespace, "room", name), "n") != make(KEYS, Topic(joined, "room", ""), "n")
    assert make(KEYS, Topic(namespace, "room", name), "n") != make(KEYS, Topic("", "room", joined), "n")


@given(topic=topics, part=text)
def test_all_keys_of_a_topic_share_a_hash_tag_of_the_topics_own(topic: Topic, part: str) -> None:
    tags = {hash_tag(MAKERS[maker](KEYS, topic, part)) for maker in OF_A_TOPIC}
    assert len(tags) == 1
    assert hash_tag(KEYS.channel(topic._replace(name=topic.name + "x"))) not in tags


@given(maker=makers, topic=topics, part=text)
def test_a_name_holds_no_glob_character_no_space_and_one_pair_of_braces(maker: str, topic: Topic, part: str) -> None:
    name = MAKERS[maker](KEYS, topic, part)
    assert re.fullmatch(rb"app:\{[A-Za-z0-9_.:%~-]+\}[A-Za-z0-9_.:%~-]*", name) is not None


@given(maker=makers, topic=topics, part=text)
def test_an_acl_pattern_of_the_prefix_covers_every_name_and_no_name_of_another_prefix(
    maker: str, topic: Topic, part: str
) -> None:
    prefix = "a-b.c:d_e"
    pattern = f"{prefix}:{{".encode()  # a "*" follows
    for db in (0, 1):
        assert MAKERS[maker](Keys(prefix, db), topic, part).startswith(pattern)
    for other in ("a-b.c", "a-b.c:d_e:live", "a-b.c:d_e:", "a-b.c:d_ef"):
        assert not MAKERS[maker](Keys(other), topic, part).startswith(pattern)


@given(one=st.tuples(makers, topics, text), other=st.tuples(makers, topics, text))
def test_no_name_under_one_prefix_is_a_name_under_another(
    one: tuple[str, Topic, str], other: tuple[str, Topic, str]
) -> None:
    names = [
        MAKERS[maker](Keys(prefix), topic, part)
        for prefix, (maker, topic, part) in zip(["a", "b"], (one, other), strict=True)
    ]
    nested = MAKERS[other[0]](Keys("a:room"), other[1], other[2])
    assert names[0] not in (names[1], nested)


@given(topic=topics, maker=st.sampled_from(sorted(set(MAKERS) - {"channel"})), part=text)
def test_a_name_that_is_no_topics_channel_has_no_topic(topic: Topic, maker: str, part: str) -> None:
    assert KEYS.topic(MAKERS[maker](KEYS, topic, part)) is None
    assert KEYS.topic(Keys("other").channel(topic)) is None


@given(
    data=st.one_of(
        st.binary(max_size=60), st.binary(max_size=30).map(lambda part: b"app:{room:" + part + b":x}:channel")
    )
)
@example(data=b"app:{room:%2f:x}:channel")
@example(data=b"app:{room:%41:x}:channel")
@example(data=b"app:{room:%FF:x}:channel")
@example(data=b"app:{room:%:x}:channel")
@example(data=b"app:{room:a:x}:channel\n")
@example(data=b"app:{rooms:a:x}:channel")
def test_any_bytes_are_the_channel_of_at_most_one_topic(data: bytes) -> None:
    topic = KEYS.topic(data)
    assert topic is None or KEYS.channel(topic) == data


@pytest.mark.parametrize(
    "data", [b"app:{room:%2f:x}:channel", b"app:{room:%41:x}:channel", b"app:{room:%FF:x}:channel", b"\xff"]
)
def test_another_spelling_of_a_channel_is_foreign(data: bytes) -> None:
    assert KEYS.topic(data) is None


def test_the_layout_is_this() -> None:
    topic = Topic("/", "room", "orders:1")
    assert KEYS.channel(topic) == b"app:{room:%2F:orders%3A1}:channel"
    assert KEYS.members(topic, "n1") == b"app:{room:%2F:orders%3A1}:members:n1"
    assert KEYS.leases("/") == b"app:{nodes:%2F}:leases"
    assert KEYS.probe("n1", "3560") == b"app:{3560}:probe:n1"
    assert Keys().prefix == "socketspec"


@given(topic=topics)
def test_channels_of_different_databases_are_different_and_only_their_own_are_understood(topic: Topic) -> None:
    databases = [Keys("app"), Keys("app", 1), Keys("app", 11)]
    channels = [keys.channel(topic) for keys in databases]
    assert [[keys.topic(channel) for channel in channels] for keys in databases] == [
        [topic, None, None],
        [None, topic, None],
        [None, None, topic],
    ]
    assert len({hash_tag(channel) for channel in channels}) == 1


def test_what_is_heard_carries_the_number_of_the_database_and_what_is_kept_does_not() -> None:
    topic = Topic("/", "room", "orders:1")
    assert Keys("app", 3).channel(topic) == b"app:{room:%2F:orders%3A1}:channel:3"
    assert Keys("app", 3).probe("n1", "3560") == b"app:{3560}:probe:n1:3"
    assert Keys("app", 3).stream(topic) == KEYS.stream(topic)
    assert Keys("app", 0).channel(topic) == KEYS.channel(topic)


def test_leases_and_the_topics_of_a_node_share_a_hash_tag() -> None:
    assert hash_tag(KEYS.leases("/a")) == hash_tag(KEYS.node_topics("/a", "n")) != hash_tag(KEYS.leases("/b"))


def test_names_of_secrets_do_not_hold_them() -> None:
    assert b"topsecret" not in KEYS.session("topsecret") + KEYS.revoked("topsecret")


def test_long_parts_are_hashed_to_a_bounded_length() -> None:
    long = "ü" * 10_000
    assert len(KEYS.bucket(long)) < 100
    assert len(KEYS.idempotency(Topic("/", "room", "x"), long)) < 100


@pytest.mark.parametrize("prefix", ["", "a" * 65, "a b", "a*", "{a}", "ä", "a\n", "a%", 5, None])
def test_a_prefix_that_could_break_names_is_refused(prefix: object) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        Keys(prefix)  # type: ignore[arg-type] # callers may be untyped


@pytest.mark.parametrize("tag", ["", "a}", "{", "a b", "*"])
def test_a_hash_tag_that_redis_would_read_otherwise_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="hash tag"):
        KEYS.probe("n", tag)
