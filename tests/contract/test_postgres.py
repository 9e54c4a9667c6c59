"""What only the sink of record promises: all or nothing, row versions, types, errors."""

from __future__ import annotations

import itertools
from dataclasses import replace
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from msgspec import structs

from settings import Settings
from sinks.migrate import upgrade
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from tests.contract.places import Order, PostgresPlace, at, drop_database, ident, new_database
from tests.servers import as_admin
from tests.stackfixture import Servers, execute

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDER = Order("a", 4, "returned", created=10, updated=50, parcels=(("pa", "delivered"),))


async def times(postgres: PostgresPlace) -> tuple[str, str, int]:
    (row,) = await postgres.fetch("SELECT created_at, updated_at, version FROM orders_order")
    return (
        row["created_at"].isoformat(timespec="microseconds"),
        row["updated_at"].isoformat(timespec="microseconds"),
        row["version"],
    )


async def test_counts_rows_that_changed_and_touches_no_others(postgres: PostgresPlace) -> None:
    assert await postgres.write(ORDER) == 8
    rows = await postgres.row_versions()
    assert await postgres.write(ORDER) == 0
    assert await postgres.write(replace(ORDER, version=3)) == 0
    assert await postgres.row_versions() == rows


@pytest.mark.parametrize(("created", "updated"), [(5, 50), (10, 40), (5, 40)])
async def test_at_the_same_version_the_earlier_times_stay(
    postgres: PostgresPlace, created: int, updated: int
) -> None:
    for history in itertools.permutations([ORDER, replace(ORDER, created=created, updated=updated)]):
        await postgres.empty()
        for each in history:
            await postgres.write(each)
        assert await times(postgres) == (at(created), at(updated), 4)


async def test_a_newer_version_brings_its_own_times(postgres: PostgresPlace) -> None:
    await postgres.write(ORDER)
    await postgres.write(replace(ORDER, version=5, created=8, updated=90))
    assert await times(postgres) == (at(8), at(90), 5)


BAD = {
    "an id": ("id", "no uuid", asyncpg.DataError),
    "a status": ("status", "lost", asyncpg.DataError),
    "an amount": ("total_amount", "much", asyncpg.DataError),
    "an amount below zero": ("total_amount", "-1.00", asyncpg.IntegrityConstraintViolationError),
    "a time": ("created_at", "some day", asyncpg.DataError),
    "a missing user": ("user_id", None, asyncpg.IntegrityConstraintViolationError),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_row_and_nothing_of_its_batch_is_written(postgres: PostgresPlace, what: str) -> None:
    column, value, error = BAD[what]
    batch = postgres.batch([ORDER, Order("b", 1)])
    changes: dict[str, Any] = {column: value}
    batch.orders[1] = structs.replace(batch.orders[1], **changes)
    with pytest.raises(error):
        await postgres.sink.write(batch)
    assert not any((await postgres.content()).values())
    assert await postgres.write(ORDER) == 8


async def test_every_set_of_tables_is_written(postgres: PostgresPlace) -> None:
    whole = postgres.batch([ORDER])
    names = [name for name in RowBatch.__slots__ if name != "noted"]
    for size in (1, 2, len(names) - 1, len(names)):
        for chosen in itertools.combinations(names, size):
            await postgres.empty()
            assert (
                await postgres.sink.write(RowBatch(**{name: getattr(whole, name) for name in chosen})) == size
            )
            written = {table: len(rows) for table, rows in (await postgres.content()).items() if rows}
            assert list(written.values()) == [1] * size
            assert len(written) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "NULL",
        "a,b",
        '"',
        "\\",
        "{}",
        "a\nb",
        "\x01\x1f",
        "São Paulo",
        "\U0001f4e6",
        "x" * 1000,
        "字" * 1000,
    ],
)
async def test_text_arrives_as_it_is(postgres: PostgresPlace, text: str) -> None:
    batch = postgres.batch([ORDER])
    (shipment,) = batch.shipments
    batch.shipments = [structs.replace(shipment, region=text, carrier=text, tracking_number=text)]
    await postgres.sink.write(batch)
    (row,) = await postgres.fetch(
        "SELECT region, carrier, tracking_number FROM orders_shipment WHERE tracking_number = $1", text
    )
    assert tuple(row) == (text, text, text)


async def test_null_stays_null_and_large_amounts_exact(postgres: PostgresPlace) -> None:
    batch = postgres.batch(
        [replace(ORDER, total="1000000000000000"), replace(ORDER, name="b", total="1000000000000.001")]
    )
    batch.shipments = [structs.replace(row, carrier=None, tracking_number=None) for row in batch.shipments]
    await postgres.sink.write(batch)
    rows = await postgres.fetch(
        "SELECT DISTINCT warehouse_id, carrier, tracking_number, estimated_delivery FROM orders_shipment"
    )
    assert [tuple(row) for row in rows] == [(None, None, None, None)]
    totals = await postgres.fetch("SELECT total_amount FROM orders_order ORDER BY total_amount")
    assert [str(row[0]) for row in totals] == ["1000000000000.0010", "1000000000000000.0000"]


