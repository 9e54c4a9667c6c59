"""Ids that are unique only within an order: parcels, items, returns and payments of several orders have the
same ones, and numbers too.

Whatever comes first, the cache, the rows, the API and the reference show the same, each of its order's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from random import Random
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
import redis.asyncio

from audit.attention import TABLE as ATTENTION
from audit.stores import TABLES, columns, comparable
from domain.order import Order
from queries.reader import Reader
from sinks.rows import CacheEntry, RowBatch
from tables import codec
from tests.contract.places import FakePostgresPlace, FakeRedisPlace, Place, PostgresPlace, RedisPlace
from tests.contract.test_fakes import rows, values_of
from tests.integration.api_world import entry, row_batch
from tests.property.records import Record, dense
from tests.property.test_against_reference import Ours, Theirs
from tests.servers import as_admin

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS = (
    {"T1": '"shipment_id":"x"\\/\'é %😀', "T2": "n" * 1_000},
    {"T1": "n/a", "T2": ":orders"},
    {"T1": "T", "T2": "T "},
)
"""What the orders' tracking numbers are, one pair a seed."""

Parcel = tuple[str, str, str]
"""(shipment id, order id, status)"""


@pytest_asyncio.fixture(loop_scope="module")
async def places(postgres: PostgresPlace, cache: RedisPlace) -> AsyncIterator[list[Place]]:
    fakes: list[Place] = [FakePostgresPlace(postgres.settings), FakeRedisPlace(postgres.settings)]
    for fake in fakes:
        await fake.open()
    yield [postgres, cache, *fakes]
    for fake in fakes:
        await fake.close()


def arrivals(rng: Random, numbers: dict[str, str]) -> list[Record]:
    """The events of four orders, in any order. They are made alike, so most of their ids are the same."""
    sent = [each for n in range(4) for each in dense(n, rng)]
    rng.shuffle(sent)
    return [each._replace(value=renumbered(each.value or b"", numbers)) for each in sent]


def renumbered(value: bytes, numbers: dict[str, str]) -> bytes:
    data = json.loads(value)
    if "tracking_number" in data:
        data["tracking_number"] = numbers[data["tracking_number"]]
    return json.dumps(data).encode()


async def put(places: list[Place], orders: dict[UUID, Order]) -> tuple[RowBatch, list[CacheEntry]]:
    """Writes all that there is of these orders everywhere, as a batch of a lane does."""
    batch = row_batch(orders.items()), [entry(order_id, order) for order_id, order in orders.items()]
    await again(places, batch)
    return batch


async def again(places: list[Place], batch: tuple[RowBatch, list[CacheEntry]]) -> None:
    for place in places:
        await place.sink.write(
            batch[0] if isinstance(place, (PostgresPlace, FakePostgresPlace)) else batch[1]
        )


async def cached(place: Any) -> dict[str, list[Parcel]]:
    """By tracking number what the cache has under it."""
    content = await place.content()
    return {
        key.removeprefix("tracking:"): [
            (each["shipment_id"], each["order_id"], each["status"]) for each in value
        ]
        for key, value in content.items()
        if key.startswith("tracking:")
    }


async def read(reader: Reader, numbers: set[str]) -> tuple[dict[str, list[Parcel]], set[str]]:
    """The same from the API's reader, and where it comes from."""
    by_number = {number: await reader.tracking(number) for number in numbers}
    parcels = {
        number: [(each["shipment_id"], each["order_id"], each["status"]) for each in json.loads(answer.body)]
        for number, answer in by_number.items()
    }
    return parcels, {str(answer.source) for answer in by_number.values()}


def without_cleared(by_table: dict[str, set[Any]]) -> dict[str, set[Any]]:
    """Rows without those of what needs no attention any more: they are what was seen, which depends on the
    order of arrival.
    """
    at = columns(ATTENTION).index("cleared_at")
    return by_table | {ATTENTION: {row for row in by_table[ATTENTION] if row[at] is None}}


