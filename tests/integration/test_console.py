"""The console against real servers: pages of what a worker has done, keys, and servers that are away."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from markupsafe import escape

from console.app import create_app
from console.texts import EN
from credentials import PostgresUrl
from settings import Settings
from tests.waiting import eventually
from tests.workers import processed, worker
from workload import generator
from workload.producer import send


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A browser of a console of these settings."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        yield client


async def get(browser: httpx.AsyncClient, path: str, code: int = 200) -> str:
    answer = await browser.get(path)
    assert answer.status_code == code, answer.text[-1500:]
    return answer.text


async def test_pages_show_what_a_worker_has_done(fresh: Settings, tmp_path: Path) -> None:
    await send(fresh, list(generator.events(60, 83, generator.Shares(poison=0.2))))
    async with opened(fresh) as browser:
        assert "no worker is running" in await get(browser, "/")
        with worker(tmp_path) as running:
            processed()
            await _with_a_worker(browser)
            connection = await asyncpg.connect(fresh.postgres.get_secret_value())
            try:
                row = await connection.fetchrow(
                    "SELECT s.order_id, s.user_id, s.seller_id, s.tracking_number FROM orders_shipment s"
                    " JOIN orders_return r ON r.order_id = s.order_id WHERE s.tracking_number IS NOT NULL"
                    " LIMIT 1"
                )
                assert row is not None
                order_id, user_id, seller_id, number = row
                parcel_id = await connection.fetchval(
                    "SELECT id FROM orders_shipment WHERE order_id = $1 LIMIT 1", order_id
                )
                payment_id = await connection.fetchval(
                    "SELECT id FROM orders_payment WHERE order_id = $1 LIMIT 1", order_id
                )
            finally:
                await connection.close()
            await _of_an_order(browser, str(order_id))
            for text in (str(order_id), str(order_id)[:8], str(parcel_id), number, str(payment_id)):
                answer = await browser.get("/find", params={"q": text})
                assert answer.headers["location"] == f"/orders/{order_id}"
            for path in (f"/users/{user_id}", f"/sellers/{seller_id}"):
                answer = await browser.get("/find", params={"q": path.rpartition("/")[2]})
                assert answer.headers["location"] == path
                assert f"/orders/{order_id}" in await get(browser, path)
            assert EN["no_jobs"] in await get(browser, "/jobs")
            assert running.terminate() == 0


async def send_form(browser: httpx.AsyncClient, path: str, code: int = 200, /, **form: str) -> str:
    """Send a page's form with its hidden fields."""
    page = await browser.get(path)
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    answer = await browser.post(path.partition("?")[0], data={**hidden, **form})
    assert answer.status_code == code, answer.text[-1500:]
    return answer.text


async def test_what_is_done_is_noted_and_shows(fresh: Settings, tmp_path: Path) -> None:
    writing = fresh.model_copy(update={"api_write": True})
    await send(fresh, list(generator.events(60, 84, generator.Shares(poison=0.3))))
    async with opened(writing) as browser:
        with worker(tmp_path) as running:
            processed()
            connection = await asyncpg.connect(fresh.postgres.get_secret_value())
            try:
                order_id, currency = await _not_cancelled(browser, connection)
                await _send_events(browser, order_id, currency)
                processed()
                page = await get(browser, f"/orders/{order_id}")
                assert "order.cancel_requested" in page
                assert "refund.granted" in page
                # A row that went missing comes back beside the worker.
                await connection.execute("DELETE FROM orders_order_item WHERE order_id = $1", order_id)
                busy = await send_form(browser, f"/repair/{order_id}", 409, step="all", why="row gone")
                assert "worker" in busy
                await send_form(browser, f"/repair/{order_id}", step="rows", why="row gone")
                count = "SELECT count(*) FROM orders_order_item WHERE order_id = $1"
                assert await connection.fetchval(count, order_id) > 0
            finally:
                await connection.close()
            await _redrive(browser)
            await _resolve_and_hold(browser)
            await _pause(browser)
            assert running.terminate() == 0
        looked = await send_form(browser, f"/repair/{order_id}", step="look")
        assert EN["repair_nothing"] in looked
        operations = await get(browser, "/operations")
    for text in (
        "dlq redrive",
        "dlq resolve",
        "--undo",
        "row gone",
        "--rows",
        "refund.granted",
        EN["outcome_done"],
        EN["outcome_failed"],
    ):
        assert text in operations


