"""The demo page, the schema page and the debug page in a real browser. Skipped where there is no Chromium."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, async_playwright, expect

from socketspec.cluster.embedded import EmbeddedServer
from tests.servers import started
from tests.support import Server, client, serving
from tests.support_demo import Demo, running_demo

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium: scripts/tools")

# It starts as root, without a GPU, and asks nobody outside this machine for anything.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]

APP = """
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field
from socketspec import Broadcasts, Connection, Room, SocketApp
from socketspec.adapters.fastapi import mount
from socketspec.errors import EventError

class Order(BaseModel):
    item: str = Field(description="What to <b>order</b>", max_length=40)
    parts: list["Order"] = []

socket = SocketApp(
    title="<i>Shop</i>", docs=True, docs_access_token="schlüssel", debug=True, rooms=[Room("shop:{id}")]
)

class SoldOut(EventError):
    "Nothing is left of it."
    code = "SOLD_OUT"
    details: Order

order_shipped = socket.event("order_shipped", Order, room="shop:{id}", description="It is on its way.")

ORDERED = Broadcasts("ordered", room="shop:{id}", model=Order)

@socket.on("order", tags=["shop"], deprecated=True, errors=[SoldOut], broadcasts=[ORDERED])
async def order(conn: Connection, payload: Order) -> Order:
    '''Order <script>alert(1)</script> something.'''
    return payload

@socket.on("look", ordered=True)
async def look(conn: Connection) -> None:
    '''Look around.'''

app, router = FastAPI(), APIRouter(prefix="/v1")
mount(socket, router, path="/ws")
app.include_router(router)
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    with running_demo() as running:
        yield running


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("browser") / "shop", APP)
    with serving(server):
        yield server


class Tabs:
    """Opens pages and remembers what they complained about."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.complaints: list[str] = []
        self.asked: list[str] = []

    async def open(self, url: str, **options: Any) -> Page:
        """A page in a browser context of its own."""
        context = await self._browser.new_context(**options)
        page = await context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: self.asked.append(request.url))
        await page.goto(url)
        return page


@asynccontextmanager
async def browser() -> AsyncIterator[Tabs]:
    """A browser; fails if a page had an error or asked another machine for anything."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            tabs = Tabs(chromium)
            yield tabs
            assert tabs.complaints == []
            elsewhere = [url for url in tabs.asked if not url.startswith(("http://127.0.0.1:", "data:"))]
            assert elsewhere == []
        finally:
            await chromium.close()


async def chat(tabs: Tabs, demo: Demo, room: str, name: str) -> Page:
    """A tab that is in a room under a name."""
    page = await tabs.open(demo.url(f"/#{room}"))
    await expect(page.locator("#state")).to_have_text("connected")
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("button", name="Change").click()
    await expect(page.locator("#people")).to_contain_text(f"{name} (you)")
    await expect(page.locator("#state")).to_have_text("connected")
    return page


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Demo]:
    with started():
        EmbeddedServer()
    with running_demo("--nodes", "3") as running:
        yield running