@pytest.mark.parametrize("seed", range(6))
async def test_every_place_shows_the_same_of_orders_that_share_ids(places: list[Place], seed: int) -> None:
    rng, numbers = Random(f"ids that are shared, {seed}"), NUMBERS[seed % len(NUMBERS)]
    postgres, cache, fake_postgres, fake_cache = places
    assert isinstance(postgres, PostgresPlace)
    assert isinstance(fake_postgres, FakePostgresPlace)
    sent, ours = arrivals(rng, numbers), Ours(1)
    written: list[tuple[RowBatch, list[CacheEntry]]] = []
    at = 0
    while at < len(sent):
        some = sent[at : at + rng.randint(1, 4)]
        at += len(some)
        before = dict(ours.states)
        ours.take_all(some)
        orders = {
            UUID(bytes=key): codec.decode(raw) for key, raw in ours.states.items() if before.get(key) != raw
        }
        written.append(
            await put(
                places, {order_id: order for order_id, order in orders.items() if order.created is not None}
            )
        )
        if rng.random() < 0.2:  # what a stale worker still writes
            await again(places, rng.choice(written))
    theirs = Theirs().take_all(sent, ours.decided)
    readings = [order.reading() for order in theirs.orders.values()]
    expected: dict[str, list[Parcel]] = defaultdict(list)
    for reading in readings:
        for shipment_id, scan in reading.parcels.items():
            if number := scan.content.get("tracking_number"):
                expected[number].append((shipment_id, reading.order_id, scan.content["status"]))
    shown = {number: sorted(parcels) for number, parcels in expected.items()}
    assert max(len({order_id for _, order_id, _ in parcels}) for parcels in shown.values()) > 1, (
        "a number of several orders"
    )
    assert await cached(cache) == await cached(fake_cache) == shown

    expected_rows = {
        table: {comparable(table, row) for reading in readings for row in reading.rows()[table]}
        for table in TABLES
    }
    assert without_cleared(await rows(postgres)) == expected_rows
    there = {
        table: {comparable(table, values_of(table, row)) for row in rows_there.values()}
        for table, rows_there in fake_postgres.tables.rows.items()
    }
    assert without_cleared(there) == expected_rows

    reader = Reader(postgres.settings)
    try:
        assert await read(reader, set(shown)) == (shown, {"primary"})
        assert await read(reader, set(shown)) == (shown, {"cache"})
        async with redis.asyncio.Redis.from_url(as_admin(cache.settings.redis)) as client:
            await client.delete(*(f"tracking:{number}" for number in shown))
            assert await read(reader, set(shown)) == (shown, {"cache"}), "rows that a reader has put beside"
            await client.flushdb()
        assert await read(reader, set(shown)) == (shown, {"primary"}), "rows alone"
    finally:
        await reader.close()


async def test_the_entry_of_one_order_does_not_hide_the_others(places: list[Place]) -> None:
    """The cache has forgotten an order, and another one with the same number moves."""
    rng = Random("hidden")
    ours = Ours(1).take_all(arrivals(rng, NUMBERS[0]))
    orders = {UUID(bytes=key): codec.decode(raw) for key, raw in ours.states.items()}
    orders = {order_id: order for order_id, order in orders.items() if order.created is not None}
    await put(places, orders)
    shown = await cached(places[1])
    number, parcels = max(shown.items(), key=lambda each: len({order_id for _, order_id, _ in each[1]}))
    one = UUID(parcels[0][1])
    assert {order_id for _, order_id, _ in parcels} > {str(one)}
    reader = Reader(places[0].settings)
    try:
        async with redis.asyncio.Redis.from_url(as_admin(places[1].settings.redis)) as client:
            await client.flushdb()
            await places[1].sink.write([entry(one, orders[one])])
            assert await client.exists(f"tracking:{number}")
            assert (await read(reader, {number}))[0] == {number: parcels}
            # A parcel gets another number: at once it isn't shown under this one any more,
            # though a page of rows says so.
            gone = {(one, parcel) for parcel, order_id, _ in parcels if order_id == str(one)}
            moved = entry(one, orders[one])
            summary = json.loads(moved.summary)
            for parcel in summary["shipments"]:
                parcel["tracking_number"] = (
                    "another" if (one, parcel["shipment_id"]) in gone else parcel["tracking_number"]
                )
            await places[1].sink.write(
                [
                    moved._replace(
                        version=moved.version + 1,
                        summary=json.dumps(
                            summary | {"version": moved.version + 1}, separators=(",", ":")
                        ).encode(),
                        tracking=[each for each in moved.tracking if each[0] != number],
                        untracked=[(number, parcel) for _, parcel in gone],
                    )
                ]
            )
            left = [each for each in parcels if each[1] != str(one)]
            assert await read(reader, {number}) == ({number: left}, {"cache"})
    finally:
        await reader.close()
