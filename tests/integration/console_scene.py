"""The console in a browser: orders that a worker has taken in, a console in a process of its own, and windows
in which whatever a page does wrong is noted.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import asyncpg

from api.keys import changing, made
from console.texts import EN
from contracts.cloudevents import SourceEvent
from settings import Settings
from stack import ports
from tests.forked import Forked
from tests.unit.builders import ANNA, USER, created, line, parcel, payment, record, returned
from tests.waiting import until
from tests.workers import ORDERS, processed, worker
from workload import generator
from workload.producer import send

if TYPE_CHECKING:
    from playwright.async_api import Browser, ConsoleMessage, Page, Request, Response

TIMEOUT_MS: Final = 90_000
"""Milliseconds that a browser waits for anything, on a machine that others use too."""
ROLES: Final = {
    "viewer": ("anna", ("view",)),
    "support": ("boris", ("all", "write")),
    "operator": ("carla", ("all", "operate", "write")),
}
"""Role -> the name of its key, and the key's scopes."""
RETURN_REASON: Final = "=HYPERLINK(1) <script>alert(1)</script>"
"""What a customer wrote: a formula for a spreadsheet, and markup for a page."""


class Scene(NamedTuple):
    """`address`: the console's. `store`: its file of keys. `keys`: role -> a key of it."""

    settings: Settings
    address: str
    store: Path
    keys: dict[str, str]
    browser: Browser

    @asynccontextmanager
    async def visit(self, who: str | None = None, **options: Any) -> AsyncIterator[Page]:
        """A window of a browser that knows nothing yet, logged in as this role. At its end nothing may have
        gone wrong in it. `options`: of Playwright's contexts.
        """
        context = await self.browser.new_context(base_url=self.address, **options)
        try:
            page = await context.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            wrong = _noted(page, urlsplit(self.address).netloc)
            if who is not None:
                await page.goto("/login")
                await log_in(page, self.keys[who])
                await page.get_by_role("button", name=EN["log_out"]).wait_for()
            yield page
        finally:
            await context.close()
        assert wrong == [], wrong

    async def fetch(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        """Ask Postgres."""
        connection = await asyncpg.connect(self.settings.postgres.get_secret_value())
        try:
            fetched: list[asyncpg.Record] = await connection.fetch(statement, *values)
        finally:
            await connection.close()
        return fetched


async def picture(page: Page, name: str) -> None:
    """Take a picture of what the window shows into the folder $SCREENSHOTS, if there is one: `make
    screenshots`. This machine's name isn't in it.
    """
    if folder := os.environ.get("SCREENSHOTS"):
        await page.evaluate(RENAMED, socket.gethostname())
        session = await page.context.new_cdp_session(page)
        box = {"x": 0, "y": 0, "scale": 1, **await page.evaluate(FILLED)}
        options = {"format": "webp", "quality": 60, "clip": box}
        taken = await session.send("Page.captureScreenshot", options)
        (Path(folder) / f"{name}.webp").write_bytes(base64.b64decode(taken["data"]))


FILLED: Final = "() => ({ width: innerWidth, height: Math.min(innerHeight, document.body.offsetHeight) })"
"""What of a window has something in it."""
RENAMED: Final = """(name) => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(name, "host-1");
}"""


def new_key(store: Path, name: str, *scopes: str) -> str:
    """A key of this name with these scopes, added to the file."""
    with changing(store) as keys:
        added, key = made(name, scopes)
        keys.append(added)
    return key


async def log_in(page: Page, key: str) -> None:
    """Fill the form of the page of the login, and send it."""
    await page.get_by_label(EN["key_of_console"], exact=True).fill(key)
    await page.get_by_role("button", name=EN["log_in"]).click()


def _noted(page: Page, host: str) -> list[str]:
    """What goes wrong in a page from now on: errors and breaches of its policy on the browser's console,
    dialogs, requests to others, parts that can't be fetched.
    """
    wrong: list[str] = []

    def said(message: ConsoleMessage) -> None:
        # Of a page that isn't there. Of what a page needs, the answer tells.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def asked(request: Request) -> None:
        if urlsplit(request.url).netloc != host:
            wrong.append(request.url)

    def answered(response: Response) -> None:
        if response.status >= 400 and not response.request.is_navigation_request():
            wrong.append(f"{response.status} {response.url}")

    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", asked)
    page.on("response", answered)
    return wrong


@contextmanager
def served(folder: Path, store: Path) -> Iterator[str]:
    """A console in a process of its own, which sends events -> its address."""
    port = ports.choose(set())
    env = {**os.environ, "ORDERS_API_KEY_STORE": str(store), "ORDERS_API_WRITE": "true"}
    process = Forked((*ORDERS, "console", "--port", str(port)), folder / "console.log", env=env)

    def answers() -> bool:
        assert process.poll() is None, process.out.read_text()[-3000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(answers, "the console answers", 120)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def set_up(settings: Settings, folder: Path, browser: Browser) -> AsyncIterator[Scene]:
    """Everything, with generated orders and those of `events_of`, taken in."""
    store = folder / "keys"
    store.write_text("")
    keys = {role: new_key(store, name, *scopes) for role, (name, scopes) in ROLES.items()}
    await send(settings, generator.events(30, 84, generator.Shares(poison=0.2)))
    await send(settings, (event for n in range(4) for event in events_of(n)))
    with worker(folder), served(folder, store) as address:
        processed()
        yield Scene(settings, address, store, keys, browser)


# -- orders whose ids are known ------------------------------------------------------------------------------


def order_id(n: int) -> str:
    """An id whose first 8 characters no other order has."""
    return f"{n:08d}-0000-4000-8000-000000000001"


def events_of(n: int) -> Iterator[SourceEvent]:
    """A paid order. One of its units is delivered and is to come back; the others haven't left."""
    item = line(100 + n, quantity=3)
    yield _event("order.created", n, created(item))
    yield _event("order.paid", n, {"payment_id": payment(100 + n), "amount": "30.00", "currency": "EUR"})
    delivered = [{"item_id": item["item_id"], "quantity": 1}]
    scan = {"shipment_id": parcel(100 + n), "seller_id": ANNA, "status": "delivered", "items": delivered}
    yield _event("shipment.updated", n, scan | {"carrier": "Corvo", "tracking_number": f"TRACK-{n}"})
    wanted = {"return_id": returned(100 + n), "item_id": item["item_id"], "quantity": 1}
    yield _event("order.returned", n, wanted | {"status": "requested", "reason": RETURN_REASON})


def refused_events(count: int, start: int) -> list[SourceEvent]:
    """So many events that are refused."""
    return [_event("order.paid", n, {"amount": "none"}) for n in range(start, start + count)]


def _event(type_: str, n: int, data: dict[str, Any]) -> SourceEvent:
    headers, value = record(type_, data | {"order_id": order_id(n)}, id=f"{type_}-{n}")
    return SourceEvent(type_, order_id(n).encode(), value, headers, 0)


SOMEBODY: Final = USER
"""Whose orders these are."""
