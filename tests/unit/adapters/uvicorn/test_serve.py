"""The listening socket of ``socketspec serve``."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from socketspec.adapters.uvicorn.serve import USER_TIMEOUT, listening_socket


def test_accepted_connections_have_the_listeners_user_timeout() -> None:
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None:
        pytest.skip("the platform has no TCP_USER_TIMEOUT")
    with (
        listening_socket("127.0.0.1", 0, 8) as listener,
        socket.create_connection(listener.getsockname()),
        closing(listener.accept()[0]) as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, option) == USER_TIMEOUT


def test_it_listens_on_ipv6_and_with_two_colons_on_both() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("the platform has no IPv6 sockets that take IPv4 as well")
    with listening_socket("::", 0, 8) as both:
        port = both.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port)).close()
    with listening_socket("::1", 0, 8) as one:
        socket.create_connection(one.getsockname()[:2]).close()


def test_a_port_that_is_taken_is_an_error() -> None:
    with listening_socket("127.0.0.1", 0, 8) as first, pytest.raises(OSError, match="in use"):
        listening_socket("127.0.0.1", first.getsockname()[1], 8)
