"""A revocation concerns exactly what was named: no namespace, kind or user runs into its neighbour."""

from __future__ import annotations

import pytest

from socketspec import Identity, SocketApp
from socketspec.backend.memory import MemoryBackend
from socketspec.protocol.handshake import Handshake
from socketspec.session.revocation import revocation_subjects
from socketspec.testing import ConnectionClosed, TestClient


class ByName:
    """Everybody is who they say they are."""

    async def authenticate(self, handshake: Handshake) -> Identity | None:
        return Identity(user_id=handshake.query_params["user"])


# Written one behind the other, each pair is the same text, with or without something between the parts.
NEIGHBOURS = [
    (("/x", "usery"), ("/xuser", "y")),
    (("/x", ":user:y"), ("/x:user:", "y")),
    (("/x", "a:user:y"), ("/x:user:a", "y")),
    (("/x", "0user1y"), ("/xuser0", "1y")),
]


@pytest.mark.parametrize(("revoked", "neighbour"), NEIGHBOURS)
async def test_a_revoked_user_takes_no_user_of_another_namespace_along(
    revoked: tuple[str, str], neighbour: tuple[str, str]
) -> None:
    backend = MemoryBackend()
    apps = [SocketApp(namespace=namespace, auth=ByName(), backend=backend) for namespace, _ in (revoked, neighbour)]
    async with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        victim = await first.connect(query_params={"user": revoked[1]})
        other = await second.connect(query_params={"user": neighbour[1]})
        await apps[0].sessions.revoke(user=revoked[1])
        with pytest.raises(ConnectionClosed):
            await victim.receive()
        assert other.connection.is_open
        assert (await second.connect(query_params={"user": neighbour[1]})).connection.is_open


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_the_records_of_neighbours_differ(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert revocation_subjects(one[0], user=one[1]) != revocation_subjects(other[0], user=other[1])


def test_nodes_of_different_versions_find_each_others_records() -> None:
    # While a cluster is updated, one version records what the other looks up. Change this only with a way to migrate.
    assert revocation_subjects("/chat", session="s" * 16, user="Zoë", token_id="7") == (
        "session:9ec7dbbb984f20dff5308df4991dda19",
        "user:0a04ff4f876bebc3a1b7f4a0e7fe7d60",
        "token:18775ddce71ff78ef4480efa693db47e",
    )


def test_a_name_that_is_no_text_is_a_name_as_well() -> None:
    halves = ["\ud83d", "\ude00"]  # of one character: JSON can name them, UTF-8 cannot
    assert len({revocation_subjects("/", user=half) for half in halves}) == 2
