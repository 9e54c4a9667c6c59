"""The simulation's fake Postgres and Redis against the real ones: the same batches, the same
answers, the same content.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Any, get_args
from uuid import UUID

import pytest
import pytest_asyncio

from audit.stores import TABLES, columns, comparable
from contracts.statuses import OrderStatusText, ParcelStatusText
from domain.shapes import Row
from settings import Settings
from sinks.redis import CacheCheckpoint
from sinks.rows import CacheEntry, RowBatch
from tests.contract.places import (
    FakePostgresPlace,
    FakeRedisPlace,
    Order,
    PostgresPlace,
    RedisPlace,
    compact,
    ident,
    parcel_json,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

STATUS: tuple[OrderStatusText, ...] = get_args(OrderStatusText)
PARCELS: tuple[ParcelStatusText, ...] = ("pending", "in_transit", "delivered")


@pytest_asyncio.fixture(loop_scope="module")
async def fake_postgres(migrated: Settings) -> AsyncIterator[FakePostgresPlace]:
    place = FakePostgresPlace(migrated)
    await place.open()
    yield place
    await place.close()


@pytest_asyncio.fixture(loop_scope="module")
async def fake_cache(migrated: Settings) -> AsyncIterator[FakeRedisPlace]:
    place = FakeRedisPlace(migrated)
    await place.open()
    yield place
    await place.close()


def row_batches(rng: Random) -> Iterator[RowBatch]:
    """Few orders and parcels in many versions and times, so that rows meet."""
    for _ in range(60):
        batch = RowBatch()
        for name in rng.sample("abc", rng.randint(1, 2)):
            created = rng.randint(1, 3)
            parcels = tuple((f"{name}{n}", rng.choice(PARCELS)) for n in range(rng.randint(0, 2)))
            status = rng.choice(STATUS)
            Order(
                name,
                rng.randint(1, 4),
                status,
                created,
                rng.randint(4, 6),
                rng.choice(("1.50", "2")),
                parcels,
            ).rows(batch)
        yield batch


async def rows(place: PostgresPlace) -> dict[str, set[Any]]:
    by_table = {}
    for table in TABLES:
        here = await place.fetch(f"SELECT {', '.join(columns(table))} FROM {table}")
        by_table[table] = {comparable(table, tuple(map(as_text, row))) for row in here}
    return by_table


def values_of(table: str, row: Row) -> tuple[Any, ...]:
    """A row's values in the order in which the auditor reads them."""
    return tuple(getattr(row, name) for name in columns(table))


def as_text(value: Any) -> Any:
    """A value of asyncpg's as the pipeline hands it over."""
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, (Decimal, UUID)) else value


@pytest.mark.parametrize("seed", range(3))
async def test_rows(postgres: PostgresPlace, fake_postgres: FakePostgresPlace, seed: int) -> None:
    for batch in row_batches(Random(seed)):
        assert await postgres.sink.write(batch) == await fake_postgres.sink.write(batch)
        fake = {
            table: {comparable(table, values_of(table, row)) for row in there.values()}
            for table, there in fake_postgres.tables.rows.items()
        }
        assert await rows(postgres) == fake


def entries(rng: Random) -> Iterator[list[CacheEntry]]:
    """Few orders, users and tracking numbers in many versions: numbers are shared,
    and parcels change theirs.
    """
    for _ in range(150):
        batch = []
        for name in rng.sample("abc", rng.randint(1, 3)):
            version = rng.randint(1, 5)
            order = ident(name)
            summary = {
                "order_id": order,
                "version": version,
                "note": rng.choice((None, "é", '"shipment_id":"')),
                "suborders": [{"version": 9}],
            }
            tracking, untracked = [], []
            for parcel in rng.sample("pqr", rng.randint(0, 2)):
                number = f"T{rng.randint(1, 2)}"
                location = rng.choice((None, "hub", '"shipment_id":"x"'))
                tracking.append(
                    (number, ident(parcel), parcel_json(order, parcel, rng.choice(STATUS), location))
                )
            for parcel in rng.sample("pqr", rng.randint(0, 1)):
                untracked.append((f"T{rng.randint(1, 2)}", ident(parcel)))
            user = rng.choice(("u", "v"))
            batch.append(
                CacheEntry(
                    order,
                    user,
                    rng.randint(1, 9),
                    version,
                    rng.choice((600, 1800)),
                    compact(summary),
                    tracking,
                    untracked,
                )
            )
        yield batch


@pytest.mark.parametrize("seed", range(3))
async def test_checkpoints(cache: RedisPlace, fake_cache: FakeRedisPlace, seed: int) -> None:
    rng = Random(seed)
    for number in range(60):
        if rng.random() < 0.05:
            await cache.empty()
            await fake_cache.empty()
        position = rng.randint(0, 9)
        key, generation, sequence = (
            rng.choice(("cache:g:0", "cache:g:1")),
            rng.randint(1, 3),
            rng.randint(1, number + 2),
        )
        checkpoint = CacheCheckpoint(
            key,
            generation,
            sequence,
            position,
            position + rng.randint(0, 3),
            rng.choice(("", "", "", "", "claim", "reset")),
        )
        batch = [Order(f"o{n}", number).entry() for n in range(rng.choice((0, 1, 250)))]
        assert await cache.sink.put(batch, checkpoint) == await fake_cache.sink.put(batch, checkpoint)
        real, fake = await cache.content(), await fake_cache.content()
        assert real == fake


@pytest.mark.parametrize("seed", range(3))
async def test_entries(cache: RedisPlace, fake_cache: FakeRedisPlace, seed: int) -> None:
    for batch in entries(Random(seed)):
        assert await cache.sink.write(batch) == await fake_cache.sink.write(batch)
        real, fake = await cache.content(), await fake_cache.content()
        assert {key: (value, fake.get(key)) for key, value in real.items() if fake.get(key) != value} == {}
        assert real.keys() == fake.keys()


async def test_the_newest_orders_of_a_user(cache: RedisPlace, fake_cache: FakeRedisPlace) -> None:
    many = [Order(f"o{n}", 1, created=n % 40).entry()._replace(user_id="someone") for n in range(70)]
    for some in (many[n : n + 9] for n in range(0, 70, 9)):
        await cache.sink.write(some)
        await fake_cache.sink.write(some)
        assert await cache.content() == await fake_cache.content()