async def write(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.get_by_role("button", name="Send").click()


async def test_a_tab_says_which_node_it_is_on_and_links_to_the_others(three_nodes: Demo) -> None:
    async with browser() as tabs:
        ada = await chat(tabs, three_nodes, "nodes", "Ada")
        await expect(ada.locator("#node")).to_have_text(re.compile(r"on node 1 of 3 \(\w+\); open node 2 node 3"))
        async with ada.context.expect_page() as opened:
            await ada.get_by_role("link", name="node 3").click()
        other = await opened.value
        assert other.url == three_nodes.url("/#nodes", node=2)
        await expect(other.locator("#node")).to_contain_text("on node 3 of 3")
        await expect(other.locator("#state")).to_have_text("connected")
        await expect(ada.locator("#count")).to_have_text("2")
        await write(ada, "across")
        await expect(other.locator("#log .text")).to_have_text(["across"])
        await write(other, "and back")
        await expect(ada.locator("#log .text")).to_have_text(["across", "and back"])


async def test_a_single_node_is_nothing_to_speak_of(demo: Demo) -> None:
    async with browser() as tabs:
        page = await chat(tabs, demo, "single", "Ada")
        await expect(page.locator("#node")).to_be_hidden()


async def test_two_tabs_chat_with_each_other(demo: Demo) -> None:
    async with browser() as tabs:
        ada, grace = await chat(tabs, demo, "tabs", "Ada"), await chat(tabs, demo, "tabs", "Grace")
        await expect(ada.locator("#count")).to_have_text("2")
        await expect(ada.locator("#log")).to_contain_text("Grace came in")
        await grace.get_by_label("Message").press_sequentially("hm")
        await expect(ada.locator("#typing")).to_have_text("Grace is typing…")
        await write(grace, "<img src=x onerror=alert(1)> <b>hello</b>")
        for page in (ada, grace):
            await expect(page.locator("#log .text")).to_have_text(["<img src=x onerror=alert(1)> <b>hello</b>"])
        await expect(ada.locator("#typing")).to_have_text("")
        await expect(grace.locator("#log .mine")).to_have_count(1)
        await grace.context.close()
        await expect(ada.locator("#log")).to_contain_text("Grace left")
        await expect(ada.locator("#count")).to_have_text("1")
        late = await chat(tabs, demo, "tabs", "Late")
        await expect(late.locator("#log .text")).to_have_count(1)


async def test_rooms_are_made_and_changed_and_keep_apart(demo: Demo) -> None:
    async with browser() as tabs:
        ada, grace = await chat(tabs, demo, "first", "Ada"), await chat(tabs, demo, "first", "Grace")
        await expect(ada.locator("#count")).to_have_text("2")
        await ada.get_by_label("Make or enter a room").fill("second")
        await ada.get_by_role("button", name="Enter").click()
        await expect(ada.locator("#chat-title")).to_have_text("# second")
        await expect(grace.locator("#count")).to_have_text("1")
        await write(ada, "only here")
        await expect(ada.locator("#log .text")).to_have_text(["only here"])
        await expect(ada.locator("#log .pending")).to_have_count(0)
        await write(grace, "only there")
        await expect(grace.locator("#log .text")).to_have_text(["only there"])
        await ada.get_by_role("button", name="# first").click()
        await expect(ada.locator("#log .text")).to_have_text(["only there"])
        assert ada.url.endswith("#first")


async def dropping(page: Page, demo: Demo) -> tuple[Callable[[], Awaitable[None]], asyncio.Event]:
    """Puts a proxy in the page's way: what cuts its connection, and what lets it connect again."""
    may_connect = asyncio.Event()
    may_connect.set()
    routes: list[Any] = []

    async def through(route: Any) -> None:
        if not may_connect.is_set():
            await route.close(code=1011, reason="down")
            return
        routes.append((route, route.connect_to_server()))

    async def cut() -> None:
        may_connect.clear()
        to_page, to_server = routes[-1]
        await to_server.close(code=3000, reason="cut")
        await to_page.close(code=1012, reason="cut")

    await page.route_web_socket("**/ws*", through)
    await page.goto(demo.url("/"))
    return cut, may_connect


async def test_a_dropped_tab_comes_back_with_what_it_missed_and_what_it_said_meanwhile(demo: Demo) -> None:
    async with browser() as tabs:
        ada = await tabs.open("about:blank")
        cut, may_connect = await dropping(ada, demo)
        await expect(ada.locator("#state")).to_have_text("connected")
        grace = await chat(tabs, demo, "lobby", "Grace")
        await write(grace, "before")
        await expect(ada.locator("#log .text")).to_have_text(["before"])
        await cut()
        await expect(ada.locator("#state")).to_contain_text("connection lost")
        await expect(grace.locator("#count")).to_have_text("1")
        await write(grace, "missed 1")
        await write(grace, "missed 2")
        await expect(grace.locator("#log .pending")).to_have_count(0)
        await write(ada, "from the tunnel")
        await expect(ada.locator("#log .pending")).to_have_count(1)
        may_connect.set()
        await expect(ada.locator("#state")).to_have_text("connected", timeout=20_000)
        everything = ["before", "missed 1", "missed 2", "from the tunnel"]
        for page in (ada, grace):
            await expect(page.locator("#log .text")).to_have_text(everything)
        await expect(ada.locator("#log .pending")).to_have_count(0)
        await expect(ada.locator("#log")).to_contain_text("Reconnected; 2 missed message(s) follow.")


async def test_a_restarted_server_is_found_again_and_the_lost_history_is_admitted() -> None:
    async with browser() as tabs:
        first = Demo()
        try:
            ada = await chat(tabs, first, "lobby", "Ada")
            await write(ada, "before")
            await expect(ada.locator("#log .text")).to_have_text(["before"])
            status, output = await asyncio.to_thread(first.end)  # Ctrl-C with a tab connected
            assert (status, output.strip()) == (0, "")
            await expect(ada.locator("#state")).to_contain_text("connection lost")
            with running_demo("--port", first.host.rpartition(":")[2]) as second:
                assert second.host == first.host
                await expect(ada.locator("#state")).to_have_text("connected", timeout=20_000)
                await expect(ada.locator("#log .warning")).to_contain_text("something may be missing")
                await write(ada, "after")
                await expect(ada.locator("#log .text")).to_have_text(["before", "after"])
                await expect(ada.locator("#log .pending")).to_have_count(0)
        finally:
            first.process.kill()
        # Failed attempts to connect are logged by the browser itself.
        tabs.complaints = [text for text in tabs.complaints if "WebSocket connection to" not in text]


async def test_the_schema_page_asks_for_the_token_and_keeps_it_out_of_the_address(shop: Server) -> None:
    async with browser() as tabs:
        page = await tabs.open(f"http://127.0.0.1:{shop.port}/v1/socket-docs?token=schl%C3%BCssel")
        await expect(page.locator("h1")).to_have_text("<i>Shop</i>")
        assert page.url == f"http://127.0.0.1:{shop.port}/v1/socket-docs"
        card = page.locator("#event-order")
        await expect(card).to_contain_text("Order <script>alert(1)</script> something.")
        await expect(card).to_contain_text("What to <b>order</b>")
        await expect(card).to_contain_text("length ≤ 40")
        await expect(card).to_contain_text("Broadcasts ordered to room shop:{id}")
        await expect(card).to_contain_text("May be refused with SOLD_OUT")
        await expect(card).to_contain_text("Nothing is left of it.")
        await expect(page.locator(".card").last).to_contain_text("order_shipped")
        await expect(page.locator(".card").last).to_contain_text("to room shop:{id}")
        await expect(card.locator(".badge")).to_have_text(["deprecated", "shop"])
        await expect(page.locator("#event-look .badge")).to_have_text(["ordered"])
        for text in ("shop:{id}", "HANDLER_ERROR", "4001"):
            await expect(page.locator("#content")).to_contain_text(text)
        await page.get_by_label("Filter").fill("look AROUND")
        await expect(card).to_be_hidden()
        await expect(page.locator("#event-look")).to_be_visible()
        await expect(page.locator("#shown")).to_have_text("1 of 3 events")


async def test_a_refused_token_is_asked_for_anew_in_the_page(shop: Server) -> None:
    async with browser() as tabs:
        refuse = True

        async def handle(route: Route) -> None:
            await (route.fulfill(status=401, body="{}") if refuse else route.continue_())

        page = await tabs.open("about:blank")
        await page.route("**/schema", handle)
        await page.goto(f"http://127.0.0.1:{shop.port}/v1/socket-docs?token=schl%C3%BCssel")
        await expect(page.get_by_role("alert")).to_have_text("This token is not accepted.")
        refuse = False
        await page.get_by_label("Access token").fill("wrong")
        await page.get_by_role("button", name="Show the events").click()
        await expect(page.get_by_role("alert")).to_have_text("This token is not accepted.")
        await page.get_by_label("Access token").fill("schlüssel")
        await page.get_by_role("button", name="Show the events").click()
        await expect(page.locator(".card")).to_have_count(3)
        await expect(page.get_by_label("Access token")).to_be_hidden()
        assert await page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        # The browser itself logs each 401.
        tabs.complaints = [text for text in tabs.complaints if "401" not in text]


async def test_the_debug_page_shows_events_as_they_happen(shop: Server) -> None:
    async with browser() as tabs:
        page = await tabs.open(f"http://127.0.0.1:{shop.port}/v1/socket-debug?token=schl%C3%BCssel")
        await expect(page.locator("#state")).to_have_text("live")
        async with client(shop.url("/v1/ws")) as guest:
            await guest.send("order", {"item": "<u>tea</u>"}, id=1)
            rows = page.locator("#events tr")
            await expect(rows.filter(has_text="order")).not_to_have_count(0)
            await expect(rows.filter(has_text="<u>tea</u>")).not_to_have_count(0)
            await page.get_by_role("button", name="Pause").click()
            shown = await rows.count()
            await guest.send("look", id=2)
            await expect(page.locator("#state")).to_have_text("paused, 2 waiting")
            assert await rows.count() == shown
            await page.get_by_role("button", name="Go on").click()
            await expect(rows).to_have_count(shown + 2)
            await expect(rows.first).to_contain_text("__ack__")
            await page.get_by_label("Filter").fill("look")
            await expect(rows.filter(visible=True)).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_pages_follow_the_colour_scheme_and_fit_a_phone(demo: Demo, scheme: str, tmp_path: Path) -> None:
    async with browser() as tabs:
        for path in ("/", "/socket-docs"):
            page = await tabs.open(demo.url(path), color_scheme=scheme, viewport={"width": 390, "height": 800})
            await expect(page.get_by_role("heading", level=1)).to_be_visible()
            colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness = sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
            assert (brightness > 600) is (scheme == "light"), colour
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390