async def _not_cancelled(browser: httpx.AsyncClient, connection: asyncpg.Connection) -> tuple[str, str]:
    """An order with units that haven't left, which nobody has asked to cancel, and its currency."""
    for order_id, currency in await connection.fetch(
        "SELECT DISTINCT order_id, currency FROM orders_suborder"
        " WHERE units_live > 0 AND units_in_transit = 0"
    ):
        page = await get(browser, f"/orders/{order_id}")
        if not {"order.cancel_requested", "refund.granted"} & set(re.findall(r"[a-z]+\.[a-z_]+", page)):
            return str(order_id), currency
    raise AssertionError("every order is cancelled")


async def _send_events(browser: httpx.AsyncClient, order_id: str, currency: str) -> None:
    cancel, grant = f"/orders/{order_id}/cancel", f"/orders/{order_id}/grant"
    shown = await send_form(browser, cancel, step="look", why="asked by phone")
    assert "order.cancel_requested" in shown
    await send_form(browser, cancel, step="send", why="asked by phone")
    form = {"amount": "1", "currency": currency, "why": "it was late"}
    await send_form(browser, grant, 422, step="send", **(form | {"amount": "x"}))
    await send_form(browser, grant, step="send", **form)


async def _pause(browser: httpx.AsyncClient) -> None:
    form = {"kind": "topic", "name": "order.paid", "why": "the bank is broken"}
    paused = await send_form(browser, "/pauses", step="pause", **form)
    assert paused.count("the bank is broken") == 1
    assert "order.paid is paused" in await get(browser, "/?part=live")
    await send_form(browser, "/pauses", 422, step="pause", **(form | {"name": "order.pad"}))
    assert EN["nothing_paused"] in await send_form(browser, "/pauses", step="resume", **form)


async def _redrive(browser: httpx.AsyncClient) -> None:
    letters = await get(browser, "/dead-letters?state=new")
    reason = re.findall(r"reason=(\w+)", letters)[0]
    listed = await get(browser, f"/dead-letters?reason={reason}")
    link = re.findall(r'href="(/redrive[^"]*)"', listed)[0].replace("&amp;", "&")
    would = re.findall(r"(\d+) letters would go back", await get(browser, link))[0]
    assert int(would) > 0
    assert f"{would} letters went back" in await send_form(browser, link, why="mended")
    assert EN["redrive_none"] in await get(browser, link.partition("&since")[0] + "&until=2020")


async def _resolve_and_hold(browser: httpx.AsyncClient) -> None:
    path = re.findall(r"/dead-letters/\d+:\d+", await get(browser, "/dead-letters?state=new"))[0]
    page = await get(browser, path)
    token = re.findall(r'name="token" value="([^"]*)"', page)[0]
    letter = {"token": token, "id": path.rpartition("/")[2], "why": "sent anew"}
    done = await browser.post("/resolve", data={**letter, "step": "resolve"})
    assert EN["resolve_did"].format(n=1) in done.text
    page = await get(browser, path)
    assert EN["state_resolved"] in page
    assert "sent anew" in page
    assert path in await get(browser, "/dead-letters?state=resolved")
    done = await browser.post("/resolve", data={**letter, "step": "reopen", "why": "a mistake"})
    assert EN["reopen_did"].format(n=1) in done.text
    reason = re.findall(r"/dead-letters\?reason=(\w+)", await get(browser, path))[0]
    group = f"/resolve?reason={reason}"
    would = dict(re.findall(r"<li>(\d+): ([^<]*)</li>", await get(browser, group)))
    assert EN["state_new"] in would.values()
    await send_form(browser, group, step="resolve", why="the sender has sent them anew")
    assert EN["state_resolved"] in await get(browser, path)
    await _hold(browser, token)


