"""Cookies, read as browsers write them."""

from __future__ import annotations

import pytest
from starlette.requests import cookie_parser

from socketspec import Connection, SocketApp
from socketspec.protocol.handshake import Handshake, Headers
from socketspec.testing import TestClient


def cookies(*headers: str) -> dict[str, str]:
    return Handshake(headers=Headers([("Cookie", header) for header in headers])).cookies


@pytest.mark.parametrize(
    ("header", "read"),
    [
        ("", {}),
        ("session=f00d", {"session": "f00d"}),
        ("a=1; b=2;c=3", {"a": "1", "b": "2", "c": "3"}),
        ("  a = 1 ;; ; b=", {"a": "1", "b": ""}),
        ('prefs={"theme":"dark","tags":["a, b"]}; session=f00d', None),
        ("a[1]=x; session=f00d; (b)=y", {"a[1]": "x", "session": "f00d", "(b)": "y"}),
        ("no name; session=f00d", {"": "no name", "session": "f00d"}),
        ("=v; session=f00d", {"": "v", "session": "f00d"}),
        ("token=a=b==; session=f00d", {"token": "a=b==", "session": "f00d"}),
        (r'q="say \"hi\" \073 ok"; session=f00d', {"q": 'say "hi" ; ok', "session": "f00d"}),
        ('half="open; session=f00d', {"half": '"open', "session": "f00d"}),
        ("session=old; session=new", {"session": "new"}),
        ("name=\xc3\xa9; $Version=1", {"name": "\xc3\xa9", "$Version": "1"}),
    ],
)
def test_each_cookie_is_read_whatever_its_neighbours_are(header: str, read: dict[str, str] | None) -> None:
    expected = {"prefs": '{"theme":"dark","tags":["a, b"]}', "session": "f00d"} if read is None else read
    assert cookies(header) == expected == cookie_parser(header)


def test_several_headers_are_one_list() -> None:
    assert cookies("a=1; b=2", "c=3", "b=4") == {"a": "1", "b": "4", "c": "3"}


async def test_a_handler_reads_them_from_its_connection() -> None:
    app = SocketApp()

    @app.on("who")
    async def who(conn: Connection) -> dict[str, str]:
        return conn.cookies

    async with TestClient(app) as client:
        conn = await client.connect(headers=[("cookie", 'p={"a":1}'), ("cookie", "session=f00d")])
        await conn.send("who", id=1)
        assert (await conn.receive())["payload"] == {"p": '{"a":1}', "session": "f00d"}