async def test_an_order_is_as_old_as_the_oldest_of_its_suborders(postgres: PostgresPlace) -> None:
    """So orders that a worker of the version before wrote, without the table, are told as behind."""
    batch = postgres.batch([ORDER, Order("b", 2), Order("c", 3)])
    batch.suborders[1] = structs.replace(batch.suborders[1], version=1)
    batch.suborders.pop()
    await postgres.sink.write(batch)
    names = {ident(name): name for name in "abcd"}
    assert isinstance(postgres.sink, PostgresSink)
    versions = await postgres.sink.versions(list(names))
    assert {names[id]: version for id, version in versions.items()} == {"a": 4, "b": 1, "c": 0}


async def test_a_refund_of_more_than_one_amount_of_an_event_may_be(postgres: PostgresPlace) -> None:
    """All that an order's payments come to may leave in one refund."""
    batch = postgres.batch([ORDER])
    most = str((1 << 64) - 1)
    batch.refunds = [structs.replace(row, amount=most) for row in batch.refunds]
    await postgres.sink.write(batch)
    (row,) = await postgres.fetch("SELECT amount FROM orders_refund")
    assert row["amount"] == Decimal(most)


async def test_a_payment_has_an_amount_if_and_only_if_it_was_captured(postgres: PostgresPlace) -> None:
    batch = postgres.batch([ORDER])
    (paid,) = batch.payments
    failed: dict[str, Any] = {
        "status": "failed",
        "amount": None,
        "currency": None,
        "method": None,
        "reason": "declined",
    }
    wrongs: tuple[dict[str, Any], ...] = ({"amount": None}, {"status": "failed"})
    for wrong in wrongs:
        batch.payments = [structs.replace(paid, **wrong)]
        with pytest.raises(asyncpg.CheckViolationError):
            await postgres.sink.write(batch)
    batch.payments = [structs.replace(paid, **failed)]
    assert await postgres.sink.write(batch) == 8
    batch.payments = [structs.replace(paid, version=paid.version + 1)]
    assert await postgres.sink.write(batch) == 1
    rows = await postgres.fetch("SELECT status, currency, reason FROM orders_payment")
    assert [tuple(row) for row in rows] == [("captured", "BRL", None)]


async def test_by_region_the_same_rows(stack: Servers) -> None:
    settings = await new_database(stack)
    try:
        await upgrade(settings, "region")
        place = PostgresPlace(settings)
        await place.open()
        try:
            assert await place.write(replace(ORDER, version=3), Order("b", 1)) == 11
            assert await place.write(ORDER) == 7
            assert await version_of(place, "a") == 4
        finally:
            await place.close()
    finally:
        await drop_database(stack, settings)


async def version_of(place: PostgresPlace, name: str) -> int:
    (row,) = await place.fetch("SELECT version FROM orders_order WHERE id = $1", ident(name))
    version: int = row["version"]
    return version


async def test_connections_ended_by_the_server_are_replaced(postgres: PostgresPlace) -> None:
    await postgres.write(Order("b", 1))
    await execute(
        as_admin(postgres.settings.postgres),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orders-worker'",
    )
    await postgres.write_with_retries(ORDER)
    assert await version_of(postgres, "a") == 4


async def test_a_statement_that_takes_too_long_is_given_up_whole(postgres: PostgresPlace) -> None:
    await postgres.write(replace(ORDER, version=1))
    before = await postgres.content()
    impatient = PostgresSink(postgres.settings.model_copy(update={"postgres_statement_timeout": 0.1}))
    await impatient.start()
    blocker = await asyncpg.connect(postgres.settings.postgres.get_secret_value())
    try:
        async with blocker.transaction():
            await blocker.execute("SELECT FROM orders_order FOR UPDATE")
            with pytest.raises(asyncpg.QueryCanceledError):
                await impatient.write(postgres.batch([ORDER, Order("b", 1)]))
            assert await postgres.content() == before
        assert await impatient.write(postgres.batch([ORDER, Order("b", 1)])) == 10
    finally:
        await blocker.close()
        await impatient.close()


async def test_a_server_that_is_not_there_is_an_error(postgres: PostgresPlace) -> None:
    nowhere = PostgresSink(
        Settings(postgres="postgresql://postgres@127.0.0.1:1/orders", postgres_connect_timeout=1.0)
    )
    with pytest.raises(ConnectionRefusedError):
        await nowhere.start()
    await nowhere.close()