async def _hold(browser: httpx.AsyncClient, token: str) -> None:
    """Hold and release a type from the page of a letter that names one."""
    paths = sorted(set(re.findall(r"/dead-letters/\d+:\d+", await get(browser, "/dead-letters"))))
    pages = {path: await get(browser, path) for path in paths}
    path = next(path for path, page in pages.items() if 'value="pause"' in page)
    held = dict(re.findall(r'type="hidden" name="(kind|name|letter)" value="([^"]*)"', pages[path]))
    form = {"token": token, "why": "they are all wrong", **held}
    assert (await browser.post("/pauses", data={**form, "step": "pause"})).status_code == 200
    assert "they are all wrong" in await get(browser, path)
    assert 'value="resume"' in await get(browser, path)
    await browser.post("/pauses", data={**form, "step": "resume"})
    assert 'value="resume"' not in await get(browser, path)


async def _with_a_worker(browser: httpx.AsyncClient) -> None:
    async def well() -> bool:
        return EN["well"] in await get(browser, "/?part=live")

    await eventually(well, "all is well")
    lanes = await get(browser, "/lanes")
    assert "no_workers" not in lanes
    assert "w@" in lanes

    async def flows() -> bool:
        return "<polyline" in await get(browser, "/?part=live")

    await eventually(flows, "the flow of the last hour was read")
    letters = await get(browser, "/dead-letters")
    path = re.findall(r"/dead-letters/\d+:\d+", letters)[0]
    letter = await get(browser, path)
    assert EN["headers"] in letter
    await get(browser, "/dead-letters/0:999999", 404)
    hour = re.findall(r"hour=([\dT-]+)", letters)[0]
    assert path in await get(browser, f"/dead-letters?hour={hour}&hours=1")


async def _of_an_order(browser: httpx.AsyncClient, order_id: str) -> None:
    page = await get(browser, f"/orders/{order_id}")
    assert "order.created" in page
    assert EN["money_captured"] in page
    records = re.findall(rf'href="(/orders/{order_id}/records[^"]*)"', page)[0].replace("&amp;", "&")
    raw = await get(browser, records)
    assert "order.created" in raw
    assert f"&#34;order_id&#34;: &#34;{order_id}&#34;" in raw or order_id in raw
    assert EN["not_there_then"] in await get(browser, f"/orders/{order_id}?as_of=1999-01-01T00:00:00Z")
    await get(browser, "/orders/00000000-0000-4000-8000-000000000000", 404)
    first = await browser.get(f"/orders/{order_id}?step=0")
    assert "as_of=" in first.headers["location"]
    assert "order.created" in await get(browser, first.headers["location"])

    async def same() -> bool:
        stores = await get(browser, f"/orders/{order_id}/stores")
        return EN["rows_equal"] in stores and EN["cache_equal"] in stores

    await eventually(same, "rows and cache say what the state says")
    assert (await get(browser, f"/orders/{order_id}")).count(EN["store_is_same"]) == 2


@pytest.fixture
def nowhere() -> Iterator[int]:
    """A port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def test_servers_that_are_away_are_said(fresh: Settings, nowhere: int) -> None:
    without_postgres = fresh.model_copy(
        update={"postgres": PostgresUrl(f"postgresql://x:y@127.0.0.1:{nowhere}/x"), "postgres_replica": None}
    )
    async with opened(without_postgres) as browser:
        assert "postgres doesn&#39;t answer" in await get(browser, "/")
        assert str(escape(EN["status_503"])) in await get(browser, "/jobs", 503)
        await get(browser, "/find?q=0a0a0a0a", 503)
    async with opened(fresh.model_copy(update={"kafka": f"127.0.0.1:{nowhere}"})) as browser:
        assert "Kafka doesn&#39;t answer" in await get(browser, "/")
        assert "Kafka doesn&#39;t answer" in await get(browser, "/dead-letters", 503)
        await get(browser, "/orders/00000000-0000-4000-8000-000000000000", 404)
        assert EN["no_jobs"] in await get(browser, "/jobs")
