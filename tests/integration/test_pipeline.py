"""The whole pipeline against real servers: everything in, every row, derived event
and dead letter looked at.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid5

import asyncpg
import pytest
from redis.asyncio import Redis

from contracts.cloudevents import SourceEvent
from operations.dead_letters import read
from settings import Settings
from tests.chaos.proxy import Proxy
from tests.servers import as_admin
from tests.waiting import until
from tests.workers import ORDERS, Worker, audit, orders, processed, rows, worker
from workload import generator, olist, poison
from workload.producer import send

OLIST_ORDERS = 3_000


async def seconds_to_live(settings: Settings) -> dict[bool, list[int]]:
    """How long Redis keeps each order: of those with a parcel in transit (True), and of those that are
    delivered or returned as a whole (False).
    """
    lives: dict[bool, list[int]] = {True: [], False: []}
    async with Redis.from_url(as_admin(settings.redis)) as redis:
        async for key in redis.scan_iter("order:*", count=1000):
            summary = json.loads(await redis.get(key) or b"{}")
            moving = any(parcel["status"] == "in_transit" for parcel in summary["shipments"])
            if moving or summary["status"] in ("delivered", "returned"):
                lives[moving].append(await redis.ttl(key))
    return lives


async def test_generated_orders_end_as_an_independent_fold_says(fresh: Settings, tmp_path: Path) -> None:
    history = list(generator.events(400, 11, generator.Shares(duplicates=0.1, shuffle=0.3, poison=0.02)))
    with worker(tmp_path):
        await send(fresh, history)
        processed()
        lives = await seconds_to_live(fresh)
        assert 500 < min(lives[True]) <= max(lives[True]) <= 600
        assert 1700 < min(lives[False]) <= max(lives[False]) <= 1800
        report = audit()
        assert report["counts"]["orders"] >= 400
        assert report["counts"]["duplicates"] > 0
        assert report["dead_letters"]
        before = await rows(fresh, physical=True)
        await send(fresh, history)
        processed()
        assert await rows(fresh, physical=True) == before, "a second time changes no row"
        audit()
        async with Redis.from_url(as_admin(fresh.redis)) as redis:
            await redis.flushdb()
        await send(fresh, generator.events(20, 12))
        processed()
        audit()


async def test_every_refusal_is_a_dead_letter_and_harms_no_neighbour(fresh: Settings, tmp_path: Path) -> None:
    random = Random(5)
    good = list(generator.events(30, 3, generator.Shares(0, 0, 0)))
    created = next(
        event
        for event in good[: len(good) // 2]
        if event.topic == "order.created"
        and event.key is not None
        and event.value
        and event.value.startswith(b'{"order_id')
    )
    anchor = poison.Anchor(json.loads(created.value or b""), created.time_us)
    bad = [
        (each, each.make(random, anchor if each.needs_order else None)) for each in poison.POISONS.values()
    ]
    half = len(good) // 2
    mixed: list[SourceEvent] = good[half:]
    for _, event in bad:
        mixed.insert(random.randrange(len(mixed)), event)
    with worker(tmp_path):
        await send(fresh, good[:half])  # the anchor among them: what a refusal for the order's sake needs
        processed()
        await send(fresh, mixed)
        processed()
        audit()
    letters: defaultdict[tuple[bytes | None, bytes | None], list[Any]] = defaultdict(list)
    async for letter in read(fresh):
        letters[letter.key, letter.value].append(letter)
    for each, event in bad:
        its_letters = letters[event.key, event.value]
        assert [letter.reason for letter in its_letters][:1] == [each.reason], f"{each.name}: {its_letters}"
        assert its_letters[0].record.topic == event.topic
        assert list(its_letters[0].headers)[: len(event.headers)] == list(event.headers), each.name
    connection = await asyncpg.connect(fresh.postgres.get_secret_value())
    try:
        assert await connection.fetchval("SELECT count(*) FROM orders_order") == 30
    finally:
        await connection.close()


FAUST = (
    sys.executable,
    "-m",
    "faust",
    "--workdir",
    str(Path(__file__).parents[2]),
    "-A",
    "app",
    "worker",
    "-l",
    "info",
    "--without-web",
)


async def test_faust_runs_the_same_app(fresh: Settings, tmp_path: Path) -> None:
    with worker(tmp_path, "faust", FAUST) as faust:
        await send(fresh, generator.events(50, 4))
        processed()
        audit()
        second = subprocess.run(FAUST, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2, second.stderr
        assert f"is in use by another worker (process {faust.process.pid})" in second.stderr
        assert "Traceback" not in second.stderr
        assert faust.terminate() == 0


def test_a_second_worker_of_the_same_name_is_refused_until_the_first_has_ended(
    fresh: Settings, tmp_path: Path
) -> None:
    with worker(tmp_path, "w1") as first, worker(tmp_path, "w2"):
        second = orders("worker", "--name", "w1")
        assert (second.returncode, second.stdout, second.stderr.count("\n")) == (2, "", 1), second.stderr
        assert second.stderr.startswith(
            f"orders: {fresh.data / 'w1' / fresh.group} is in use by another worker (process"
            f" {first.process.pid})"
        )
        first.kill()
        with worker(tmp_path, "third", (*ORDERS, "worker", "--name", "w1")) as third:
            assert third.terminate() == 0


async def test_show_tells_a_story(fresh: Settings, tmp_path: Path) -> None:
    with worker(tmp_path):
        await send(fresh, generator.events(20, 6, generator.Shares(0, 0, 0)))
        processed()
        connection = await asyncpg.connect(fresh.postgres.get_secret_value())
        try:
            row = await connection.fetchrow(
                "SELECT id::text, status::text, version FROM orders_order ORDER BY version DESC LIMIT 1"
            )
        finally:
            await connection.close()
        assert row is not None
        story = json.loads(orders("show", row["id"], "--json").stdout)
        assert (story["status"], story["version"]) == (row["status"], row["version"])
        facts = [fact for fact in story["facts"] if fact["type"] != "cart"]  # told by order.created
        assert len(facts) == row["version"] + len(story["refunds"])
        assert story["why"]
        text = orders("show", row["id"].replace("-", "").upper())
        assert text.returncode == 0
        assert row["status"] in text.stdout
        unknown = orders("show", "00000000-0000-0000-0000-000000000000")
        assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)


@pytest.mark.olist
async def test_olist_equals_a_fold_written_here(fresh: Settings, tmp_path: Path) -> None:
    folder = Path(os.environ["ORDERS_OLIST"])
    with worker(tmp_path, "w1"), worker(tmp_path, "w2"):
        expected = _olist_rows(folder)
        keys = {str(order_id).encode() for order_id in expected["first"]}
        await send(fresh, (event for event in olist.events(folder) if event.key in keys))
        processed()
    connection = await asyncpg.connect(fresh.postgres.get_secret_value())
    try:
        orders_by_id = {
            row["id"]: (
                row["status"],
                row["total_amount"],
                row["region"],
                str(row["user_id"]),
                row["version"],
            )
            for row in await connection.fetch(
                "SELECT id, status::text, total_amount, region, user_id, version FROM orders_order"
            )
        }
        items = {
            row["id"]: (row["price"], row["shipping_amount"], str(row["seller_id"]))
            for row in await connection.fetch(
                "SELECT id, price, shipping_amount, seller_id FROM orders_order_item"
            )
        }
        shipments = {
            row["id"]: row["status"]
            for row in await connection.fetch("SELECT id, status::text FROM orders_shipment")
        }
    finally:
        await connection.close()
    assert orders_by_id == expected["orders"]
    assert items == expected["items"]
    assert shipments == expected["shipments"]
    dead = Counter([letter.reason async for letter in read(fresh)])
    assert dead == {"field_malformed": expected["empty"]}
    audit()


def _olist_rows(folder: Path) -> dict[str, Any]:
    """The first four tables after the events of Olist's first orders, straight from the files: no
    code of the project is used.
    """

    def table(name: str) -> list[dict[str, str]]:
        with (folder / f"olist_{name}_dataset.csv").open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))

    customers = {row["customer_id"]: row for row in table("customers")}
    lines: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    payments: defaultdict[str, list[Decimal]] = defaultdict(list)
    for row in table("order_items"):
        lines[row["order_id"]].append(row)
    for row in table("order_payments"):
        if Decimal(row["payment_value"]) > 0:
            payments[row["order_id"]].append(Decimal(row["payment_value"]))
    expected: dict[str, Any] = {"first": set(), "orders": {}, "items": {}, "shipments": {}, "empty": 0}
    for row in table("orders")[:OLIST_ORDERS]:
        order_id = UUID(row["order_id"])
        expected["first"].add(order_id)
        own = lines[row["order_id"]]
        if not own:
            expected["empty"] += 1
            continue
        total = sum((Decimal(line["price"]) + Decimal(line["freight_value"]) for line in own), Decimal(0))
        captured = payments[row["order_id"]] if row["order_approved_at"] else []
        sellers = {UUID(line["seller_id"]) for line in own}
        carried, delivered = (
            bool(row["order_delivered_carrier_date"]),
            bool(row["order_delivered_customer_date"]),
        )
        status = "pending"
        if sum(captured, Decimal(0)) >= total:
            status = "confirmed"
        if carried:
            status = "shipped"
        if delivered:
            status = "delivered"
        version = 1 + len(captured) + len(sellers) * (carried + delivered)
        customer = customers[row["customer_id"]]
        user_id = str(UUID(customer["customer_unique_id"]))
        expected["orders"][order_id] = (status, total, customer["customer_state"], user_id, version)
        for line in own:
            expected["items"][uuid5(order_id, line["order_item_id"])] = (
                Decimal(line["price"]),
                Decimal(line["freight_value"]),
                str(UUID(line["seller_id"])),
            )
        if carried or delivered:
            for seller in sellers:
                expected["shipments"][uuid5(order_id, str(seller))] = (
                    "delivered" if delivered else "in_transit"
                )
    return expected


async def test_a_repeated_event_mends_a_stale_summary(fresh: Settings, tmp_path: Path) -> None:
    """A worker that dies after writing the state and before refreshing the cache leaves an old summary:
    the replay has to mend it.
    """
    history = list(generator.events(30, 8, generator.Shares(0, 0, 0)))
    with worker(tmp_path):
        await send(fresh, history)
        processed()
        async with Redis.from_url(as_admin(fresh.redis)) as redis:
            keys = [key async for key in redis.scan_iter("order:*")]
            assert keys
            for key in keys:
                stale = json.loads(await redis.get(key) or b"") | {"version": 0, "status": "stale"}
                await redis.set(key, json.dumps(stale, separators=(",", ":")), ex=600)
            await send(fresh, history)
            processed()
            summaries = [json.loads(await redis.get(key) or b"") for key in keys]
        assert all(summary["status"] != "stale" and summary["version"] > 0 for summary in summaries)
        audit()


async def test_what_the_cache_has_missed_is_written_whoever_died_meanwhile(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once found by the successor of a worker that was killed, in the other mode of delivery; once
    by the one that was there.
    """
    history = list(generator.events(120, 9, generator.Shares(0, 0, 0)))
    half = len(history) // 2
    url = urlsplit(fresh.redis.get_secret_value())
    assert url.port is not None
    proxy = Proxy("redis")
    await proxy.start(url.port)
    try:
        with monkeypatch.context() as detoured:
            detoured.setenv(
                "ORDERS_REDIS",
                urlunsplit(url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@{proxy.address}")),
            )
            detoured.setenv("ORDERS_DELIVERY", "exactly_once")
            with worker(tmp_path, "first") as first:
                await send(fresh, history[:half])
                await asyncio.to_thread(processed)
                await asyncio.to_thread(
                    until, lambda: _complete(first, fresh), "every lane's cache is complete"
                )
                older = await _copy(fresh)
                await proxy.cut()
                await send(fresh, history[half:])
                await asyncio.to_thread(processed, cache=False)  # it delays nothing
                assert first.text().count("redis.away") == 1
                first.kill()
            await proxy.heal()
            assert (await asyncio.to_thread(orders, "audit", "--json")).returncode == 1, "the cache is behind"
            detoured.setenv("ORDERS_DELIVERY", "at_least_once")
            with worker(tmp_path, "second") as second:
                await asyncio.to_thread(
                    until, lambda: _complete(second, fresh), "every lane's cache is complete"
                )
                await asyncio.to_thread(audit)
                # The way is cut and mended in one worker's life, and Redis comes back as it was at half time.
                await proxy.cut()
                await send(fresh, generator.events(40, 10, generator.Shares(0, 0, 0)))
                await asyncio.to_thread(processed, cache=False)
                await _put_back(fresh, older)
                await proxy.heal()
                await asyncio.to_thread(
                    until, lambda: _complete(second, fresh, 2), "every lane's cache is complete again"
                )
                await asyncio.to_thread(audit)
                assert second.terminate() == 0
    finally:
        await proxy.close()


def _complete(process: Worker, settings: Settings, times: int = 1) -> bool:
    text = process.text()
    return all(
        text.count(f"lane {number}: its cache is complete") >= times for number in range(settings.partitions)
    )


async def _copy(settings: Settings) -> dict[bytes, bytes]:
    async with Redis.from_url(as_admin(settings.redis)) as redis:
        return {key: await redis.dump(key) or b"" async for key in redis.scan_iter(count=1000)}


async def _put_back(settings: Settings, copy: dict[bytes, bytes]) -> None:
    async with Redis.from_url(as_admin(settings.redis)) as redis:
        await redis.flushdb()
        for key, value in copy.items():
            await redis.restore(key, 600_000, value)
